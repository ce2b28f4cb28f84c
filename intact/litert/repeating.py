"""Writes the ops of a step as the body of a WHILE."""

from dataclasses import dataclass, replace

import numpy as np

from intact.litert.builder import Builder
from intact.litert.loops import _Graph, _operator
from intact.litert.writing import Operator, Subgraph, Tensor


@dataclass(eq=False)
class Repeated:
    """A step, and how it is connected to the steps before it and to the main graph.

    Args:
        ops: Its ops.
        parts: For each sequence, of shape `(batch, steps, ...)`, the tensor of the main graph, and
            that of the step, `(batch, 1, ...)`.
        states: For each state, its first value in the main graph, the step's input, and output.
        collected: Outputs of the step, `(batch, 1, ...)`, that are collected for all steps.
        backwards: Whether the last step is the first to be computed.
        turned: Whether what is computed first is collected as the last one.
    """

    ops: list[Operator]
    parts: list[tuple[Tensor, Tensor]]
    states: list[tuple[Tensor, Tensor, Tensor]]
    collected: list[Tensor]
    backwards: bool
    turned: bool

    @property
    def steps(self) -> int | None:
        """How many steps there are; None where the file does not know."""
        return self.parts[0][0].shape[1]


def zeros(builder: Builder, x: Tensor, like: Tensor, all_steps: bool) -> Tensor:
    """Zeros for each sample, in the type and scale of a step's tensor.

    Args:
        builder: The file's builder.
        x: A sequence, `(batch, steps, size)`.
        like: A tensor of a step, `(batch, 1, ...)`.
        all_steps: Whether to have them for all steps, or for one.
    """
    mask = 0b11 if all_steps else 0b01
    bounds = [builder.constant(np.array(v, "int32")) for v in ([0] * 3, [0, 1, 1], [1] * 3)]
    part = builder.like(x, (x.shape[0], x.shape[1] if all_steps else 1, 1))
    builder.add("STRIDED_SLICE", [x, *bounds], [part], {"beginMask": mask, "endMask": mask})
    if part.quantized != like.quantized or part.dtype != like.dtype:
        other = builder.like(like, part.shape)
        kernel = "QUANTIZE" if like.quantized else "DEQUANTIZE"
        builder.add("CAST" if part.dtype == "bool" else kernel, [part], [other])
        part = other
    for _ in like.shape[3:]:
        wider = builder.like(part, (*part.shape, 1))
        builder.add("EXPAND_DIMS", [part, builder.constant(np.array(-1, "int32"))], [wider])
        part = wider
    nothing = np.zeros((1, 1, *(size or 1 for size in like.shape[2:])), "float32")
    if like.quantized:
        nothing = nothing.astype(like.dtype)
        factor = builder.constant(nothing, scale=np.float32(1), zero_point=0)
    else:
        factor = builder.constant(nothing)
    result = builder.like(like, (*part.shape[:2], *like.shape[2:]))
    builder.add("MUL", [part, factor], [result], {"fusedActivationFunction": "NONE"})
    return result


def repeat(builder: Builder, step: Repeated, number: int) -> tuple[list[Subgraph], list[Tensor]]:
    """Add a WHILE.

    Args:
        builder: The file's builder.
        step: The step; its ops are no longer in the builder.
        number: The number of the first of its graphs in the file.

    Returns:
        Its condition and its body; and the final states, followed by what is collected.
    """
    writer = _Writer(builder, step)
    outputs = [builder.like(x, x.shape) for x in writer.variables]
    for x, y in zip(writer.variables, outputs, strict=True):
        y.dtype = x.dtype
    graphs = {"condSubgraphIndex": number, "bodySubgraphIndex": number + 1}
    builder.operators.append(_operator("WHILE", writer.variables, outputs, graphs))
    name = f"loop_{number}"
    ends = outputs[1 : 1 + len(step.states) + len(step.collected)]
    return [writer.condition(f"{name}_condition"), writer.body(f"{name}_body")], ends


class _Writer:
    """Writes the graphs of a WHILE.

    Its variables are the number of the step, the states, what is collected so far, the sequences,
    and other tensors of the main graph that a step reads.
    """

    def __init__(self, builder: Builder, step: Repeated) -> None:
        self.builder, self.step = builder, step
        x = step.parts[0][0]
        first = builder.constant(np.array([0], "int32"))
        if step.backwards and step.steps is not None:
            first = builder.constant(np.array([step.steps - 1], "int32"))
        elif step.backwards:
            first = builder.scaled(builder.sizes(x, 1, 2), [1], [-1])
        self.rooms = [zeros(builder, x, like, all_steps=True) for like in step.collected]
        starts = [first for first, _, _ in step.states]
        sequences = list({id(whole): whole for whole, _ in step.parts}.values())
        self.variables = [first, *starts, *self.rooms, *sequences]
        inside = {id(t) for op in step.ops for t in op.outputs}
        inside |= {id(part) for _, part in step.parts} | {id(t) for _, t, _ in step.states}
        known = inside | {id(t) for t in sequences}
        outside = {id(t): t for op in step.ops for t in op.inputs if t is not None and not t.buffer}
        self.fixed = [t for key, t in outside.items() if key not in known]
        self.variables += self.fixed

    def inputs(self, graph: _Graph) -> list[Tensor]:
        """The variables as inputs of a graph."""
        step = self.step
        number = graph.tensor(Tensor((1,), "int32", "step"))
        states = [graph.copy(before) for _, before, _ in step.states]
        rooms = [graph.tensor(replace(room)) for room in self.rooms]
        rest = self.variables[1 + len(states) + len(rooms) :]
        return [number, *states, *rooms, *map(graph.copy, rest)]

    def condition(self, name: str) -> Subgraph:
        """Whether there is another step."""
        graph, step = _Graph(name, self.builder), self.step
        inputs = self.inputs(graph)
        if step.backwards or step.steps is not None:
            end = -1 if step.backwards else step.steps
            limit = graph.constant(np.array([end], "int32"))
        else:
            x = graph.copy(step.parts[0][0])
            shape = graph.tensor(Tensor((len(x.shape),), "int32", "sizes"))
            limit = graph.tensor(Tensor((1,), "int32", "steps"))
            bounds = [graph.constant(np.array([n], "int32")) for n in (1, 2, 1)]
            graph.operators.append(_operator("SHAPE", [x], [shape], {"outType": "int32"}))
            graph.operators.append(_operator("STRIDED_SLICE", [shape, *bounds], [limit]))
        more = graph.tensor(Tensor((1,), "bool", "more"))
        kernel = "GREATER" if step.backwards else "LESS"
        graph.operators.append(_operator(kernel, [inputs[0], limit], [more]))
        return graph.finish(inputs, [more])

    def body(self, name: str) -> Subgraph:
        """One step."""
        graph, step = _Graph(name, self.builder), self.step
        inputs = self.inputs(graph)
        for whole, part in step.parts:
            operands = [graph.copy(whole), inputs[0]]
            graph.operators.append(_operator("GATHER", operands, [graph.copy(part)], {"axis": 1}))
        for op in step.ops:
            read = [None if t is None else graph.copy(t) for t in op.inputs]
            written = [graph.copy(t) for t in op.outputs]
            graph.operators.append(replace(op, inputs=read, outputs=written))
        stride = graph.constant(np.array([-1 if step.backwards else 1], "int32"))
        following = graph.tensor(Tensor((1,), "int32", "next_step"))
        plain = {"fusedActivationFunction": "NONE"}
        graph.operators.append(_operator("ADD", [inputs[0], stride], [following], plain))
        results = [following, *(graph.copy(after) for _, _, after in step.states)]
        rooms = inputs[len(results) : len(results) + len(self.rooms)]
        pairs = zip(step.collected, rooms, strict=True)
        results += [self.appended(graph, graph.copy(one), room) for one, room in pairs]
        return graph.finish(inputs, [*results, *inputs[len(results) :]])

    def appended(self, graph: _Graph, one: Tensor, room: Tensor) -> Tensor:
        """The outputs of all steps so far, with this one's in the place of the oldest."""
        steps, turned = room.shape[1], self.step.turned
        shape = (room.shape[0], None if steps is None else steps - 1, *room.shape[2:])
        others = graph.tensor(replace(room, shape=shape, name="others"))
        rank = len(room.shape)
        axes = 2**rank - 1
        begin, end = [0] * rank, [0] * rank
        begin[1], end[1] = (0, -1) if turned else (1, 0)
        bounds = [graph.constant(np.array(v, "int32")) for v in (begin, end, [1] * rank)]
        masks = {"beginMask": axes - 2, "endMask": axes - 2 if turned else axes}
        graph.operators.append(_operator("STRIDED_SLICE", [room, *bounds], [others], masks))
        appended = graph.tensor(replace(room, name="appended"))
        parts = [one, others] if turned else [others, one]
        options = {"axis": 1, "fusedActivationFunction": "NONE"}
        graph.operators.append(_operator("CONCATENATION", parts, [appended], options))
        return appended
