"""The decisions for each layer and each range of a model, as plain data."""

from dataclasses import dataclass, field

from intact.plan.factors import Product
from intact.plan.scheme import Rule, TensorSpec

BY_CHOICE = ("by rule", "left out")
"""Reasons for a layer to stay in float by choice: the scheme, or `filters` and annotations."""


@dataclass
class RangePlan:
    """One range, and the tensors that share it.

    Args:
        name: Named after the first layer whose output has it.
        spec: How its tensors are quantized.
        fixed: `(scale, zero_point)` if prescribed.
        private: Whether a clamp relies on it, so that other tensors cannot widen it.
        sites: Names of the tensors that are quantized to it.
        loop: The loop whose steps have it, if any; it is not merged with others, because the
            layers of a step are in a model of their own.
        open: Whether it is that of the next range which it is merged with, whatever that is.
    """

    name: str
    spec: TensorSpec
    fixed: tuple[float, float] | None = None
    private: bool = False
    sites: list[str] = field(default_factory=list)
    loop: str = ""
    open: bool = False


@dataclass
class Site:
    """One quantized tensor: its range, slot, rounding, clamp, and products if it is a factor."""

    range: RangePlan
    slot: int
    kernel_rounding: str
    lower: float | None = None
    upper: float | None = None
    products: list[Product] = field(default_factory=list)


@dataclass
class Step:
    """How one node of the canonical graph is quantized.

    Args:
        name: The layer's name.
        op: The op's name.
        integer: Whether it computes on integers.
        whole: The type of the whole numbers that it computes, which are never quantized; empty
            where there are real values.
        why_float: Why it stays in float, if it does.
        weights: How its weights are quantized, if they are.
        activations: How its output is quantized, if it is.
        folds: Whether it is a batch norm that folds into the op before it.
        fused: Whether it is an activation that fuses into the op before it.
        takes_in: The batch norm that becomes part of its weights before these are rounded.
        keeps_norm: Whether that batch norm keeps training; otherwise it is merged for good.
        site: The quantization of its output, if that is quantized right there.
        requantize: Per index of input, the quantization to another range.
        quantized: Where a loop begins or ends, which of its outputs are quantized.
    """

    name: str
    op: str
    integer: bool
    whole: str = ""
    why_float: str = ""
    weights: TensorSpec | None = None
    activations: TensorSpec | None = None
    folds: bool = False
    fused: bool = False
    takes_in: str = ""
    keeps_norm: bool = False
    site: Site | None = None
    requantize: dict[int, Site] = field(default_factory=dict)
    quantized: list[bool] = field(default_factory=list)

    @property
    def wide(self) -> bool:
        """Whether its kernel takes 16-bit activations."""
        return self.activations is not None and self.activations.activation_dtype == "int16"

    @property
    def output_range(self) -> str:
        """The name of the range that its output is rounded to; "-" where it has none."""
        if self.site is None:
            return "-"
        shared = len(self.site.range.sites) > 1
        return f"{self.site.range.name}{' (shared)' if shared else ''}"

    @property
    def type(self) -> str:
        """The types that it computes with: "int8", "w4 a8", "w8", "float16", ..."""
        weights, activations = self.weights, self.activations
        if self.whole:
            return self.whole
        if self.integer and activations:
            widths = {activations.bits, (weights or activations).bits}
            if widths in ({8}, {16}) or weights is None:
                return activations.activation_dtype if max(widths) >= 8 else f"a{max(widths)}"
            return f"{weights.width} a{activations.bits}"
        if weights is None:
            return f"float ({self.why_float})" if self.why_float else "float"
        if weights.kind == "float":
            return weights.dtype
        return f"{weights.width} dynamic" if activations else weights.width


@dataclass
class Plan:
    """The steps of all nodes, in the graph's order, and the sites of float tensors.

    Args:
        scheme: Name of the scheme.
        steps: How each node is quantized.
        ranges: The ranges.
        entries: The quantization of float tensors that integer nodes read, or of inputs that are
            also outputs.
        unused: The rules that match no layer.
    """

    scheme: str
    steps: list[Step]
    ranges: list[RangePlan]
    entries: dict[int, Site]
    exits: dict[int, Site] = field(default_factory=dict)
    unused: list[Rule] = field(default_factory=list)

    @property
    def float_steps(self) -> list[Step]:
        """The steps that stay in float."""
        return [step for step in self.steps if not (step.integer or step.whole)]


InputStats = dict[str, tuple[float, float]]
"""Per name of an input, the mean and the standard deviation of its 8-bit values."""


States = dict[str, str]
"""Per name of an input that is a state, the name of the output that is fed back to it."""
