"""Writes equal steps of a file as one WHILE loop."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intact.litert.builder import Builder
from intact.litert.kernels import get_kernel
from intact.litert.writing import Operator, Subgraph, Tensor

Place = tuple[int, int]
"""An output of an op of a step: the op's place in the step, and the number of the output."""


@dataclass(eq=False)
class Joined:
    """A concatenation of an output of all steps.

    Args:
        op: The concatenation.
        place: Which output it joins.
        first: The place of the first of them among its inputs.
        turned: Whether the order is reversed, so that the first step's output comes last.
    """

    op: Operator
    place: Place
    first: int
    turned: bool


@dataclass(eq=False)
class Step:
    """The ops of one step, in an order that all steps have.

    Args:
        ops: The ops that depend on the step's anchors.
        sources: The ops that only this step reads, and that do not depend on its anchors, such
            as those that take its part of a sequence; in the order in which `ops` need them.
    """

    ops: list[Operator]
    sources: list[Operator] = field(default_factory=list)

    @property
    def all(self) -> list[Operator]:
        """All ops in an order of execution."""
        return [*self.sources, *self.ops]

    def places(self) -> dict[int, Place]:
        """By the id of a tensor that the step computes, its place."""
        return {
            id(tensor): (place, number)
            for place, op in enumerate(self.all)
            for number, tensor in enumerate(op.outputs)
        }


@dataclass(eq=False)
class Loop:
    """Equal steps, and how they are connected.

    Args:
        steps: The steps.
        carried: The places in the step before whose outputs a step reads.
        initial: For each of these, the tensor that the first step reads instead.
        fixed: Tensors that all steps read.
        slices: Places of ops that take a step's part of such a tensor, with its axis.
        first: Where these begin in the first step.
        stride: How much further they begin in each step after it: 1 or -1.
        joined: The concatenation of all steps' outputs, if there is one.
    """

    steps: list[Step]
    carried: list[Place]
    initial: list[Tensor]
    fixed: list[Tensor]
    slices: dict[int, int]
    first: int = 0
    stride: int = 1
    joined: Joined | None = None


def has_room(x: Tensor, joined: Tensor, steps: int) -> bool:
    """Whether a tensor has a part that is as large as the outputs of all steps.

    Args:
        x: The tensor.
        joined: What the outputs are joined to.
        steps: How many steps there are.
    """
    sizes = (joined.shape[0], steps, joined.shape[2])
    same = x.dtype == joined.dtype and len(x.shape) == 3 and x.shape[0] == sizes[0]
    return same and all((a or 0) >= (b or 0) for a, b in zip(x.shape[1:], sizes[1:], strict=True))


def write_loop(builder: Builder, loop: Loop, number: int) -> list[Subgraph]:
    """Replace steps by a loop.

    Args:
        builder: The file's builder.
        loop: The loop.
        number: The number of its first graph in the file.

    Returns:
        Its condition and its body.
    """
    writer = _Writer(builder, loop)
    inputs, outputs = writer.main()
    graphs = {"condSubgraphIndex": number, "bodySubgraphIndex": number + 1}
    gone = {id(op) for step in loop.steps for op in step.all}
    rest = [op for op in builder.operators if id(op) not in gone]
    builder.operators = [*rest, *writer.extra, _operator("WHILE", inputs, outputs, graphs)]
    writer.join(outputs)
    builder.operators = _in_order(builder.operators)
    name = f"loop_{number}"
    return [writer.condition(f"{name}_condition"), writer.body(f"{name}_body")]


def _in_order(operators: list[Operator]) -> list[Operator]:
    """Ops in an order of execution: each after the ops that it reads, otherwise unchanged."""
    maker = {id(tensor): op for op in operators for tensor in op.outputs}
    order: dict[int, Operator] = {}
    waiting = operators[::-1]
    while waiting:
        op = waiting.pop()
        before = [maker[id(t)] for t in op.inputs if id(t) in maker]
        missing = [other for other in before if id(other) not in order]
        if missing and id(op) not in order:
            waiting += [op, *missing[::-1]]
        else:
            order.setdefault(id(op), op)
    return list(order.values())


class _Writer:
    """Writes the graphs of a loop.

    Its variables are the number of the step, what steps carry, the outputs of all steps so far,
    and what all steps read.
    """

    def __init__(self, builder: Builder, loop: Loop) -> None:
        self.builder = builder
        self.loop = loop
        self.joined = loop.joined
        self.model = loop.steps[1]
        self.extra: list[Operator] = []

    def _output(self, step: Step, place: Place) -> Tensor:
        return step.all[place[0]].outputs[place[1]]

    def main(self) -> tuple[list[Tensor], list[Tensor]]:
        """The inputs and outputs of the WHILE."""
        loop, builder = self.loop, self.builder
        start = builder.constant(np.array([loop.first], "int32"))
        inputs = [start, *loop.initial]
        outputs = [builder.like(start, (1,), dtype="int32")]
        outputs += [self._output(loop.steps[-1], place) for place in loop.carried]
        if self.joined is not None:
            inputs.append(self._room())
            one = self._output(loop.steps[-1], self.joined.place)
            outputs.append(builder.like(one, inputs[-1].shape))
        inputs += loop.fixed
        outputs += [builder.like(tensor, tensor.shape) for tensor in loop.fixed]
        return inputs, outputs

    def _room(self) -> Tensor:
        """A tensor of the size of all steps' outputs; its values do not count."""
        assert self.joined is not None
        whole = self.joined.op.outputs[0]
        wide = next(t for t in self.loop.fixed if has_room(t, whole, len(self.loop.steps)))
        sizes = (whole.shape[0], len(self.loop.steps), whole.shape[2])
        room = self.builder.like(wide, sizes)
        ends = [0, *(size or 0 for size in sizes[1:])]
        self._slice(wide, room, [0, 0, 0], ends, self.builder.constant, self.extra)
        return room

    def _slice(
        self, x: Tensor, y: Tensor, begin: list[int], end: list[int], constant: Any, ops: list
    ) -> None:
        """Add a slice of all samples."""
        bounds = [constant(np.array(v, "int32")) for v in (begin, end, [1] * len(begin))]
        options = {"beginMask": 1, "endMask": 1}
        ops.append(_operator("STRIDED_SLICE", [x, *bounds], [y], options))

    def join(self, outputs: list[Tensor]) -> None:
        """Let the concatenation of all steps read the loop's."""
        if self.joined is not None:
            inputs, first = self.joined.op.inputs, self.joined.first
            inputs[first : first + len(self.loop.steps)] = [outputs[1 + len(self.loop.carried)]]
            if len(inputs) == 1:
                outputs[outputs.index(inputs[0])] = self.joined.op.outputs[0]
                self.builder.operators.remove(self.joined.op)

    def _variables(self, graph: "_Graph") -> list[Tensor]:
        """The variables as inputs of a graph."""
        before = self.loop.steps[0]
        variables = [graph.tensor(Tensor((1,), "int32", "step"))]
        variables += [graph.copy(self._output(before, place)) for place in self.loop.carried]
        if self.joined is not None:
            one = self._output(self.model, self.joined.place)
            shape = (one.shape[0], len(self.loop.steps), *one.shape[2:])
            variables.append(graph.tensor(replace(one, shape=shape, name=f"{one.name}/steps")))
        return variables + [graph.copy(tensor) for tensor in self.loop.fixed]

    def condition(self, name: str) -> Subgraph:
        """Whether there is another step."""
        graph = _Graph(name, self.builder)
        inputs = self._variables(graph)
        end = self.loop.first + self.loop.stride * len(self.loop.steps)
        limit = graph.constant(np.array([end], "int32"))
        more = graph.tensor(Tensor((1,), "bool", "more"))
        kernel = "LESS" if self.loop.stride > 0 else "GREATER"
        graph.operators.append(_operator(kernel, [inputs[0], limit], [more]))
        return graph.finish(inputs, [more])

    def body(self, name: str) -> Subgraph:
        """One step."""
        graph, loop = _Graph(name, self.builder), self.loop
        inputs = self._variables(graph)
        for place, op in enumerate(self.model.all):
            outputs = [graph.copy(t) for t in op.outputs]
            if place in loop.slices:
                x, options = graph.copy(op.inputs[0]), {"axis": loop.slices[place]}
                graph.operators.append(_operator("GATHER", [x, inputs[0]], outputs, options))
            else:
                read = [None if t is None else graph.copy(t) for t in op.inputs]
                graph.operators.append(replace(op, inputs=read, outputs=outputs))
        stride = graph.constant(np.array([loop.stride], "int32"))
        following = graph.tensor(Tensor((1,), "int32", "next_step"))
        plain = {"fusedActivationFunction": "NONE"}
        graph.operators.append(_operator("ADD", [inputs[0], stride], [following], plain))
        results = [following, *(graph.copy(self._output(self.model, p)) for p in loop.carried)]
        if self.joined is not None:
            results.append(self._appended(graph, inputs[len(results)]))
        return graph.finish(inputs, [*results, *inputs[len(results) :]])

    def _appended(self, graph: "_Graph", steps: Tensor) -> Tensor:
        """The outputs of all steps so far, with this one's in the place of the oldest."""
        assert self.joined is not None
        one = graph.copy(self._output(self.model, self.joined.place))
        batch, count, size = (n or 0 for n in steps.shape)
        shape = (steps.shape[0], count - 1, size)
        others = graph.tensor(replace(steps, shape=shape, name="others"))
        begin = 0 if self.joined.turned else 1
        bounds = [0, begin, 0], [batch, begin + count - 1, size]
        self._slice(steps, others, *bounds, graph.constant, graph.operators)
        parts = [one, others] if self.joined.turned else [others, one]
        appended = graph.tensor(replace(steps, name="appended"))
        options = {"axis": 1, "fusedActivationFunction": "NONE"}
        graph.operators.append(_operator("CONCATENATION", parts, [appended], options))
        return appended


def _operator(
    name: str, inputs: list[Any], outputs: list[Tensor], options: dict[str, Any] | None = None
) -> Operator:
    op = Operator(name, 1, inputs, outputs, options or {})
    op.version = get_kernel(name).version(op)
    return op


class _Graph:
    """A graph of a loop on its way into the file."""

    def __init__(self, name: str, builder: Builder) -> None:
        self.name = name
        self.builder = builder
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self._copies: dict[int, Tensor] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """A tensor that this graph has, and no other one."""
        tensor.index = len(self.tensors)
        self.tensors.append(tensor)
        return tensor

    def copy(self, tensor: Tensor) -> Tensor:
        """The counterpart of a main graph's tensor; constants share its data."""
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = self.tensor(replace(tensor))
        return self._copies[id(tensor)]

    def constant(self, values: np.ndarray) -> Tensor:
        """A constant."""
        return self.copy(self.builder.constant(values))

    def finish(self, inputs: list[Tensor], outputs: list[Tensor]) -> Subgraph:
        """The graph."""
        return Subgraph(self.name, self.tensors, self.operators, inputs, outputs)
