"""The page of a comparison: one HTML file, without scripts, for any width."""

from collections.abc import Callable, Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intact.analysis.comparison import Comparison, Distribution, FileNode, TensorComparison

WORST = 5
"""How many of the worst layers are shown with advice."""
GOOD, FAIR = 30.0, 20.0
"""Signal-to-noise ratios in dB from which on a layer is called good, or fair."""
FULL = 60.0
"""The ratio in dB that fills a bar."""
LANE, ROW = 14, 30
"""Width of a lane and height of a row of the graph, in pixels."""
MOST_LANES = 8
"""How many lanes are drawn; a tangle beyond that is drawn in the last one."""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf7;--card:#fff;--ink:#22272e;--soft:#68707b;--line:#e5e2da;
--main:#2f7f86;--pale:#d3e6e6;--good:#4a9a6a;--fair:#cf9a2b;--bad:#c8553d;--float:#8a63b8}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1c2026;--ink:#e4e6e9;--soft:#969ea9;
--line:#2c323a;--main:#5fb3ba;--pale:#24444a;--good:#63b887;--fair:#dcb04f;--bad:#e07a62;--float:#b195dc}}
*{box-sizing:border-box}
body{margin:0 auto;padding:28px 16px 64px;max-width:920px;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;-webkit-text-size-adjust:100%}
h1{font-size:24px;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:17px;margin:40px 0 4px}
p{margin:4px 0 12px;color:var(--soft);max-width:66ch}
code{font:13px ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere;color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;
margin:20px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 14px}
.tile b{display:block;font-size:22px;font-weight:600;line-height:1.3;
font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px;line-height:1.35;display:block}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;
margin:10px 0;padding:14px}
.card h3{font-size:15px;margin:0;overflow-wrap:anywhere;display:flex;gap:8px;flex-wrap:wrap;
align-items:baseline}
.card h3 small,.kind{color:var(--soft);font-weight:400;font-size:13px}
.card ul{margin:8px 0 4px;padding-left:18px}.card li{margin:3px 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:16px;margin-top:12px}
p.note{font-size:12.5px;margin:8px 0 0}
figure{margin:0;max-width:340px}figcaption{font-size:12.5px;color:var(--soft);line-height:1.4}
figcaption b{color:var(--ink);font-weight:600}
svg{display:block}figure svg{width:100%;height:72px;margin:4px 0}
.list{background:var(--card);border:1px solid var(--line);border-radius:12px;overflow:hidden}
.list details+details{border-top:1px solid var(--line)}
summary{cursor:pointer;list-style:none;padding:9px 14px;display:grid;align-items:center;
grid-template-columns:minmax(0,1fr) 64px;gap:2px 12px}
summary::-webkit-details-marker{display:none}
summary:hover{background:color-mix(in srgb,var(--pale) 30%,transparent)}
.name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;font-size:14px}
.bar{grid-column:1/-1;height:5px;border-radius:3px;background:var(--line);position:relative}
.bar i{position:absolute;inset:0 auto 0 0;border-radius:3px;background:var(--tone,var(--main))}
.bar u{position:absolute;top:-3px;width:3px;height:11px;border-radius:2px;background:var(--ink)}
.inside{padding:0 14px 14px}
.good{--tone:var(--good)}.fair{--tone:var(--fair)}.bad{--tone:var(--bad)}
.tag{font-size:12px;border-radius:6px;padding:1px 7px;background:var(--pale);color:var(--ink);
white-space:nowrap}
.tag.float{background:color-mix(in srgb,var(--float) 22%,transparent)}
.tag.score{background:color-mix(in srgb,var(--tone) 24%,transparent)}
.rail{display:flex;align-items:center;height:30px;gap:8px;padding:0 14px 0 6px}
.rail svg{flex:none}.rail .name{flex:1;font-size:14px}.rail .kind{flex:none;font-size:12px}
.rail.float{background:color-mix(in srgb,var(--float) 11%,transparent)}
.rail path{fill:none;stroke:var(--soft);stroke-width:1.5}
.rail circle{fill:var(--main)}.rail.float circle{fill:var(--float)}
.a{fill:var(--main)}.w{fill:var(--good)}.d{fill:var(--fair)}
.edge{stroke:var(--bad);stroke-dasharray:3 2}
.out{fill:var(--bad);opacity:.1}.base{stroke:var(--line)}
@media(min-width:640px){summary{grid-template-columns:minmax(0,1fr) 220px 72px}
.bar{grid-column:2;grid-row:1}.number{grid-column:3}}
@media(max-width:480px){.rail .kind{max-width:42%;overflow:hidden;text-overflow:ellipsis;
white-space:nowrap}}
@media print{details>*{display:block}}
"""


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
        f"<p>Keras against its LiteRT file, on {_count(c.samples, 'sample')} "
        f"and the {escape(c.kernels)} kernels.</p>",
        *_tiles(c),
        *_worst(entries),
        *_layers(entries),
        *_graph(c.nodes),
        "</body></html>\n",
    ]
    return "\n".join(parts)


# The sections --------------------------------------------------------------------------


def _tiles(c: "Comparison") -> Iterable[str]:
    values = sum(a.values for a in c.outputs)
    tiles = [(_size(c.bytes), "file")] if c.bytes else []
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
        text = f"of {_count(len(ops), 'op')} computes in float"
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
            "<p>By what each layer alone adds to the float model's tensors: its signal-to-noise "
            "ratio. 6 dB are one bit.</p>"
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
        yield f"<h3>{escape(a.name)} <small>{escape(_what(a))}</small>{_score(a)}</h3>"
        yield "<ul>" + "".join(f"<li>{text}</li>" for text in remedies(a)) + "</ul>"
        yield _charts(a) + "</div>"


def _layers(entries: list["TensorComparison"]) -> Iterable[str]:
    """All layers in order, each with its charts inside."""
    if not entries:
        return
    yield "<h2>All layers in order</h2>"
    if any(a.snr is not None for a in entries):
        yield (
            "<p>The bar is the signal-to-noise ratio with all layers before quantized, too; the "
            "mark is that of the layer alone. Open one to look inside.</p>"
        )
    else:
        yield "<p>The number is how many values differ from Keras. Open one to look inside.</p>"
    mixed = len({a.dtype for a in entries}) > 1
    yield '<div class="list">'
    for a in entries:
        kind = f"{a.kind}, {a.dtype}" if mixed else a.kind
        if a.snr is None:
            number, bar = f"{a.different}", ""
        else:
            mark = "" if a.local_snr is None else f'<u style="left:{_share(a.local_snr)}%"></u>'
            bar = f'<span class="bar"><i style="width:{_share(a.snr)}%"></i>{mark}</span>'
            number = f"{a.snr:.1f} dB"
        yield (
            f'<details class="{_tone(a.snr)}"><summary><span class="name">{escape(a.name)} '
            f'<span class="kind">{escape(kind)}</span></span>'
            f'<span class="number">{number}</span>{bar}</summary>'
            f'<div class="inside">{_charts(a)}</div></details>'
        )
    yield "</div>"


def _graph(nodes: tuple["FileNode", ...]) -> Iterable[str]:
    """The graph of the file, a row for each op."""
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
    yield f'<details class="list"{" open" if len(nodes) <= 150 else ""}>'
    yield f'<summary><span class="name">{_count(len(nodes), "row")}</span></summary>'
    for node, drawing in zip(nodes, rails(nodes), strict=True):
        before = {nodes[place].dtype for place in node.reads}
        dtype = "" if node.dtype in before else f", {escape(node.dtype)}"
        float_class = " float" if node.float else ""
        yield (
            f'<div class="rail{float_class}">{drawing}'
            f'<span class="name">{escape(node.name)}</span>'
            f'<span class="kind">{escape(node.kind.lower().replace("_", " "))}{dtype}</span></div>'
        )
    yield "</details>"


# What is said of a layer ---------------------------------------------------------------


def remedies(a: "TensorComparison") -> list[str]:
    """What to try for a layer, as lines of HTML.

    Args:
        a: The layer's entry in a comparison.

    Returns:
        At least one line.
    """
    texts = [text(a) for applies, text in REMEDIES if applies(a)]
    return texts or ["Nothing stands out here: its rounding is what its bits cost."]


def _own(a: "TensorComparison") -> float:
    return 200.0 if a.local_snr is None else a.local_snr


def _of(distribution: "Distribution | None", name: str, otherwise: float) -> float:
    value = None if distribution is None else getattr(distribution, name)
    return otherwise if value is None else value


REMEDIES: tuple[
    tuple[Callable[["TensorComparison"], bool], Callable[["TensorComparison"], str]], ...
] = (
    (
        lambda a: bool(a.lsb) and a.max_lsb > 1.001 and _of(a.weights, "snr", 0) < 200,
        lambda a: (
            f"The file is up to {a.max_lsb:.3g} LSB from Keras. If the model has changed "
            "since, export it again; other kernels than the default ones round otherwise."
        ),
    ),
    (
        lambda a: _of(a.activations, "clipped", 0.0) > 0.002,
        lambda a: (
            f"{100 * _of(a.activations, 'clipped', 0.0):.2g} % of the float model's values "
            "lie beyond the range and are clipped. Calibrate on more data, or on data that is "
            "more like this."
        ),
    ),
    (
        lambda a: _of(a.activations, "filled", 1.0) < 0.35 and _own(a) < GOOD + 6,
        lambda a: (
            "Nearly all values lie within "
            f"{100 * _of(a.activations, 'filled', 1.0):.0f} % of the range: outliers stretch it. "
            "Try another <code>observer</code> in <code>intact.calibrate</code>."
        ),
    ),
    (
        lambda a: _of(a.weights, "snr", 200.0) < FAIR,
        lambda a: (
            f"Rounding the weights leaves {_of(a.weights, 'snr', 0.0):.0f} dB. Give this "
            "layer more bits: <code>"
            f"{_rule(a, 'weights=TensorSpec(8, symmetric=True, per_axis=True)')}</code>, "
            "or try <code>intact.recover</code>, or training with quantization."
        ),
    ),
    (
        lambda a: FAIR <= _of(a.weights, "snr", 200.0) < GOOD + 6 and _own(a) < GOOD + 6,
        lambda a: (
            f"Rounding the weights leaves {_of(a.weights, 'snr', 0.0):.0f} dB, about as much "
            "noise as all the layer adds. <code>intact.recover</code> takes some of it back."
        ),
    ),
    (
        lambda a: "int8" in a.dtype and _own(a) < GOOD and _of(a.weights, "snr", 200.0) > _own(a),
        lambda a: (
            "Rounding the activations costs most. Give this layer 16 bits: "
            f"<code>{_rule(a, 'activations=TensorSpec(16, symmetric=True)')}</code>"
        ),
    ),
    (
        lambda a: a.snr is not None and a.local_snr is not None and a.local_snr - a.snr > 6,
        lambda a: f"Most of its noise ({a.snr:.0f} dB in all) comes from the layers before.",
    ),
)
"""When a remedy applies, and what it says."""


def _rule(a: "TensorComparison", spec: str) -> str:
    return f"Rule({escape(repr(a.layer or a.name))}, {escape(spec)})"


def _what(a: "TensorComparison") -> str:
    made_by = f"{a.kind} {a.layer}" if a.layer not in ("", a.name) else a.kind
    return ", ".join(part for part in (made_by, a.dtype) if part)


def _score(a: "TensorComparison") -> str:
    value = a.snr if a.local_snr is None else a.local_snr
    text = f"{a.max_lsb:.3g} LSB" if value is None else f"{value:.1f} dB"
    return f'<span class="tag score {_tone(value)}">{text}</span>'


def _tone(snr: float | None) -> str:
    if snr is None:
        return ""
    return "good" if snr >= GOOD else "fair" if snr >= FAIR else "bad"


def _share(snr: float) -> str:
    return f"{100 * min(max(snr / FULL, 0.0), 0.99):.1f}"


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _percent(share: float) -> str:
    if 0 < share < 1e-4:
        return "&lt; 0.01 %"
    if 0 < 1 - share < 1e-4:
        return "&gt; 99.99 %"
    return f"{100 * share:.4g} %"


def _size(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 1024**2 else f"{size / 1024**2:.2f} MiB"


# Drawings ------------------------------------------------------------------------------


def _charts(a: "TensorComparison") -> str:
    figures = []
    if a.activations is not None:
        figures.append(_figure("Activations", _spread(a.activations), _bars(a.activations, "a")))
    if a.weights is not None:
        figures.append(_figure("Weights", _rounding(a.weights), _bars(a.weights, "w")))
    note = f'<p class="note">All {a.values:,} values are equal in Keras and on LiteRT.</p>'
    if a.different:
        gap = f"{a.max_lsb:.3g} LSB" if a.lsb else f"{a.max_lsb:.2g}"
        note = f"{_percent(a.share_equal)} equal, at most {gap} apart"
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


def _spread(d: "Distribution") -> str:
    if d.range is None:
        return f"{d.low:.3g} to {d.high:.3g}"
    text = f"range {d.range[0]:.3g} to {d.range[1]:.3g}"
    return text if d.clipped is None else f"{text}, {_percent(d.clipped)} clipped"


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
    return _svg(f'{marks}<path class="{color}" d="{steps}"/>')


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
