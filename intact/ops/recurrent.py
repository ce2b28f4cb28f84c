"""Recurrent layers: one dense layer for the inputs of all steps, then step after step."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import keras
from keras import layers, ops

from intact.litert.rolling import LEAST
from intact.numerics.tensors import is_symbolic
from intact.ops.base import Case, Op
from intact.ops.cells import carried, dropped_inputs, zeros
from intact.ops.logic import Select
from intact.ops.loop import Loop, LoopForm
from intact.ops.moves import reshape
from intact.ops.registry import find_op, register_op
from intact.ops.sequence import streamed, why_not
from intact.ops.shape import reshaped
from intact.ops.slicing import sliced
from intact.ops.states import Zeros, nothing

KEEPS = "it keeps its state between calls (stateful=True), and there is no kernel for that"
REMEDY = (
    "Let the model take the state and return it: stateful=False, `initial_state=` and "
    "`return_state=True`"
)


@register_op
class Recurrent(Op):
    """A cell, step after step; other cells than Keras' own are traced by their `call`."""

    keras_layers = (layers.RNN, layers.SimpleRNN, layers.GRU, layers.LSTM)
    litert = ("FULLY_CONNECTED", "STRIDED_SLICE", "ADD", "MUL", "LOGISTIC", "TANH", "CONCATENATION")
    masks = True
    notes = (
        "Eight steps or more, or an unknown number, are a loop. LSTM(stateful=True): "
        "UNIDIRECTIONAL_SEQUENCE_LSTM, which keeps the state; other layers' states are inputs and "
        "outputs. "
        "Recurrent dropout draws a new mask at every step."
    )
    cases = (
        Case(lambda: layers.SimpleRNN(4), (5, 3), exact=False),
        Case(
            lambda: layers.SimpleRNN(4, activation="relu", return_sequences=True, use_bias=False),
            (3, 2),
        ),
        Case(lambda: layers.LSTM(4), (4, 3), exact=False),
        Case(lambda: layers.LSTM(3, return_sequences=True, go_backwards=True), (3, 2), exact=False),
        Case(
            lambda: (
                lambda x, h, c: layers.Concatenate()(
                    layers.LSTM(3, return_state=True)(x, initial_state=[h, c])
                )
            ),
            [(3, 2), (3,), (3,)],
            exact=False,
        ),
        Case(lambda: layers.GRU(4), (4, 3), exact=False),
        # Steps that become a loop.
        Case(lambda: layers.LSTM(3, return_sequences=True, go_backwards=True), (9, 2), exact=False),
        Case(lambda: layers.GRU(3), (8, 2), exact=False),
        Case(lambda: layers.GRU(3, reset_after=False, return_sequences=True), (3, 2), exact=False),
        Case(lambda: layers.GRU(3, activation="relu", recurrent_activation="hard_sigmoid"), (3, 2)),
        Case(lambda: layers.GRU(3, use_bias=False, recurrent_activation="tanh"), (3, 2), False),
        Case(
            lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], return_sequences=True),
            (3, 2),
            exact=False,
        ),
        Case(lambda: layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2), (3, 2), exact=False),
        Case(lambda: lambda x: layers.LSTM(3)(layers.Masking()(ops.relu(x))), (4, 1), exact=False),
        Case(
            lambda: (
                lambda x: (
                    layers.GRU(3, return_sequences=True)(x, mask=ops.relu(x)[:, :, 0] > 0.0) * 2.0
                )
            ),
            (4, 2),
            exact=False,
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if layer.stateful:
            return stateful(layer, args, kwargs, tracer)
        y, states = sequence(layer, *arguments(layer, args, kwargs, tracer), tracer)
        return (y, *states) if layer.return_state else y


def stateful(layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
    """The output of a layer that keeps its state between calls."""
    call_args = named(args, kwargs)
    x = call_args["sequences"]
    reason = why_not(layer, x, call_args)
    if reason is not None:
        tracer.refuse(layer, f"{KEEPS} ({reason} there). {REMEDY}")
    check_steps(layer, x, tracer)
    with tracer.scope(layer):
        x = dropped_inputs(layer.cell, x, tracer)
    return streamed(layer, x, tracer)


def named(args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a recurrent layer's call by their names."""
    return dict(zip(("sequences", "initial_state", "mask"), args, strict=False)) | kwargs


def arguments(layer: Any, args: tuple, kwargs: dict, tracer: Any) -> tuple[Any, Any, Any]:
    """The sequence, the initial state and the mask of a recurrent layer's call."""
    call_args = named(args, kwargs)
    mask = call_args.get("mask")
    if mask is not None:
        if not is_symbolic(mask) or mask.dtype != "bool":
            tracer.refuse(layer, "its mask does not come from a comparison")
        with tracer.scope(layer):
            mask = reshape(mask, (*mask.shape[1:], 1), "mask", tracer)
    return call_args["sequences"], call_args.get("initial_state"), mask


def sequence(
    layer: Any, x: Any, initial: Any, mask: Any, tracer: Any, turned: bool = False
) -> tuple[Any, list]:
    """What a recurrent layer computes.

    Args:
        layer: The layer.
        x: The sequence.
        initial: The initial states, nested as Keras does; or None.
        mask: Truth values of shape `(batch, steps, 1)`, where there is a step; or None.
        tracer: The tracer.
        turned: Whether to return the outputs in the reverse of the order of computation.

    Returns:
        The outputs of all steps, or the last one, as the layer has it; and the final states.
    """
    if layer.stateful:
        tracer.refuse(layer, f"{KEEPS}. {REMEDY}")
    if not all(is_symbolic(t) for t in keras.tree.flatten(initial) if t is not None):
        tracer.refuse(layer, "its initial state is a constant; leave it out, or make it an input")
    stacked = isinstance(layer.cell, layers.StackedRNNCells) and len(layer.cell.cells) > 1
    cells = getattr(layer.cell, "cells", [layer.cell])
    way = Way(layer.go_backwards, mask)
    final = []
    for i, cell in enumerate(cells):
        state = initial[i] if stacked and initial is not None else initial
        states = [t for t in keras.tree.flatten(state) if t is not None]
        last = cell is cells[-1]
        way.repeats = last and not getattr(layer, "zero_output_for_mask", False)
        way.blanks = last and not way.repeats
        way.joins, way.turned = not last or layer.return_sequences, last and turned
        compute = looped if can_loop(layer, cell, x, tracer) else unrolled
        with tracer.scope(layer):
            x, states = compute(layer, cell, x, states, way, tracer)
            final.append([flat(t, tracer) for t in states])
            if last and not layer.return_sequences:
                x = flat(x, tracer)
        way.backwards = False
    return x, final if stacked else final[0]


@dataclass
class Way:
    """How the steps of a cell are computed.

    Args:
        backwards: Whether the last step is the first to be computed.
        mask: Truth values of shape `(batch, steps, 1)`, where there is a step; or None.
        repeats: Whether a masked step repeats the output before it.
        blanks: Whether a masked step's output is 0.
        joins: Whether all outputs are needed, or the last one.
        turned: Whether these are in the reverse of the order of computation.
    """

    backwards: bool
    mask: Any
    repeats: bool = False
    blanks: bool = False
    joins: bool = False
    turned: bool = False


def can_loop(layer: Any, cell: Any, x: Any, tracer: Any) -> bool:
    """Whether the steps of a cell are a loop: equal, several, and without random numbers."""
    plain = layer.activity_regularizer is None and len(x.shape) == 3
    plain = plain and all(isinstance(n, int) for n in keras.tree.flatten(cell.state_size))
    few = x.shape[1] is not None and x.shape[1] < LEAST
    own = [cell, *cell._flatten_layers(include_self=False)]
    draws = any(getattr(part, "recurrent_dropout", 0) for part in own)
    changes = any(isinstance(p, layers.BatchNormalization | layers.Dropout) for p in own)
    return plain and not few and not draws and not changes and tracer.may_loop(cell)


def looped(layer: Any, cell: Any, x: Any, states: list, way: Way, tracer: Any) -> tuple[Any, list]:
    """The outputs of a cell, or its last one, and its last states, by a loop."""
    op: Any = find_op(cell) or CustomCell()
    with tracer.scope(cell):
        first = [row(t, tracer) for t in states]
        x = op.project(cell, x, tracer)
        sequences = [x] if way.mask is None else [x, way.mask]
        sizes = op.state_sizes(cell)
        parts = [tracer.inner_input("x", (1, *t.shape[2:]), t) for t in sequences]
        before = [tracer.inner_input("state", (1, n), x) for n in sizes]
        starts = [bool(first)] * len(sizes)
        with tracer.inside(parts[0]):
            output, new = op.advance(cell, parts[0], before, tracer)
            if way.mask is not None:
                output, new = masked(output, new, before, parts[1], way, first, starts, tracer)
        place = next((i for i, state in enumerate(new) if state is output), None)
        joins = way.joins or place is None
        step = keras.Model([*parts, *before], [output, *new] if joins else new)
        form = LoopForm(len(parts), tuple(starts), joins, way.backwards, way.turned)
        outputs = tracer.place(Loop(step, form, name="loop"), [*sequences, *first])
        final = outputs[joins:]
        if not way.joins:
            end = slice(0, 1) if way.turned else slice(-1, None)
            cut = SimpleNamespace(name="last")
            last = sliced(tracer, cut, outputs[0], [slice(None), end]) if joins else final[place]
            return last, final[: len(sizes)]
        return outputs[0], final[: len(sizes)]


def masked(
    output: Any,
    new: list,
    before: list,
    seen: Any,
    way: Way,
    first: list,
    starts: list[bool],
    tracer: Any,
) -> tuple[Any, list]:
    """Output and new states of a step that counts only where it is seen.

    An output that is repeated is a state, which is added to `before` and `starts`.
    """
    kept = [select("kept", seen, *pair, tracer) for pair in zip(new, before, strict=True)]
    place = next((i for i, state in enumerate(new) if state is output), None)
    if way.blanks:
        return select("shown", seen, output, nothing(output, tracer), tracer), kept
    if not way.repeats:
        return output, kept
    if place is not None and not first:
        # Both begin with 0.
        return kept[place], kept
    before.append(tracer.inner_input("shown", output.shape[1:], output))
    starts.append(False)
    output = select("shown", seen, output, before[-1], tracer)
    return output, [*kept, output]


def unrolled(
    layer: Any, cell: Any, x: Any, states: list, way: Way, tracer: Any
) -> tuple[Any, list]:
    """The outputs of a cell, or its last one, and its last states, step after step."""
    check_steps(layer, x, tracer)
    order = list(range(x.shape[1]))[:: -1 if way.backwards else 1]
    seen: list[Any] = [None] * len(order)
    if way.mask is not None:
        with tracer.step(layer):
            seen = [part_of_time(way.mask, i, tracer) for i in order]
    steps, states = run(cell, x, order, states, seen, tracer)
    if way.mask is not None and (way.repeats or way.blanks):
        steps = shown(layer, steps, seen, way.repeats, tracer)
    return joined(steps[:: -1 if way.turned else 1], tracer) if way.joins else steps[-1], states


def run(
    cell: Any, x: Any, order: list[int], states: list, seen: list, tracer: Any
) -> tuple[list, list]:
    """The outputs of all steps of one cell, and its last states."""
    op: Any = find_op(cell) or CustomCell()
    outputs = []
    with tracer.scope(cell):
        states = [row(t, tracer) for t in states]
        x = op.project(cell, x, tracer)
        if not states and len(order) >= LEAST:
            # A first step like the others can join a loop; with few steps, it omits products of
            # zeros.
            sizes = op.state_sizes(cell)
            states = [tracer.emit(Zeros(n, True, name="start"), x) for n in sizes]
        for i, is_seen in zip(order, seen, strict=True):
            with tracer.step(cell):
                now = part_of_time(x, i, tracer)
                output, new = op.advance(cell, now, states, tracer)
                if is_seen is not None:
                    before = states or [nothing(t, tracer) for t in new]
                    new = [
                        carried(select("kept", is_seen, *pair, tracer), tracer)
                        for pair in zip(new, before, strict=True)
                    ]
                states = new
            outputs.append(output)
    return outputs, states


def shown(layer: Any, steps: list, seen: list, repeats: bool, tracer: Any) -> list:
    """The outputs of all steps; a masked step repeats the output before it, or is 0."""
    last = nothing(steps[0], tracer)
    outputs = []
    with tracer.step(layer):
        for step, is_seen in zip(steps, seen, strict=True):
            outputs.append(carried(select("shown", is_seen, step, last, tracer), tracer))
            last = outputs[-1] if repeats else last
    return outputs


def select(name: str, condition: Any, a: Any, b: Any, tracer: Any) -> Any:
    """One tensor of the new graph where a condition holds, else another."""
    return tracer.emit(Select(name=name), [a, b, condition])


class CustomCell:
    """A cell that no op stands for, as the operations of its `call`."""

    def state_sizes(self, cell: Any) -> list[int]:
        """The size of the last axis of each state."""
        return keras.tree.flatten(cell.state_size)

    def project(self, cell: Any, x: Any, tracer: Any) -> Any:
        """The inputs themselves, because nothing is known of all steps at once."""
        return x

    def advance(self, cell: Any, x: Any, states: list, tracer: Any) -> tuple[Any, list]:
        """One step, of tensors without an axis for the time."""
        if not states:
            states = [zeros(n, x, tracer) for n in self.state_sizes(cell)]
        flats = [flat(t, tracer) for t in states]
        output, new = tracer.trace(cell, (flat(x, tracer), flats), {})
        return row(output, tracer), [row(t, tracer) for t in keras.tree.flatten(new)]


def row(x: Any, tracer: Any) -> Any:
    """One step's values, with an axis for the time."""
    return reshaped(tracer, SimpleNamespace(name="row"), x, (1, *x.shape[1:]))


def flat(x: Any, tracer: Any) -> Any:
    """One step's values, without an axis for the time."""
    return reshaped(tracer, SimpleNamespace(name="flat"), x, x.shape[2:])


def joined(steps: list, tracer: Any) -> Any:
    """The values of all steps."""
    if len(steps) == 1:
        return steps[0]
    return tracer.emit_new(layers.Concatenate(axis=1, name="steps"), steps)


def check_steps(layer: Any, x: Any, tracer: Any) -> None:
    """Refuse a sequence whose number of steps is unknown."""
    if x.shape[1] is None:
        tracer.refuse(
            layer,
            f"the number of steps must be known, received shape {x.shape}; call the model on a "
            "`keras.Input` of fixed length, `keras.Model(x, model(x))`",
        )


def part_of_time(x: Any, i: int, tracer: Any) -> Any:
    """One step of a sequence, with its axis."""
    return sliced(tracer, SimpleNamespace(name="step"), x, [slice(None), slice(i, i + 1)])
