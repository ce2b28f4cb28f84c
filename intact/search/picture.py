"""A picture of size against score, as an SVG drawing without any dependency."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 24, 48
"""The margins around the plot, in pixels."""
TICKS = 4
"""How many steps each axis is divided into."""
LINE = 14
"""The height of a label, in pixels."""
LETTER = 7
"""About the width of a letter, in pixels."""


class Dot(NamedTuple):
    """An option in the picture: its name, bytes and score, and whether it is recommended."""

    name: str
    size: int
    score: float
    chosen: bool = False


def picture(dots: Sequence[Dot], measure: str, limit: float) -> str:
    """Draw size against score.

    Args:
        dots: The options.
        measure: What the score is, for the axis.
        limit: The smallest score within the tolerance, which is drawn as a line.

    Returns:
        An SVG element. It takes the colour of the text around it, so that it goes with light and
        dark pages.

    Example:

    >>> svg = picture([Dot("float32", 4096, 0.92), Dot("int8", 1024, 0.91, True)], "accuracy", 0.9)
    >>> svg.count("<circle")
    2
    """
    step_size = _round_step(max(dot.size for dot in dots) / TICKS)
    widest = TICKS * step_size
    lowest = min(limit, *(dot.score for dot in dots))
    highest = max(dot.score for dot in dots)
    margin = 0.08 * ((highest - lowest) or 0.01)
    bottom, top = lowest - margin, highest + margin

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * size / widest

    def y(score: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (score - bottom) / (top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Size against {escape(measure)}" style="max-width:{WIDTH}px;width:100%" '
        'font-family="system-ui,sans-serif" font-size="12" fill="currentColor">'
    ]
    for step in range(TICKS + 1):
        size = step_size * step
        score = bottom + (top - bottom) * step / TICKS
        parts.append(
            f'<path d="M{LEFT} {y(score):.1f}H{WIDTH - RIGHT}" stroke="currentColor" '
            'opacity=".15"/>'
            + _text(LEFT - 8, y(score) + 4, f"{100 * score:.1f} %", "end")
            + _text(x(size), HEIGHT - BOTTOM + 18, f"{size / 1024:.4g}", "middle")
        )
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "size of the file, KiB", "middle"))
    parts.append(_text(LEFT - 8, 14, measure, "middle"))
    parts.append(
        f'<path d="M{LEFT} {y(limit):.1f}H{WIDTH - RIGHT}" stroke="#c8553d" '
        'stroke-dasharray="5 4"/>' + _text(WIDTH - RIGHT, y(limit) - 5, "tolerance", "end")
    )
    parts += _dots([(dot, x(dot.size), y(dot.score)) for dot in dots])
    return "".join([*parts, "</svg>"])


def _dots(places: Sequence[tuple[Dot, float, float]]) -> list[str]:
    """The dots with their names, which give way to each other."""
    parts: list[str] = []
    labels: list[str] = []
    # Where there is something already: the dots, then the names that were placed.
    taken = [(x - 8, x + 8, y + 4) for _, x, y in places]
    for dot, x, y in sorted(places, key=lambda place: place[2]):
        width = LETTER * len(dot.name)
        is_left = x + 10 + width > WIDTH - RIGHT
        start, row = x - 10 - width if is_left else x + 10, y + 4
        while any(
            abs(row - other) < LINE and start < end and begin < start + width
            for begin, end, other in taken
        ):
            row += LINE
        taken.append((start, start + width, row))
        color, weight = ("#c8553d", "bold") if dot.chosen else ("#2f7f86", "normal")
        anchor = ("end", x - 10) if is_left else ("start", x + 10)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if dot.chosen else 5}" fill="{color}">'
            f"<title>{escape(dot.name)}: {dot.size} bytes, {100 * dot.score:.2f} %</title></circle>"
        )
        labels.append(_text(anchor[1], row, dot.name, anchor[0], weight))
    return parts + labels


def _round_step(size: float) -> float:
    """The next number of bytes that is 1, 2, 2.5 or 5 times a power of ten in KiB."""
    power = 1024 * 10.0 ** math.floor(math.log10(size / 1024))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= size)


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
