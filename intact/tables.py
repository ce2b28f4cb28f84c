"""Tables of text, and results that print as text and show as tables in notebooks."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from html import escape
from typing import Any


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


@dataclass(frozen=True)
class Table:
    """A table that is a part of a result.

    Args:
        rows: The rows; the first is the heading.
        left: As for `table`.

    Example:

    >>> print(Table([("model", "bytes"), ("int8", "256")]))
    model  bytes
    int8     256
    """

    rows: Sequence[tuple[str, ...]]
    left: int | None = 1

    def __str__(self) -> str:
        return table(self.rows, self.left)

    def to_html(self) -> str:
        """The table as HTML, for a notebook."""
        lines = []
        for number, row in enumerate(self.rows):
            tag = "td" if number else "th"
            cells = (
                f'<{tag} style="text-align:{self._side(i)}">{escape(cell)}</{tag}>'
                for i, cell in enumerate(row)
            )
            lines.append(f"<tr>{''.join(cells)}</tr>")
        head, *body = lines
        return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"

    def _side(self, column: int) -> str:
        return "left" if self.left is None or column < self.left else "right"


def short_repr(data: Any) -> str:
    """The call that makes a dataclass, with the arguments alone that are not the default ones.

    Args:
        data: An instance of a dataclass.

    Example:

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Point:
    ...     x: int
    ...     y: int = 0
    ...     __repr__ = short_repr
    >>> Point(3), Point(0, 4)
    (Point(x=3), Point(x=0, y=4))
    """
    needed = [f for f in fields(data) if f.default is MISSING and f.default_factory is MISSING]
    plain = type(data)(**{f.name: getattr(data, f.name) for f in needed})
    shown = (
        f"{f.name}={getattr(data, f.name)!r}"
        for f in fields(data)
        if f in needed or getattr(data, f.name) not in (f.default, getattr(plain, f.name))
    )
    return f"{type(data).__name__}({', '.join(shown)})"


class Report:
    """A result: printing it gives text, a notebook shows it as HTML, and its `repr` is short.

    Example:

    >>> class Sizes(Report):
    ...     def parts(self):
    ...         return ["2 models", Table([("model", "bytes"), ("int8", "256")])]
    >>> Sizes()
    <Sizes: 2 models>
    """

    def parts(self) -> "list[str | Table]":
        """The lines and tables of the result; the first line is its `repr`."""
        raise NotImplementedError

    def headline(self) -> str:
        """What the result is about, for its `repr`."""
        lines = (part for part in self.parts() if isinstance(part, str) and part)
        return next(lines, "").partition("\n")[0]

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts()))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.headline()}>"

    def _repr_html_(self) -> str:
        return "".join(
            part.to_html()
            if isinstance(part, Table)
            else f'<div style="white-space:pre-wrap">{escape(part)}</div>'
            for part in self.parts()
            if not isinstance(part, str) or part
        )
