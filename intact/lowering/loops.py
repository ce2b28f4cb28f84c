"""Writes loops: as a WHILE, or as steps one after the other."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from intact.errors import ExportError
from intact.layers.kernel_graph import Kernel, KernelGraph
from intact.layers.loop import QuantizedLoop
from intact.litert.builder import Tensor
from intact.litert.repeating import Repeated, repeat, zeros
from intact.numerics.affine import first_part

if TYPE_CHECKING:
    from intact.lowering.lowering import Lowering


class LoopLowering:
    """Writes one loop.

    Args:
        lowering: The lowering of the model.
        kernel: The call of the loop.
    """

    def __init__(self, lowering: "Lowering", kernel: Kernel) -> None:
        self.lowering, self.kernel = lowering, kernel
        self.loop: QuantizedLoop = kernel.layer
        self.kernels = KernelGraph(self.loop.graph)
        self.ends = [first_part(end) for end in self.loop.ends]
        inside = {id(t) for node in self.loop.nodes for t in node.outputs}
        inside |= {id(t) for t in keras.tree.flatten([self.loop.sequences, self.loop.states])}
        self.watched = [t for t in lowering.watched if id(t) in inside]

    def write(self) -> None:
        """Write the loop; the lowering then has the tensors that it returns."""
        lowering, loop = self.lowering, self.loop
        count = loop.form.sequences
        inputs = [lowering._tensor(first_part(x)) for x in self.kernel.call.args[0]]
        sequences = inputs[:count]
        with self.entered():
            first = self.begin(inputs[count:], sequences)
            if lowering.loops or self.watched:
                ends = self.as_loop(sequences, first)
            else:
                ends = self.as_steps(sequences, first)
        outputs = iter(self.kernel.call.outputs)
        for end, tensor in zip(loop.ends, ends, strict=True):
            parts = [next(outputs) for _ in (end if isinstance(end, list | tuple) else [end])]
            lowering.tensors[id(parts[0])] = tensor

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Inside a `with` block, the lowering reads the graph of the step."""
        lowering = self.lowering
        outer = lowering.kernels, lowering.graph
        lowering.kernels, lowering.graph = self.kernels, self.loop.graph
        try:
            yield
        finally:
            lowering.kernels, lowering.graph = outer

    def begin(self, starts: list[Tensor], sequences: list[Tensor]) -> list[Tensor]:
        """The states before the first step."""
        lowering, loop = self.lowering, self.loop
        for symbol, tensor in zip(loop.first, starts, strict=True):
            lowering.tensors[id(first_part(symbol))] = tensor
        starting = {id(node) for node in loop.start_nodes}
        for kernel in self.kernels.kernels:
            if id(kernel.call) in starting:
                lowering._kernel(kernel)
        started = iter(lowering._tensor(first_part(tensor)) for tensor in loop.started)
        reals = [x for x in sequences if x.dtype != "bool"]
        return [
            next(started)
            if is_input
            else zeros(lowering.builder, reals[0], self.like(symbol), all_steps=False)
            for is_input, symbol in zip(loop.form.starts, loop.states, strict=True)
        ]

    def like(self, symbol: Any) -> Tensor:
        """A tensor in the form of a step's state."""
        lowering, tensor = self.lowering, first_part(symbol)
        end = self.ends[self.loop.form.joins + self.loop.index_of(symbol)]
        quantizer = self.kernels.range_of(end) if isinstance(symbol, list | tuple) else None
        if quantizer is None or not lowering.rounds:
            return lowering.builder.tensor(tensor.shape, "float32", tensor.name)
        return lowering._quantized(tensor.shape, tensor.name, quantizer)

    def step(self, parts: list[Tensor], states: list[Tensor]) -> list[Tensor]:
        """Write the ops of one step."""
        lowering, loop = self.lowering, self.loop
        pairs = zip([*loop.sequences, *loop.states], [*parts, *states], strict=True)
        for symbol, tensor in pairs:
            lowering.tensors[id(first_part(symbol))] = tensor
        in_step = {id(node) for node in loop.nodes}
        kernels = [kernel for kernel in self.kernels.kernels if id(kernel.call) in in_step]
        for kernel in kernels:
            lowering._kernel(kernel)
        ends = [lowering._tensor(end) for end in self.ends]
        seen = [lowering._tensor(tensor) for tensor in self.watched]
        for kernel in kernels:
            for node in kernel.calls:
                for tensor in node.outputs:
                    lowering.tensors.pop(id(tensor), None)
        return [*ends, *seen]

    def as_steps(self, sequences: list[Tensor], states: list[Tensor]) -> list[Tensor]:
        """Write the steps one after the other."""
        builder, form = self.lowering.builder, self.loop.form
        steps = sequences[0].shape[1]
        if steps is None:
            raise ExportError(
                f"The number of steps of {self.loop.name!r} is unknown, and the file is to have "
                "its steps one after the other (`target=` or `unroll=True`). Build the model with "
                "a `keras.Input` of fixed length, and copy the weights."
            )
        collected = []
        for place in range(steps)[:: -1 if form.backwards else 1]:
            parts = [_part(builder, x, place) for x in sequences]
            ends = self.step(parts, states)
            states = ends[form.joins :]
            collected += ends[: form.joins]
        if not form.joins:
            return states
        one = collected[0]
        whole = builder.like(one, (one.shape[0], steps, *one.shape[2:]))
        options = {"axis": 1, "fusedActivationFunction": "NONE"}
        in_order = collected[:: -1 if form.turned else 1]
        builder.add("CONCATENATION", list(in_order), [whole], options)
        return [whole, *states]

    def as_loop(self, sequences: list[Tensor], first: list[Tensor]) -> list[Tensor]:
        """Write a WHILE."""
        builder, form = self.lowering.builder, self.loop.form
        parts = [builder.like(x, (x.shape[0], 1, *x.shape[2:])) for x in sequences]
        for part, x in zip(parts, sequences, strict=True):
            part.dtype = x.dtype
        before = [builder.like(x, x.shape) for x in first]
        begin, known = len(builder.operators), dict(builder._computed)
        ends = self.step(parts, before)
        states = ends[form.joins : len(self.ends)]
        collected = [*ends[: form.joins], *map(self._as_step, ends[len(self.ends) :])]
        written, builder.operators = builder.operators[begin:], builder.operators[:begin]
        builder._computed = known
        pairs = [*zip(sequences, parts, strict=True)]
        carried = [*zip(first, before, states, strict=True)]
        step = Repeated(written, pairs, carried, collected, form.backwards, form.turned)
        graphs, results = repeat(builder, step, len(self.lowering.loop_graphs) + 1)
        self.lowering.loop_graphs += graphs
        final, rest = results[: len(states)], results[len(states) :]
        for tensor, whole in zip(self.watched, rest[form.joins :], strict=True):
            self.lowering.tensors[id(tensor)] = whole
        return [*rest[: form.joins], *final]

    def _as_step(self, tensor: Tensor) -> Tensor:
        """A tensor of a step with an axis for the time."""
        if len(tensor.shape) > 2 and tensor.shape[1] == 1:
            return tensor
        builder = self.lowering.builder
        row = builder.like(tensor, (tensor.shape[0], 1, *tensor.shape[1:]))
        builder.add("EXPAND_DIMS", [tensor, builder.constant(np.array(1, "int32"))], [row])
        return row


def _part(builder: Any, x: Tensor, place: int) -> Tensor:
    """One step of a sequence."""
    rank = len(x.shape)
    part = builder.like(x, (x.shape[0], 1, *x.shape[2:]))
    part.dtype = x.dtype
    begin, end = [0] * rank, [0] * rank
    begin[1], end[1] = place, place + 1
    bounds = [builder.constant(np.array(v, "int32")) for v in (begin, end, [1] * rank)]
    masks = {"beginMask": 2**rank - 3, "endMask": 2**rank - 3}
    builder.add("STRIDED_SLICE", [x, *bounds], [part], masks)
    return part
