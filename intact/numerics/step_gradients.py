"""The gradients of a program of steps.

All instructions but products with weights are elementwise, and their derivatives need only values
that are known after the last step. So they are computed for all steps at once, and multiplied along
each chain of instructions with one reader each. What remains for the loop backwards is one
multiplication for each way from a value to one that several instructions read, and the products
with the transposed kernels. The gradients of kernels are one product for all steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from intact.numerics.step_kernels import kernels
from intact.numerics.step_program import (
    Instruction,
    Joined,
    Numbers,
    Part,
    Products,
    Slope,
    StepProgram,
)
from intact.numerics.tensors import Tensor


class Way(NamedTuple):
    """How the gradient of one value reaches another one.

    Args:
        start: The place whose gradient is known.
        end: The place whose gradient it adds to.
        slope: The index of the derivative among those of all ways; None for 1.
        instruction: The last one on the way.
        part: Which values of the gradient that is known.
    """

    start: int
    end: int
    slope: int | None
    instruction: Instruction
    part: slice | None = None


class StepGradients:
    """The gradients of a program.

    Args:
        program: The program.
    """

    def __init__(self, program: StepProgram) -> None:
        self.program = program
        self.products = [x for x in program.instructions if isinstance(x, Products)]
        self.chained = self._chained()
        self.ways: list[Way] = []
        # Per place whose gradient is a multiple of another one's, the place of that.
        roots: dict[int, int] = {}
        count = 0
        for instruction in program.instructions[::-1]:
            start = roots.get(instruction.target, instruction.target)
            if isinstance(instruction, Joined):
                self._add_joined(instruction)
                continue
            for end in self._ends(instruction):
                if end in self.chained:
                    roots[end] = start
                    continue
                same = start == instruction.target and _is_unit(instruction)
                self.ways.append(Way(start, end, None if same else count, instruction))
                count += not same

    def _ends(self, instruction: Instruction) -> Sequence[int]:
        """The operands that have a gradient, which a condition has not."""
        return instruction.sources[:2]

    def _chained(self) -> set[int]:
        """The places of results that one elementwise instruction reads, and nothing else."""
        program = self.program
        readers: dict[int, list[Instruction]] = {}
        for instruction in program.instructions:
            for place in instruction.sources:
                readers.setdefault(place, []).append(instruction)
        results = {x.target for x in program.instructions} - {*program.outputs, *program.finals}
        return {
            place
            for place in results
            if len(readers.get(place, [])) == 1
            and not isinstance(readers[place][0], Products | Part | Joined)
        }

    def _add_joined(self, instruction: Instruction) -> None:
        """Add the ways to values that stand side by side."""
        start = 0
        for place in instruction.sources:
            part = slice(start, start + self.program.sizes[place])
            self.ways.append(Way(instruction.target, place, None, instruction, part))
            start = part.stop

    def slopes(
        self, numbers: Sequence[Numbers], values: Sequence[Any], raws: Sequence[Tensor]
    ) -> list[Any]:
        """The derivatives of the ways that have one, of all steps.

        Args:
            numbers: The numbers of each instruction.
            values: The values of all steps.
            raws: The raw values of all steps, of each instruction that rounds.
        """
        results: list[Any] = []
        chains: dict[int, Slope] = {}
        rest = list(raws)
        for index in range(len(self.program.instructions) - 1, -1, -1):
            instruction, own = self.program.instructions[index], numbers[index]
            raw = None if own.limits is None else rest.pop()
            chain = chains.get(instruction.target)
            if isinstance(instruction, Joined) or (chain is None and _is_unit(instruction)):
                continue
            slope = chain or Slope()
            if own.limits is not None:
                slope = slope._replace(values=kernels.passing(slope.values, raw, own.limits))
                slope = slope.by(own.limits.factor)
            x = [values[place] for place in instruction.sources]
            slopes = instruction.slopes(slope, raw, x, own)  # type: ignore[arg-type]
            for end, slope in zip(self._ends(instruction), slopes, strict=True):
                if end in self.chained:
                    chains[end] = slope
                else:
                    results.append(slope.product())
        return results

    def operands(self, values: Sequence[Any]) -> list[Any]:
        """Those of the products."""
        return [values[x.sources[0]] for x in self.products]

    def transposed(self, numbers: Sequence[Numbers]) -> list[Tensor]:
        """The transposed kernels of the products."""
        return [kernels.transposed(own.trained[0]) for own in numbers if own.trained]

    def backward(
        self,
        transposed: Sequence[Tensor],
        slopes: Sequence[Any],
        of_outputs: Sequence[Any],
        of_finals: Sequence[Any],
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """The gradients of a step.

        Args:
            transposed: The transposed kernels.
            slopes: The derivatives of the step.
            of_outputs: The gradients of what is collected.
            of_finals: The gradients of the new states.

        Returns:
            `(sequences, states, products)`: the gradients of the parts of the sequences, of the
            states before the step, and of the results of each `Products`.
        """
        program = self.program
        known = Gradients(program.sizes, of_finals[0])
        ends = zip((*program.outputs, *program.finals), (*of_outputs, *of_finals), strict=True)
        for place, g in ends:
            known.add(place, g)
        of_products: list[Any] = []
        for way in self.ways:
            g = known.of(way.start)
            if way.part is not None:
                g = g[..., way.part]
            if way.slope is not None:
                g = g * slopes[way.slope]
            if isinstance(way.instruction, Part):
                known.add_part(way.end, way.instruction.start, way.instruction.stop, g)
                continue
            if isinstance(way.instruction, Products):
                of_products.append(g)
                g = kernels.matmul(g, transposed[-len(of_products)])
            known.add(way.end, g)
        of_sequences = [known.of(place) for place in program.sequences]
        of_states = [known.of(place) for place in program.states]
        return of_sequences, of_states, of_products[::-1]

    def of_trained(
        self,
        numbers: Sequence[Numbers],
        operands: Sequence[Tensor],
        of_products: Sequence[Tensor],
        needed: Sequence[bool] | None = None,
    ) -> list[tuple[Any, ...]]:
        """The gradients of the trained numbers of each instruction.

        Args:
            numbers: The numbers of each instruction.
            operands: What `operands` returned.
            of_products: The gradients of the results of each `Products`, of all steps.
            needed: Which of them are needed, flat; None for all.
        """
        rest = iter([True] * 3 * len(self.products) if needed is None else needed)
        pairs = zip(operands, of_products, strict=True)
        results: list[tuple[Any, ...]] = []
        for own in numbers:
            wanted = [next(rest) for _ in own.trained]
            results.append(_of_products(*next(pairs), own, wanted) if wanted else ())
        return results


def _is_unit(instruction: Instruction) -> bool:
    """Whether an instruction's derivative is 1."""
    return isinstance(instruction, Part | Joined | Products)


class Gradients:
    """The gradients of a step's values so far.

    Args:
        sizes: The size of the value in each place.
        like: A tensor with the step's samples.
    """

    def __init__(self, sizes: Sequence[int], like: Tensor) -> None:
        self.sizes, self.like = sizes, like
        self.whole: list[Any] = [None] * len(sizes)
        self.parts: dict[int, list[tuple[int, int, Tensor]]] = {}

    def add(self, place: int, g: Tensor) -> None:
        """Add to the gradient of a value.

        Args:
            place: The value's place.
            g: The gradient.
        """
        before = self.whole[place]
        self.whole[place] = g if before is None else before + g

    def add_part(self, place: int, start: int, stop: int, g: Tensor) -> None:
        """Add to the gradient of some of the values in a place.

        Args:
            place: The place.
            start: The first value.
            stop: The end of the values.
            g: Their gradient.
        """
        self.parts.setdefault(place, []).append((start, stop, g))

    def of(self, place: int) -> Tensor:
        """The gradient of a value.

        Args:
            place: The value's place.
        """
        parts = sorted(self.parts.pop(place), key=_ends) if place in self.parts else []
        while parts:
            row, parts = self._row(parts, self.sizes[place])
            self.add(place, row)
        if self.whole[place] is None:
            self.whole[place] = kernels.zeros(self.like, self.sizes[place])
        return self.whole[place]

    def _row(self, parts: list[tuple[int, int, Tensor]], size: int) -> tuple[Tensor, list[Any]]:
        """One value of parts that do not overlap, with zeros between them; and other parts."""
        row, rest, end = [], [], 0
        for start, stop, g in parts:
            if start < end:
                rest.append((start, stop, g))
                continue
            if start > end:
                row.append(kernels.zeros(self.like, start - end))
            row.append(g)
            end = stop
        if end < size:
            row.append(kernels.zeros(self.like, size - end))
        return kernels.side_by_side(row), rest


def _ends(part: tuple[int, int, Tensor]) -> tuple[int, int]:
    return part[:2]


def _of_products(x: Tensor, g: Tensor, own: Numbers, needed: Sequence[bool]) -> tuple[Any, ...]:
    """The gradients of kernel, factor and offset.

    Args:
        x: The operands, of all steps.
        g: The gradients of the products, of all steps.
        own: The instruction's numbers.
        needed: Which of the gradients are.
    """
    kernel, factor, offset = own.trained
    x, g = kernels.rows(x), kernels.rows(g)
    of_kernel = of_factor = of_offset = None
    if needed[0]:
        of_kernel = kernels.matmul(kernels.transposed(x), g)
    # The products' gradient is that of the shifted ones times the factor.
    if needed[1]:
        of_factor = kernels.sum_to(g * kernels.matmul(x, kernel), factor) / factor
    if needed[2]:
        of_offset = kernels.sum_to(g, offset) / factor
    return of_kernel, of_factor, of_offset
