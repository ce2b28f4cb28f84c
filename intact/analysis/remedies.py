"""What to try for a layer that loses accuracy, and how its loss is called."""

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intact.analysis.comparison import Distribution, TensorComparison

GOOD, FAIR = 30.0, 20.0
"""Signal-to-noise ratios in dB from which on a layer is called good, or fair."""
FULL = 60.0
"""The ratio in dB that fills a bar."""


def remedies(a: "TensorComparison") -> list[str]:
    """What to try for a layer, as lines of HTML.

    Args:
        a: The layer's entry in a comparison.

    Returns:
        At least one line.
    """
    texts = [text(a) for applies, text in REMEDIES if applies(a)]
    if texts:
        return texts
    value = a.snr if a.local_snr is None else a.local_snr
    if value is not None and value < GOOD:
        return [
            "Its range fits, so the loss comes from the number of bits: give it more, or train."
        ]
    return ["Nothing is wrong here: its rounding is what its bits cost."]


def _is_clipped(a: "TensorComparison") -> bool:
    """Whether the values beyond the range matter."""
    clipped = _of(a.activations, "clipped", 0.0)
    return clipped > (0.02 if a.local_snr is not None and a.local_snr >= GOOD + 6 else 0.002)


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
        _is_clipped,
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


def what(a: "TensorComparison") -> str:
    """The layer that makes a tensor, and its type."""
    made_by = f"{a.kind} {a.layer}" if a.layer not in ("", a.name) else a.kind
    return ", ".join(part for part in (made_by, a.dtype) if part)


def score(a: "TensorComparison") -> str:
    """A tag with the number that a layer is judged by."""
    value = a.snr if a.local_snr is None else a.local_snr
    text = f"{a.max_lsb:.3g} LSB" if value is None else f"{value:.1f} dB"
    return f'<span class="tag score {tone(value)}">{text}</span>'


def tone(snr: float | None) -> str:
    """The class of a signal-to-noise ratio in dB: "good", "fair" or "bad"."""
    if snr is None:
        return ""
    return "good" if snr >= GOOD else "fair" if snr >= FAIR else "bad"


def share(snr: float) -> str:
    """How much of its bar a ratio in dB fills, in percent."""
    return f"{100 * min(max(snr / FULL, 0.0), 0.99):.1f}"


def count(n: int, word: str) -> str:
    """A number of things, in words."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def percent(share: float) -> str:
    """A share in percent; one that is nearly none or all is not rounded to that."""
    if 0 < share < 1e-4:
        return "&lt; 0.01 %"
    if 0 < 1 - share < 1e-4:
        return "&gt; 99.99 %"
    return f"{100 * share:.4g} %"


def size_text(size: int) -> str:
    """A number of bytes in KiB or MiB."""
    return f"{size / 1024:.1f} KiB" if size < 1024**2 else f"{size / 1024**2:.2f} MiB"
