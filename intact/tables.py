"""Tables of text."""

from collections.abc import Sequence


def table(rows: Sequence[tuple[str, ...]], left: int | None = 1) -> str:
    """Rows of text in aligned columns.

    Args:
        rows: The rows; the first is the heading.
        left: How many columns are flush left; the others are flush right. None is all of them.

    Returns:
        The lines.

    Example:

    >>> print(table([("model", "bytes"), ("float", "1024"), ("int8", "256")]))
    model  bytes
    float   1024
    int8     256
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    flush = [str.ljust if left is None or i < left else str.rjust for i in range(len(widths))]
    lines = (
        "  ".join(align(cell, width) for align, cell, width in zip(flush, row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
