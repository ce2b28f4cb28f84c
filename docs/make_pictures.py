"""Draws the picture of README, from a comparison: `docs/assets/comparison.svg`.

python docs/make_pictures.py
"""

import os
import runpy
from html import escape
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import intact

DOCS = Path(__file__).parent
SCHEMES = {"int8": "a", "int4": "b"}
WIDTH, ROW, LEFT, FULL = 760, 34, 190, 60.0
STYLE = """
text{font:14px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#22272e}
.head{font-weight:600;font-size:16px}.soft{fill:#68707b;font-size:12.5px}
.a{fill:#2f7f86}.b{fill:#cf9a2b}.line{stroke:#d9d6cd}
@media(prefers-color-scheme:dark){text{fill:#e4e6e9}.soft{fill:#969ea9}
.a{fill:#5fb3ba}.b{fill:#dcb04f}.line{stroke:#3a424c}}
"""


def comparisons() -> dict[str, intact.Comparison]:
    """The digits model of the guides in each scheme, compared with its file and with float."""
    names = runpy.run_path(str(DOCS / "snippets" / "digits.py"))
    model, images, test = names["model"], names["images"], names["test"]
    result = {}
    for scheme in SCHEMES:
        q = intact.quantize_model(model, scheme)
        intact.calibrate(q, images[:100], verbose=0)
        result[scheme] = intact.compare(q, intact.export(q), images[test], float_model=model)
    return result


def picture(compared: dict[str, intact.Comparison]) -> str:
    """The picture: for each tensor, a bar for each scheme's signal-to-noise ratio."""
    first = next(iter(compared.values()))
    names = [tensor.name for tensor in first.layers]
    height = 92 + ROW * len(names)
    each = ", ".join(f"{name}: {c.different}" for name, c in compared.items())
    values = sum(output.values for output in first.outputs)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>What each layer loses</title><style>{STYLE}</style>",
        '<text class="head" x="16" y="28">What each layer of a small CNN loses</text>',
        '<text class="soft" x="16" y="48">Signal to noise against the float model, in dB. '
        f"Of {values:,} outputs differ between Keras and LiteRT: {each}.</text>",
    ]
    for row, name in enumerate(names):
        top = 66 + ROW * row
        parts.append(f'<text x="16" y="{top + 18}">{escape(name)}</text>')
        for place, (scheme, comparison) in enumerate(compared.items()):
            snr = next(t.snr for t in comparison.layers if t.name == name) or 0.0
            length = (WIDTH - LEFT - 70) * min(snr / FULL, 1)
            y = top + 4 + 12 * place
            parts.append(
                f'<rect class="{SCHEMES[scheme]}" x="{LEFT}" y="{y}" width="{length:.1f}" '
                f'height="10" rx="3"/><text class="soft" x="{LEFT + length + 6:.1f}" '
                f'y="{y + 9}">{scheme} {snr:.0f}</text>'
            )
    line = f'<path class="line" d="M{LEFT} 62V{height - 22}"/>'
    return "\n".join([*parts, line, "</svg>\n"])


if __name__ == "__main__":
    (DOCS / "assets").mkdir(exist_ok=True)
    (DOCS / "assets" / "comparison.svg").write_text(picture(comparisons()))
