"""The page of a comparison: one HTML file, for any width, with nothing from outside."""

from collections.abc import Callable, Iterable
from datetime import date
from html import escape
from importlib import metadata
from typing import TYPE_CHECKING

import keras

from intact import __version__
from intact.analysis.drawings import charts, rails
from intact.analysis.page_style import SCRIPT, STYLE
from intact.analysis.remedies import (
    FAIR,
    FULL,
    GOOD,
    count,
    remedies,
    score,
    share,
    size_text,
    tone,
    what,
)

if TYPE_CHECKING:
    from intact.analysis.comparison import Comparison, FileNode, Flip, TensorComparison

WORST = 5
"""How many of the worst layers are shown with advice."""


def page(comparison: "Comparison") -> str:
    """A comparison as a page.

    Args:
        comparison: What `intact.compare` returned.

    Returns:
        A whole HTML document, without links to anything outside.
    """
    c = comparison
    order = {node.name: place for place, node in enumerate(c.nodes)}
    entries = sorted((*c.layers, *c.floats), key=lambda a: order.get(a.tensor, -1))
    title = escape(c.model or "model")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{title}: Keras against LiteRT</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        *_head(c),
        *_tiles(c),
        *_flips(c.flips, c.flipped, c.samples),
        *_worst(entries),
        *_layers(entries, c.nodes),
        *_graph(c.nodes, {order.get(a.tensor) for a in entries}),
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(parts)


# The sections --------------------------------------------------------------------------


def _head(c: "Comparison") -> Iterable[str]:
    """What was compared, when, and with which versions."""
    yield (
        f"<p>Keras against its LiteRT file, on {count(c.samples, 'sample')} "
        f"and the {escape(c.kernels)} kernels.</p>"
    )
    versions = (
        f"intact {__version__}, Keras {keras.__version__} on {keras.backend.backend()}, "
        f"LiteRT {metadata.version('ai-edge-litert')}"
    )
    facts = [c.file, c.types, versions, date.today().isoformat()]
    yield f'<p class="facts">{" · ".join(escape(fact) for fact in facts if fact)}</p>'


def _flips(flips: tuple["Flip", ...], total: int, samples: int) -> Iterable[str]:
    """The samples whose largest output is elsewhere than in float."""
    if not total:
        return
    yield "<h2>Samples that change their class</h2>"
    shown = "" if len(flips) == total else f" The first {len(flips)} are shown."
    yield (
        f"<p>{total} of {count(samples, 'sample')}: their largest output is another one in float "
        f"than in the file.{shown}</p>"
    )
    yield '<div class="flips">'
    for flip in flips:
        image = f'<img src="{flip.picture}" alt="sample {flip.sample}"/>' if flip.picture else ""
        yield (
            f"<figure>{image}<figcaption>sample {flip.sample}<br><b>{flip.before} &rarr; "
            f"{flip.after}</b></figcaption></figure>"
        )
    yield "</div>"


def _tiles(c: "Comparison") -> Iterable[str]:
    values = sum(a.values for a in c.outputs)
    tiles = [(size_text(c.bytes), "file")] if c.bytes else []
    if c.different:
        share = f"{100 * (1 - c.different / values):.4g} %"
        tiles.append((share, f"of output values are equal in Keras; the largest gap is {_gap(c)}"))
    else:
        tiles.append(("equal", f"all {values} output values are the same in Keras"))
    same = [a.float_top1 for a in c.outputs if a.float_top1 is not None]
    if same:
        tiles.append((f"{100 * min(same):.4g} %", "of samples have the float model's top-1"))
    elif c.top1 is not None:
        tiles.append((f"{100 * c.top1:.4g} %", "of samples have the same top-1 in Keras"))
    snr = [a.snr for a in c.outputs if a.snr is not None]
    if snr:
        tiles.append((f"{min(snr):.1f} dB", "signal to noise of the outputs, against float"))
    ops = [node for node in c.nodes if node.kind != "INPUT"]
    if ops:
        floats = sum(node.float for node in ops)
        text = f"of {count(len(ops), 'op')} computes in float"
        tiles.append((str(floats), text if floats == 1 else text.replace("computes", "compute")))
    yield '<div class="tiles">'
    for number, text in tiles:
        yield f'<div class="tile"><b>{escape(number)}</b><span>{escape(text)}</span></div>'
    yield "</div>"


def _gap(c: "Comparison") -> str:
    return f"{c.max_lsb:.3g} LSB" if any(a.lsb for a in c.outputs) else f"{c.max_lsb:.2g}"


def _worst(entries: list["TensorComparison"]) -> Iterable[str]:
    """The layers that lose most, with what to try."""
    if not entries:
        return
    yield "<h2>Worst layers first</h2>"
    judged = [a for a in entries if a.local_snr is not None] or [
        a for a in entries if a.snr is not None
    ]
    if judged:
        key: Callable = lambda a: a.local_snr if a.local_snr is not None else a.snr  # noqa: E731
        worst = sorted(judged, key=key)[:WORST]
        yield (
            "<p>Sorted by the noise that each layer adds by itself, as a signal-to-noise ratio; "
            "6 dB are one bit. <code>intact.bisect</code> may name another layer, because it looks "
            "for the first layer that changes the model's answers. A noisy layer need not change "
            "them.</p>"
        )
    else:
        worst = sorted((a for a in entries if a.different), key=lambda a: -a.max_lsb)[:WORST]
        if not worst:
            yield (
                "<p>The file computes in every layer just what Keras does. To see what each layer "
                "loses against the float model, call <code>intact.compare(..., "
                "float_model=model)</code>.</p>"
            )
        else:
            yield "<p>By the largest difference between Keras and the file.</p>"
    for a in worst:
        yield '<div class="card">'
        yield f"<h3>{escape(a.name)} <small>{escape(what(a))}</small>{score(a)}</h3>"
        yield "<ul>" + "".join(f"<li>{text}</li>" for text in remedies(a)) + "</ul>"
        yield charts(a) + "</div>"


def _layers(entries: list["TensorComparison"], nodes: tuple["FileNode", ...]) -> Iterable[str]:
    """All layers in order, each with its charts inside."""
    if not entries:
        return
    rows = {node.name: place for place, node in enumerate(nodes)}
    yield "<h2>All layers in order</h2>"
    yield from _legend(any(a.snr is not None for a in entries))
    yield (
        '<div id="tools" hidden><input type="search" placeholder="Search layers" '
        'aria-label="Search layers"/><select aria-label="Sort by">'
        '<option value="order">in order</option><option value="snr">noise in all</option>'
        '<option value="own">its own noise</option><option value="gap">difference from Keras'
        "</option></select></div>"
    )
    mixed = len({a.dtype for a in entries}) > 1
    yield '<div class="list" id="layers">'
    for order, a in enumerate(entries):
        kind = f"{a.kind}, {a.dtype}" if mixed else a.kind
        if a.snr is None:
            number, bar = f"{a.different}", ""
        else:
            mark = "" if a.local_snr is None else f'<u style="left:{share(a.local_snr)}%"></u>'
            bar = f'<span class="bar"><i style="width:{share(a.snr)}%"></i>{mark}</span>'
            number = f"{a.snr:.1f} dB"
        keys = (200.0 if value is None else value for value in (a.snr, a.local_snr))
        snr, own = (f"{key:.2f}" for key in keys)
        place, words = rows.get(a.tensor), f"{a.name} {a.layer} {kind}".lower()
        yield (
            f'<details class="{tone(a.snr)}" data-name="{escape(words)}" '
            f'data-order="{order}" data-snr="{snr}" data-own="{own}" data-gap="{-a.max_lsb:.3g}">'
            f'<summary><span class="name">{escape(a.name)} '
            f'<span class="kind">{escape(kind)}</span></span>'
            f'<span class="number">{number}</span>{bar}</summary>'
            f'<div class="inside" id="layer-{place}">{_place(place, nodes)}{charts(a)}</div>'
            "</details>"
        )
    yield "</div>"


def _place(place: int | None, nodes: tuple["FileNode", ...]) -> str:
    """The shape of a layer's tensor, its latency, and where it is in the graph."""
    if place is None:
        return ""
    node = nodes[place]
    facts = ", ".join(filter(None, (node.dtype, _shape(node), _latency(node))))
    return f'<p class="note">{facts} &middot; <a href="#op-{place}">in the graph</a></p>'


def _shape(node: "FileNode") -> str:
    return "&times;".join("?" if size is None else str(size) for size in node.shape)


def _latency(node: "FileNode") -> str:
    return "" if node.latency is None else f"{1e6 * node.latency:.3g} µs"


def _legend(with_float: bool) -> Iterable[str]:
    """What bars, marks and histograms mean."""
    if not with_float:
        yield "<p>The number is how many values differ from Keras. Open one to look inside.</p>"
        return
    yield (
        "<p>The bar is the signal-to-noise ratio with all layers before quantized, too, from 0 to "
        f"{FULL:g} dB; the mark is that of the layer alone. Open one to look inside.</p>"
    )
    tones = (
        ("good", f"from {GOOD:g} dB on"),
        ("fair", f"from {FAIR:g} dB on"),
        ("bad", f"below {FAIR:g} dB"),
    )
    items = "".join(f'<span class="{name}"><em></em>{text}</span>' for name, text in tones)
    yield (
        f'<div class="legend">{items}<span>Histograms: heights are square roots of counts; dashed '
        "lines are the ends of the integers' range, and what is shaded is clipped.</span></div>"
    )


def _graph(nodes: tuple["FileNode", ...], known: set[int | None]) -> Iterable[str]:
    """The graph of the file, a row for each op; `known` are those that were compared."""
    if not nodes:
        return
    floats = sum(node.float for node in nodes)
    yield "<h2>The graph of the file</h2>"
    if floats:
        yield (
            '<p><span class="tag float">Shaded</span> ops compute in float. '
            "<code>print(intact.explain(model))</code> says why.</p>"
        )
    else:
        yield "<p>All ops compute on integers.</p>"
    if any(node.latency is not None for node in nodes):
        yield (
            "<p>Each time is that of one op run alone, on one thread of this machine. The file "
            "runs its ops together, so the times do not add up to its latency.</p>"
        )
    yield f'<details class="list"{" open" if len(nodes) <= 150 else ""}>'
    yield f'<summary><span class="name">{count(len(nodes), "tensor")}</span></summary>'
    for place, (node, drawing) in enumerate(zip(nodes, rails(nodes), strict=True)):
        before = {nodes[place].dtype for place in node.reads}
        dtype = "" if node.dtype in before else f", {escape(node.dtype)}"
        float_class = " float" if node.float else ""
        name = escape(node.name)
        name = f'<a href="#layer-{place}">{name}</a>' if place in known else name
        facts = "".join(f", {fact}" for fact in (_shape(node), _latency(node)) if fact)
        yield (
            f'<div class="rail{float_class}" id="op-{place}">{drawing}'
            f'<span class="name">{name}</span><span class="kind">'
            f"{escape(node.kind.lower().replace('_', ' '))}{dtype}{facts}</span></div>"
        )
    yield "</details>"
