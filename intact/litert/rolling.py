"""Finds the equal steps of a recurrent layer in a file, which become one WHILE loop.

Lowering writes every step. This module finds the ops that repeat from their inputs and outputs
alone; it knows nothing of layers. One copy of them becomes the body of a loop, with the same
kernels and so the same values. Steps that do not repeat exactly stay.

The ops of a step begin at its anchors, ops with weights that every step has (the product with the
state before). A step is everything that depends on its anchors and not on the next step's.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from intact.litert.builder import Builder
from intact.litert.loops import Joined, Loop, Place, Step, has_room, write_loop
from intact.litert.writing import Operator, Subgraph, Tensor

LEAST = 8
"""The fewest equal steps that become a loop, which costs up to a microsecond per step."""

BOUNDS = ("beginMask", "endMask")
"""The options of a STRIDED_SLICE that repeat what its constants say."""


def roll(builder: Builder, ends: Sequence[Tensor], graphs: list[Subgraph]) -> None:
    """Make loops of the ops of a file that repeat.

    Args:
        builder: The file's builder; its ops are changed.
        ends: The outputs of the file.
        graphs: The graphs of loops that the file has behind the main one; those of new loops are
            added.
    """
    while True:
        finder = _Finder(builder.operators, builder.buffers, ends)
        loop = next(filter(None, map(finder.loop, finder.anchors())), None)
        if loop is None:
            return
        graphs += write_loop(builder, loop, len(graphs) + 1)


class _Finder:
    """Finds steps that are equal among the ops of a file."""

    def __init__(
        self, operators: list[Operator], buffers: list[Any], ends: Sequence[Tensor]
    ) -> None:
        self.operators = operators
        self.buffers = buffers
        self.ends = {id(tensor) for tensor in ends}
        self.number = {id(op): n for n, op in enumerate(operators)}
        self.maker = {id(tensor): op for op in operators for tensor in op.outputs}
        self.readers: dict[int, list[Operator]] = {}
        for op in operators:
            for tensor in {id(t): t for t in op.inputs if t is not None}.values():
                self.readers.setdefault(id(tensor), []).append(op)
        # For each op, the ops that depend on it, as a bit mask.
        self.after: dict[int, int] = {}
        for n in reversed(range(len(operators))):
            bits = 1 << n
            for reader in self.read_by(operators[n]):
                bits |= self.after[id(reader)]
            self.after[id(operators[n])] = bits

    def read_by(self, op: Operator) -> list[Operator]:
        """The ops that read what an op computes."""
        return [reader for t in op.outputs for reader in self.readers.get(id(t), [])]

    def anchors(self) -> list[list[list[Operator]]]:
        """Candidates for the anchors of steps: ops with weights, for each number of steps."""
        groups: dict[Any, list[Operator]] = {}
        for op in self.operators:
            weights = [t for t in op.inputs[1:] if t is not None and t.buffer and len(t.shape) > 1]
            if weights:
                groups.setdefault((op.name, *map(id, weights)), []).append(op)
        sizes = sorted({len(group) for group in groups.values() if len(group) >= LEAST})
        choices = []
        for size in sizes:
            rows = [group for group in groups.values() if len(group) == size]
            for row in rows:
                near = [g[len(g) - size :] for g in groups.values() if size <= len(g) <= size + 1]
                near = [g for g in near if self._aligned(row, g)]
                choices.append([list(step) for step in zip(row, *near, strict=True)])
        return choices

    def _aligned(self, row: list[Operator], other: list[Operator]) -> bool:
        """Whether ops are in the same order in every step."""
        pairs = zip(row, other[1:], strict=False)
        reach = all(self.after[id(op)] >> self.number[id(next_)] & 1 for op, next_ in pairs)
        back = zip(other, row[1:], strict=False)
        return reach and all(self.after[id(a)] >> self.number[id(b)] & 1 for a, b in back)

    def loop(self, anchors: list[list[Operator]]) -> Loop | None:
        """The loop of the steps that begin at the given ops, if they are equal."""
        reach = [0] * (len(anchors) + 1)
        for n, step in enumerate(anchors):
            for op in step:
                reach[n] |= self.after[id(op)]
        if any(not reach[n] >> self.number[id(a[0])] & 1 for n, a in enumerate(anchors[1:])):
            return None
        steps = [
            self._ordered([op for op in self.operators if mask >> self.number[id(op)] & 1])
            for mask in (now & ~later for now, later in itertools.pairwise(reach[:-1]))
        ]
        if [_kind(op) for op in steps[-1].ops] != [_kind(op) for op in steps[-2].ops]:
            return None
        last = self._like(steps[-1], steps[-2], anchors[-1])
        # The last step may lack what only a step after it would read, and the first may begin
        # with a constant.
        steps += [] if last is None else [last]
        kinds = [[_kind(op) for op in step.ops] for step in steps]
        if kinds[0] != kinds[1]:
            steps, kinds = steps[1:], kinds[1:]
        if len(steps) < LEAST or any(other != kinds[0] for other in kinds):
            return None
        loop = _Matcher(self, steps).loop()
        if loop is None or not self._leaves(loop):
            return None
        return loop

    def _ordered(self, ops: list[Operator]) -> Step:
        """The ops of a step in an order that depends only on their kinds and inputs."""
        place: dict[int, Place] = {}
        inside = {id(t) for op in ops for t in op.outputs}
        order: list[Operator] = []
        waiting = list(ops)
        while waiting:
            ready = [
                op for op in waiting if all(id(t) in place for t in op.inputs if id(t) in inside)
            ]
            keys = {
                id(op): repr((_kind(op), [place.get(id(t)) for t in op.inputs])) for op in ready
            }
            for op in sorted(ready, key=lambda op: keys[id(op)]):
                place.update((id(t), (len(order), n)) for n, t in enumerate(op.outputs))
                order.append(op)
            waiting = [op for op in waiting if id(op) not in keys]
        return Step(order)

    def _like(self, model: Step, before: Step, anchors: list[Operator]) -> Step | None:
        """The ops behind the last anchors that correspond to those of a full step."""
        places, carried = model.places(), before.places()
        kinds = [_kind(op) for op in anchors]
        matches: list[Operator] = []
        for op in model.ops:
            inner = [places[id(t)] for t in op.inputs if id(t) in places]
            if not inner and _kind(op) in kinds:
                matches.append(anchors[kinds.index(_kind(op))])
                continue
            candidates = (
                self.operators
                if not inner
                else self.readers.get(id(matches[inner[0][0]].outputs[inner[0][1]]), [])
            )
            same = (other for other in candidates if _kind(other) == _kind(op))
            match = next(
                (o for o in same if self._alike(o, op, places, carried, matches, model)), None
            )
            if match is None:
                return None
            matches.append(match)
        return Step(matches)

    def _alike(
        self,
        other: Operator,
        op: Operator,
        places: dict[int, Place],
        carried: dict[int, Place],
        matched: list[Operator],
        model: Step,
    ) -> bool:
        """Whether an op reads in the last step what another one does in the step before."""
        if any(other is taken for taken in matched):
            return False
        for mine, its in zip(other.inputs, op.inputs, strict=True):
            if id(its) in places:
                place, number = places[id(its)]
                if mine is not matched[place].outputs[number]:
                    return False
            elif id(its) in carried:
                place, number = carried[id(its)]
                if mine is not model.ops[place].outputs[number]:
                    return False
        return True

    def _leaves(self, loop: Loop) -> bool:
        """Whether a loop provides all that later ops read of its steps; notes the concatenation."""
        inside = {id(op) for step in loop.steps for op in step.all}
        outside: dict[Place, list[set[int]]] = {}
        for n, step in enumerate(loop.steps):
            for tensor, place in step.places().items():
                others = {id(r) for r in self.readers.get(tensor, []) if id(r) not in inside}
                others |= {0} if tensor in self.ends else set()
                if others:
                    outside.setdefault(place, [set() for _ in loop.steps])[n] = others
        for place, readers in outside.items():
            if not any(readers[:-1]):
                continue
            common = set.intersection(*readers) - {0}
            if loop.joined or len(common) != 1 or any(r != common for r in readers[:-1]):
                return False
            loop.joined = self._joined(loop, place, common.pop())
            if loop.joined is None:
                return False
            readers[-1].discard(id(loop.joined.op))
        return all(place in loop.carried for place, readers in outside.items() if readers[-1])

    def _joined(self, loop: Loop, place: Place, reader: int) -> Joined | None:
        """The concatenation of an output of all steps in order, if there is one."""
        op = next(op for op in self.operators if id(op) == reader)
        outputs = [step.all[place[0]].outputs[place[1]] for step in loop.steps]
        ids, own = [id(t) for t in op.inputs], [id(t) for t in outputs]
        turned = ids.index(own[0]) > ids.index(own[-1])
        first = min(ids.index(own[0]), ids.index(own[-1]))
        there = ids[first : first + len(own)] == own[:: -1 if turned else 1]
        whole = len(op.outputs[0].shape) == 3 and outputs[0].shape[1] == 1
        if op.name != "CONCATENATION" or op.options.get("axis") != 1 or not (there and whole):
            return None
        wide = next((t for t in loop.fixed if has_room(t, op.outputs[0], len(outputs))), None)
        return None if wide is None else Joined(op, place, first, turned)


def _kind(op: Operator) -> tuple[Any, ...]:
    """An op's description, without its tensors."""
    tensors = [_described(t) for t in (*op.inputs, *op.outputs)]
    return op.name, op.version, repr(sorted(op.options.items())), len(op.inside), *tensors


def _described(tensor: Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return ()
    if tensor.buffer:
        return ("constant", tensor.index)
    scale = tensor.scales.tobytes(), np.asarray(tensor.zero_point).tobytes()
    return tensor.dtype, tensor.shape, *scale, tensor.variable


class _Matcher:
    """Compares the inputs of steps with those of the second one."""

    def __init__(self, finder: "_Finder", steps: list[Step]) -> None:
        self.finder = finder
        self.steps = steps
        self.model = steps[1]
        self.carried: dict[Place, Tensor] = {}
        self.fixed: dict[int, Tensor] = {}

    def loop(self) -> Loop | None:
        """The loop of the steps; None if they differ in anything but the begin of slices."""
        taken = {id(op) for step in self.steps for op in step.ops}
        self.model.sources = self._sources(taken)
        others = [step for step in self.steps if step is not self.model]
        if not all(self._find_sources(step) for step in others):
            return None
        slices: dict[int, tuple[int, int, int]] = {}
        for place in range(len(self.model.sources)):
            slice_op = self._slice([step.sources[place] for step in self.steps])
            if slice_op:
                slices[place] = slice_op
        ways = {(first, stride) for _, first, stride in slices.values()} or {(0, 1)}
        if len(ways) > 1 or not all(self._same(n, slices) for n in range(len(self.steps))):
            return None
        axes = {place: axis for place, (axis, *_) in slices.items()}
        carried, initial = list(self.carried), list(self.carried.values())
        return Loop(self.steps, carried, initial, list(self.fixed.values()), axes, *ways.pop())

    def _sources(self, taken: set[int]) -> list[Operator]:
        """The ops that only the second step reads, without those that depend on its anchors."""
        inside = {id(op): op for op in self.model.ops}
        waiting = list(self.model.ops)
        sources: list[Operator] = []
        while waiting:
            for tensor in waiting.pop().inputs:
                op = self.finder.maker.get(id(tensor))
                if op is None or id(op) in taken or id(op) in inside:
                    continue
                ends = any(id(t) in self.finder.ends for t in op.outputs)
                if not ends and all(id(reader) in inside for reader in self.finder.read_by(op)):
                    inside[id(op)] = op
                    sources.append(op)
                    # An op that was visited too early may have all its readers now.
                    waiting = list(inside.values())
        return sorted(sources, key=lambda op: self.finder.number[id(op)])

    def _find_sources(self, step: Step) -> bool:
        """Find a step's sources: the ops at the places of the second step's sources."""
        pairs = dict(zip(map(id, self.model.ops), step.ops, strict=True))
        for source in reversed(self.model.sources):
            reader = next(r for r in self.finder.read_by(source) if id(r) in pairs)
            place = next(
                n for n, t in enumerate(reader.inputs) if any(t is own for own in source.outputs)
            )
            other = self.finder.maker.get(id(pairs[id(reader)].inputs[place]))
            if other is None or _outline(other) != _outline(source):
                return False
            pairs[id(source)] = other
        step.sources = [pairs[id(source)] for source in self.model.sources]
        return True

    def _slice(self, ops: list[Operator]) -> tuple[int, int, int] | None:
        """Axis, first begin and stride of slices that read one place after another."""
        if ops[0].name != "STRIDED_SLICE" or any(
            op.inputs[0] is not ops[0].inputs[0] for op in ops
        ):
            return None
        places = [place for op in ops if (place := _place_taken(op, self.finder.buffers))]
        axes, begins = {axis for axis, _ in places}, [begin for _, begin in places]
        strides = {after - before for before, after in itertools.pairwise(begins)}
        if len(places) < len(ops) or len(axes) > 1 or strides not in ({1}, {-1}):
            return None
        return axes.pop(), begins[0], strides.pop()

    def _same(self, n: int, slices: dict[int, Any]) -> bool:
        """Whether a step reads what the second step reads, or its own tensors in their place."""
        step, own = self.steps[n], self.steps[n].places()
        places, before = self.model.places(), self.steps[0].places()
        for number, (op, other) in enumerate(zip(self.model.all, step.all, strict=True)):
            if number not in slices and op.options != other.options:
                return False
            count = 1 if number in slices else len(op.inputs)
            for its, mine in zip(op.inputs[:count], other.inputs[:count], strict=True):
                if id(its) in places:
                    same = own.get(id(mine)) == places[id(its)]
                elif id(its) in before:
                    same = self._carries(n, before[id(its)], mine)
                else:
                    same = mine is its
                    if its is not None and not its.buffer:
                        self.fixed[id(its)] = its
                if not same:
                    return False
        return True

    def _carries(self, n: int, place: Place, tensor: Tensor) -> bool:
        """Whether a step reads an output of the step before; notes the first step's input."""
        if n == 0:
            return self.carried.setdefault(place, tensor) is tensor
        op = self.steps[n - 1].all[place[0]]
        return op.outputs[place[1]] is tensor


def _outline(op: Operator) -> tuple[Any, ...]:
    """An op's description, without its constants and tensors."""
    tensors = [_described(t) for t in (*op.inputs, *op.outputs) if t is None or not t.buffer]
    options = {key: value for key, value in op.options.items() if key not in BOUNDS}
    return op.name, repr(sorted(options.items())), *tensors


def _place_taken(op: Operator, buffers: list[Any]) -> tuple[int, int] | None:
    """The axis and index at which a STRIDED_SLICE takes one place; None for any other slice."""
    x = op.inputs[0]
    bounds = [np.asarray(buffers[t.buffer]).view("int32").tolist() for t in op.inputs[1:]]
    if any(value for key, value in op.options.items() if key not in BOUNDS) or set(bounds[2]) != {
        1
    }:
        return None
    cut = []
    for axis, size in enumerate(x.shape):
        begin = 0 if op.options.get("beginMask", 0) >> axis & 1 else bounds[0][axis]
        end = size if op.options.get("endMask", 0) >> axis & 1 else bounds[1][axis]
        if (begin, end) != (0, size):
            cut.append((axis, begin, end))
    if len(cut) != 1 or cut[0][2] != cut[0][1] + 1:
        return None
    return cut[0][0], cut[0][1]
