"""One step of a quantized recurrent layer as a list of instructions.

A step is some thirty small operations. What a backend does around each to record gradients takes
longer than the operation itself. So a loop that trains runs a program, whose gradients are
`intact.numerics.step_gradients`.

Values are whole numbers of shape `(batch, size)`, each in a place of a list. An instruction that
rounds first gives *raw* values, in the unit of its sum or product. Elementwise instructions take
all steps at once, too: tensors of shape `(steps, batch, size)`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from intact.numerics.step_kernels import kernels
from intact.numerics.tensors import Tensor


class Limits(NamedTuple):
    """How raw values are rounded, by scalars: `clip(round(raw * factor), low, high)`.

    Gradients pass where `raw * factor` is between `first` and `last`.
    """

    factor: Any
    low: Any
    high: Any
    first: Any
    last: Any


class Numbers(NamedTuple):
    """What the steps of a call have in common, of one instruction.

    Args:
        trained: Tensors with a gradient.
        fixed: Scalars without one.
        limits: How the raw values are rounded; None of an instruction that does not round.
    """

    trained: tuple[Any, ...] = ()
    fixed: tuple[Any, ...] = ()
    limits: Limits | None = None


class Slope(NamedTuple):
    """A derivative as a product: of values, of which None is 1, and a scalar."""

    values: Any = None
    factor: Any = 1.0

    def times(self, values: Any) -> "Slope":
        """Its product with values."""
        return self._replace(values=values if self.values is None else self.values * values)

    def by(self, factor: Any) -> "Slope":
        """Its product with a scalar."""
        return self._replace(factor=factor * self.factor)

    def product(self) -> Any:
        """The product."""
        return self.factor if self.values is None else self.values * self.factor


class Instruction:
    """One operation of a step.

    Args:
        target: The place of its result.
        sources: The places of its operands.
    """

    rounds: ClassVar[bool] = True

    def __init__(self, target: int, sources: Sequence[int]) -> None:
        self.target = target
        self.sources = tuple(sources)

    def unit(self, scales: Sequence[Any], sign: float) -> tuple[Any, tuple[Any, ...]]:
        """The real value of one step of the raw result, and the instruction's fixed numbers.

        Args:
            scales: The scales of the operands.
            sign: That of the second operand of a sum.
        """
        raise NotImplementedError

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        """The result before it is rounded.

        Args:
            x: The operands.
            own: The instruction's numbers.
            out: Where torch can put it.
        """
        raise NotImplementedError

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        """Derivatives by each operand.

        Args:
            slope: The derivative by the raw result.
            raw: The result before it is rounded.
            x: The operands.
            own: The instruction's numbers.
        """
        raise NotImplementedError


class Products(Instruction):
    """Products with a kernel, `x @ kernel`.

    Its trained numbers are the kernel, and the factor and the offset of each channel by which
    `Shifted` goes on.
    """

    rounds = False

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        return kernels.matmul(x[0], own.trained[0])

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        # By the products, not by the operand.
        return [slope]


class Shifted(Instruction):
    """Products in the unit of real values, `x * factor + offset`."""

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        return kernels.multiply_add(x[0], own.fixed[0], own.fixed[1], out)

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        return [slope.times(own.fixed[0])]


class Sum(Instruction):
    """`a + ratio * b`."""

    def unit(self, scales: Sequence[Any], sign: float) -> tuple[Any, tuple[Any, ...]]:
        a, b = scales
        return a, (b / a * sign,)

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        return kernels.multiply_add(x[1], own.fixed[0], x[0], out)

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        return [slope, slope.by(own.fixed[0])]


class Product(Instruction):
    """`a * b`."""

    def unit(self, scales: Sequence[Any], sign: float) -> tuple[Any, tuple[Any, ...]]:
        a, b = scales
        return a * b, ()

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        return kernels.multiply(x[0], x[1], out)

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        return [slope.times(x[1]), slope.times(x[0])]


class Same(Instruction):
    """The operand itself, which is rounded to another scale."""

    def unit(self, scales: Sequence[Any], sign: float) -> tuple[Any, tuple[Any, ...]]:
        return scales[0], ()

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        return kernels.copied(x[0], out)

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        return [slope]


class Sigmoid(Instruction):
    """The logistic function of the real value."""

    def unit(self, scales: Sequence[Any], sign: float) -> tuple[Any, tuple[Any, ...]]:
        return 1.0, (scales[0],)

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        return kernels.sigmoid(x[0] * own.fixed[0], out)

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        values = kernels.sigmoid_slope(slope.values, raw)
        return [slope._replace(values=values).by(own.fixed[0])]


class Tanh(Sigmoid):
    """The hyperbolic tangent of the real value."""

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        return kernels.tanh(x[0] * own.fixed[0], out)

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        values = kernels.tanh_slope(slope.values, raw)
        return [slope._replace(values=values).by(own.fixed[0])]


class Choice(Instruction):
    """`a * ratio` where the condition is 1, `b` where it is 0; the condition has no gradient."""

    rounds = False

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        a, b, condition = x
        return kernels.where(condition > 0.5, a * own.fixed[0], b)

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        return [slope.times(x[2]).by(own.fixed[0]), slope.times(1.0 - x[2])]


class Part(Instruction):
    """Some of the values, side by side.

    Args:
        target: The place of its result.
        sources: The place of its operand.
        start: The first value.
        stop: The end of the values.
    """

    rounds = False

    def __init__(self, target: int, sources: Sequence[int], start: int, stop: int) -> None:
        super().__init__(target, sources)
        self.start, self.stop = start, stop

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        return x[0][..., self.start : self.stop]

    def slopes(self, slope: Slope, raw: Tensor, x: Sequence[Tensor], own: Numbers) -> list[Slope]:
        return [slope]


class Joined(Instruction):
    """Values of several places, side by side."""

    rounds = False

    def raw(self, x: Sequence[Tensor], own: Numbers, out: Any = None) -> Tensor:
        return kernels.side_by_side(list(x))


class StepProgram:
    """The instructions of a step.

    Args:
        instructions: The instructions, in order.
        sizes: The size of the value in each place.
        sequences: The places of the parts of the sequences.
        states: The places of the states before the step.
        outputs: The places of what is collected.
        finals: The places of the new states.
    """

    def __init__(
        self,
        instructions: Sequence[Instruction],
        sizes: Sequence[int],
        sequences: Sequence[int],
        states: Sequence[int],
        outputs: Sequence[int],
        finals: Sequence[int],
    ) -> None:
        self.instructions = tuple(instructions)
        self.sizes = tuple(sizes)
        self.sequences, self.states = tuple(sequences), tuple(states)
        self.outputs, self.finals = tuple(outputs), tuple(finals)
        self.rounding = [x for x in self.instructions if x.rounds]
        self.needed = self._needed()

    def _needed(self) -> set[int]:
        """The places of the values that gradients need, and of what these are parts of."""
        places: set[int] = set()
        for instruction in self.instructions[::-1]:
            whole = not instruction.rounds and instruction.target in places
            if whole or isinstance(instruction, Products | Product):
                places |= set(instruction.sources)
        return places

    def begin(self, sequences: Sequence[Tensor], states: Sequence[Tensor]) -> list[Any]:
        """The values of a step before its first instruction, or those of all steps.

        Args:
            sequences: The step's parts of the sequences.
            states: The states before the step.
        """
        values: list[Any] = [None] * len(self.sizes)
        for places, tensors in ((self.sequences, sequences), (self.states, states)):
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
        return values

    def forward(
        self, values: list[Any], numbers: Sequence[Numbers], outs: Sequence[Any] | None = None
    ) -> list[Tensor]:
        """Fill in the values of a step.

        Args:
            values: The values, of which those of `begin` are there.
            numbers: The numbers of each instruction.
            outs: Where torch can put the raw values, for each instruction.

        Returns:
            The raw values of the instructions that round.
        """
        raws = []
        for index, instruction in enumerate(self.instructions):
            own = numbers[index]
            x = [values[place] for place in instruction.sources]
            value = instruction.raw(x, own, None if outs is None else outs[index])
            if own.limits is not None:
                raws.append(value)
                value = kernels.rounded(value, own.limits)
            values[instruction.target] = value
        return raws

    def replay(self, values: list[Any], raws: Sequence[Tensor], numbers: Sequence[Numbers]) -> None:
        """Fill in the values of all steps that gradients need, whose raw values are known.

        Args:
            values: The values, of which those of `begin` are there.
            raws: What `forward` returned, of all steps.
            numbers: The numbers of each instruction.
        """
        rest = iter(raws)
        for instruction, own in zip(self.instructions, numbers, strict=True):
            raw = None if own.limits is None else next(rest)
            if instruction.target not in self.needed:
                continue
            if own.limits is not None:
                value = kernels.rounded(raw, own.limits)
            else:
                value = instruction.raw([values[place] for place in instruction.sources], own)
            values[instruction.target] = value
