"""The drawings of the page: histograms, the lines of a graph, and images."""

import base64
import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from intact.analysis.remedies import percent

if TYPE_CHECKING:
    from intact.analysis.comparison import Distribution, FileNode, TensorComparison

LANE, ROW = 14, 30
"""Width of a lane and height of a row of the graph, in pixels."""
MOST_LANES = 8
"""How many lanes are drawn; a tangle beyond that is drawn in the last one."""
LARGEST = 96
"""The most pixels of an image in each direction."""


def charts(a: "TensorComparison") -> str:
    """The histograms of a layer, and how it agrees with Keras.

    Args:
        a: The layer's entry in a comparison.
    """
    figures = []
    if a.activations is not None:
        figures.append(_figure("Activations", _spread(a.activations), _bars(a.activations, "a")))
    if a.weights is not None:
        figures.append(_figure("Weights", _rounding(a.weights), _bars(a.weights, "w")))
    note = f'<p class="note">All {a.values:,} values are equal in Keras and on LiteRT.</p>'
    if a.different:
        gap = f"{a.max_lsb:.3g} LSB" if a.lsb else f"{a.max_lsb:.2g}"
        note = f"{percent(a.share_equal)} equal, at most {gap} apart"
        if a.lsb:
            figures.append(_figure("Keras less LiteRT", f"{note}; &minus;4 to +4", _lsb(a.lsb)))
            note = ""
        else:
            note = f'<p class="note">Keras and LiteRT: {note}.</p>'
    return f'<div class="charts">{"".join(figures)}</div>{note}'


def _figure(title: str, text: str, drawing: str) -> str:
    return (
        f"<figure><figcaption><b>{title}</b></figcaption>{drawing}"
        f"<figcaption>{text}</figcaption></figure>"
    )


def _axis(d: "Distribution") -> str:
    """The values at the ends and in the middle of a histogram."""
    ends = [f"<span>{value:.3g}</span>" for value in (d.low, d.high)]
    middle = (d.low + d.high) / 2
    return f'<div class="axis">{ends[0]}<span>{middle:.2g}</span>{ends[1]}</div>'


def _spread(d: "Distribution") -> str:
    if d.range is None:
        return f"{d.low:.3g} to {d.high:.3g}"
    text = f"range {d.range[0]:.3g} to {d.range[1]:.3g}"
    return text if d.clipped is None else f"{text}, {percent(d.clipped)} clipped"


def _rounding(d: "Distribution") -> str:
    text = f"{d.low:.3g} to {d.high:.3g}"
    if d.scales is not None:
        low, high = d.scales
        text += f", scale {low:.2g}" if low == high else f", scales {low:.2g} to {high:.2g}"
    return text if d.snr is None else f"{text}, rounded {d.snr:.0f} dB"


def _bars(d: "Distribution", color: str) -> str:
    """A histogram; heights are square roots, so that tails can be seen."""
    top = max(d.counts) or 1
    heights = [60 * (n / top) ** 0.5 for n in d.counts]
    width = 200 / len(heights)
    steps = "".join(
        f"M{i * width:.1f} 64v{-max(h, 1.5):.1f}h{width - 0.8:.1f}V64z"
        for i, h in enumerate(heights)
        if h
    )
    marks = ""
    if d.range is not None:
        low, high = (200 * (x - d.low) / (d.high - d.low) for x in d.range)
        marks = (
            f'<path class="out" d="M0 0h{low:.1f}v64H0zM{high:.1f} 0H200v64H{high:.1f}z"/>'
            f'<path class="edge" d="M{low:.1f} 0v64M{high:.1f} 0v64"/>'
        )
    return _svg(f'{marks}<path class="{color}" d="{steps}"/>') + _axis(d)


def _lsb(counts: tuple[int, ...]) -> str:
    top = max(counts) or 1
    width = 200 / len(counts)
    steps = "".join(
        f"M{i * width + 3:.1f} 64v{-max(60 * (n / top) ** 0.5, 1.5):.1f}h{width - 6:.1f}V64z"
        for i, n in enumerate(counts)
        if n
    )
    return _svg(f'<path class="d" d="{steps}"/>')


def _svg(inside: str) -> str:
    return (
        '<svg viewBox="0 0 200 66" preserveAspectRatio="none" aria-hidden="true">'
        f'{inside}<path class="base" d="M0 64.5h200"/></svg>'
    )


def rails(nodes: Iterable["FileNode"]) -> list[str]:
    """The lines of a graph, as one drawing per row.

    Args:
        nodes: The ops in an order in which they can be computed.

    Returns:
        An SVG per node. Stacked without gaps, their lines meet.
    """
    nodes = list(nodes)
    last = {place: row for row, node in enumerate(nodes) for place in node.reads}
    lanes: list[int | None] = []
    drawn, widest = [], 1
    for row, node in enumerate(nodes):
        above = list(lanes)
        for lane, place in enumerate(lanes):
            if place is not None and last[place] == row:
                lanes[lane] = None
        ending = [i for i, place in enumerate(above) if place in node.reads and lanes[i] is None]
        free = (i for i, place in enumerate(lanes) if place is None)
        own = ending[0] if ending else next(free, len(lanes))
        if own == len(lanes):
            lanes.append(None)
        lanes[own] = row if row in last else None
        lines = []
        for lane, place in enumerate(above):
            if place is None:
                continue
            if lane < len(lanes) and lanes[lane] == place:
                lines.append((lane, 0, lane, ROW))
            if place in node.reads:
                lines.append((lane, 0, own, ROW // 2))
        if lanes[own] is not None:
            lines.append((own, ROW // 2, own, ROW))
        widest = max(widest, len(lanes))
        drawn.append((own, lines))
        while lanes and lanes[-1] is None:
            lanes.pop()
    width = LANE * (min(widest, MOST_LANES) + 1)
    return [_rail(own, lines, width) for own, lines in drawn]


def _rail(own: int, lines: list[tuple[int, int, int, int]], width: int) -> str:
    def x(lane: int) -> int:
        return LANE * (min(lane, MOST_LANES - 1) + 1)

    path = "".join(
        f"M{x(a)} {top}V{bottom}"
        if x(a) == x(b)
        else f"M{x(a)} {top}C{x(a)} {bottom} {x(b)} {top} {x(b)} {bottom}"
        for a, top, b, bottom in lines
    )
    return (
        f'<svg width="{width}" height="{ROW}" aria-hidden="true"><path d="{path}"/>'
        f'<circle cx="{x(own)}" cy="{ROW // 2}" r="4"/></svg>'
    )


def picture(values: np.ndarray) -> str:
    """A sample as an image: a PNG in a data URI; an empty text if it is no image.

    Args:
        values: The sample (height, width, channels).

    Example:

    >>> picture(np.zeros((2, 2, 3)))[:22]
    'data:image/png;base64,'
    """
    if values.ndim != 3 or values.shape[-1] not in (1, 3) or min(values.shape[:2]) < 2:
        return ""
    step = -(-max(values.shape[:2]) // LARGEST)
    image = values[::step, ::step].astype("float64")
    low, high = image.min(), image.max()
    pixels = np.rint(255 * (image - low) / ((high - low) or 1)).astype("uint8")
    height, width, channels = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return "data:image/png;base64," + base64.b64encode(content).decode()
