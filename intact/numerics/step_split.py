"""Programs whose values are split where only a part of them is read, for compilers.

XLA fuses elementwise instructions to loops that vectorize, unless one reads a part of another's
values. So a value of which a part is read becomes several values, up to the products with weights.
"""

import copy
import functools
import itertools
from collections.abc import Sequence

from intact.numerics.light_ops import ops
from intact.numerics.step_program import (
    Instruction,
    Joined,
    Numbers,
    Part,
    Products,
    Shifted,
    StepProgram,
)
from intact.numerics.tensors import Tensor


class SplitProgram:
    """A program with split values, and how to run it in the place of the whole one.

    Args:
        whole: The whole program.
    """

    def __init__(self, whole: StepProgram) -> None:
        self.whole = whole
        self.cuts = cuts_of(whole)
        self.sizes: list[int] = []
        # Per place of the whole program, the places of its parts in order, once there are any.
        self.places: dict[int, list[int]] = {}
        self.joined: dict[int, int] = {}
        self.instructions: list[Instruction] = []
        # Per instruction, the one of the whole program, and the values of it.
        self.origins: list[tuple[int, slice]] = []
        used = {place for x in whole.instructions for place in x.sources} | {*whole.outputs}
        self.parts: list[tuple[int, slice]] = []
        sequences = []
        for index, place in enumerate(whole.sequences):
            if place in used:
                sequences += self._new(place)
                self.parts += [(index, slice(*ends)) for ends in self._ends(place)]
        states = [self._state(place) for place in whole.states]
        for index, instruction in enumerate(whole.instructions):
            self._take(index, instruction)
        outputs = [self._whole(place) for place in whole.outputs]
        finals = [self._whole(place) for place in whole.finals]
        self.program = StepProgram(
            self.instructions, self.sizes, sequences, states, outputs, finals
        )

    def numbers(self, numbers: Sequence[Numbers]) -> list[Numbers]:
        """The numbers of each instruction.

        Args:
            numbers: Those of the whole program.
        """
        results = []
        for instruction, (index, part) in zip(self.instructions, self.origins, strict=True):
            own = Numbers() if index < 0 else numbers[index]
            if isinstance(instruction, Shifted):
                own = own._replace(fixed=tuple(x[part] if len(x.shape) else x for x in own.fixed))
            results.append(own)
        return results

    def sequences(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """The sequences of the program.

        Args:
            sequences: Those of the whole program.
        """
        return [sequences[index][..., part] for index, part in self.parts]

    def ends(self, ends: Sequence[Tensor]) -> list[Tensor]:
        """The smallest and the largest raw value of each instruction of the whole program.

        Args:
            ends: Those of the instructions of this one.
        """
        groups: dict[int, list[Tensor]] = {}
        pairs = zip(self.instructions, self.origins, strict=True)
        rounding = [index for x, (index, _) in pairs if x.rounds]
        for index, both in zip(rounding, ends, strict=True):
            groups.setdefault(index, []).append(both)
        rows = [ops.stack(groups[index]) for index in sorted(groups)]
        return [ops.stack([ops.min(x[:, 0]), ops.max(x[:, 1])]) for x in rows]

    def _ends(self, place: int) -> list[tuple[int, int]]:
        """The ends of the parts of a value."""
        cuts = sorted(self.cuts[place])
        return list(itertools.pairwise(cuts))

    def _new(self, place: int) -> list[int]:
        """New places for the parts of a value."""
        first = len(self.sizes)
        self.sizes += [stop - start for start, stop in self._ends(place)]
        self.places[place] = list(range(first, len(self.sizes)))
        return self.places[place]

    def _add(self, instruction: Instruction, index: int, part: slice = slice(None)) -> None:
        self.instructions.append(instruction)
        self.origins.append((index, part))

    def _state(self, place: int) -> int:
        """A place for a state, and its parts."""
        self.sizes.append(self.whole.sizes[place])
        whole = self.joined[place] = len(self.sizes) - 1
        if len(self._ends(place)) == 1:
            self.places[place] = [whole]
            return whole
        for part, ends in zip(self._new(place), self._ends(place), strict=True):
            self._add(Part(part, [whole], *ends), -1)
        return whole

    def _whole(self, place: int) -> int:
        """The place of a value that is not split."""
        parts = self.places[place]
        if len(parts) == 1:
            return parts[0]
        if place not in self.joined:
            self.sizes.append(self.whole.sizes[place])
            self.joined[place] = len(self.sizes) - 1
            self._add(Joined(self.joined[place], parts), -1)
        return self.joined[place]

    def _take(self, index: int, instruction: Instruction) -> None:
        """Write the instructions that an instruction becomes."""
        target = instruction.target
        if isinstance(instruction, Part):
            (source,) = instruction.sources
            inside = zip(self._ends(source), self.places[source], strict=True)
            bounds = range(instruction.start, instruction.stop)
            self.places[target] = [part for ends, part in inside if ends[0] in bounds]
        elif isinstance(instruction, Products):
            self.sizes.append(self.whole.sizes[target])
            self.places[target] = [len(self.sizes) - 1]
            sources = [self._whole(place) for place in instruction.sources]
            self._add(_copy(instruction, len(self.sizes) - 1, sources), index)
        elif isinstance(instruction, Shifted):
            (products,) = self.places[instruction.sources[0]]
            for part, ends in zip(self._new(target), self._ends(target), strict=True):
                source = products
                if len(self.places[target]) > 1:
                    self.sizes.append(ends[1] - ends[0])
                    source = len(self.sizes) - 1
                    self._add(Part(source, [products], *ends), -1)
                self._add(_copy(instruction, part, [source]), index, slice(*ends))
        else:
            columns = [self.places[place] for place in instruction.sources]
            for number, part in enumerate(self._new(target)):
                sources = [c[number] if len(c) > number else c[0] for c in columns]
                self._add(_copy(instruction, part, sources), index)


def _copy(instruction: Instruction, target: int, sources: Sequence[int]) -> Instruction:
    new = copy.copy(instruction)
    new.target, new.sources = target, tuple(sources)
    return new


def cuts_of(program: StepProgram) -> list[set[int]]:
    """Of each value, where it is cut: at 0, at its end, and at the ends of parts that are read.

    Args:
        program: The program.
    """
    cuts = [{0, size} for size in program.sizes]
    count = -1
    while count != (count := sum(map(len, cuts))):
        for instruction in program.instructions:
            _spread(instruction, cuts)
    return cuts


def _spread(instruction: Instruction, cuts: list[set[int]]) -> None:
    """Cut the operands of an instruction where its result is cut, and the other way round."""
    target = cuts[instruction.target]
    sources = [cuts[place] for place in instruction.sources]
    if isinstance(instruction, Part):
        start, stop = instruction.start, instruction.stop
        target |= {cut - start for cut in sources[0] if start <= cut <= stop}
        sources[0] |= {cut + start for cut in target}
    elif not isinstance(instruction, Products | Shifted):
        same = [x for x in sources if max(x) == max(target)]
        union: set[int] = target.union(*same)
        for x in (target, *same):
            x |= union


@functools.lru_cache(maxsize=256)
def split(program: StepProgram) -> SplitProgram:
    """A program with split values.

    Args:
        program: The program.
    """
    return SplitProgram(program)
