"""Recurrent layers: one dense layer for the inputs of all steps, then step after step."""

import inspect
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.affine import QTensor
from intact.numerics.tensors import Tensor, is_symbolic, to_numpy
from intact.ops.base import Case, Fixed, Op, find_op, register_op
from intact.ops.logic import Select
from intact.ops.moves import reshape
from intact.ops.sequence import streamed, why_not
from intact.ops.shape import Moving, reshaped
from intact.ops.slicing import sliced

KEEPS = "it keeps its state between calls (stateful=True), and there is no kernel for that"
REMEDY = (
    "Let the model take the state and return it: stateful=False, `initial_state=` and "
    "`return_state=True`"
)

SYMMETRIC = (keras.activations.sigmoid, keras.activations.hard_sigmoid)
"""Functions with `f(-x) = 1 - f(x)`."""


@keras.saving.register_keras_serializable("intact")
class Zeros(layers.Layer):
    """A state before the first step, where nothing can be left out for it.

    Args:
        units: The size of its last axis; the others are the input's.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """The zeros."""
        return ops.zeros_like(x[..., :1]) * ops.zeros(self.units)

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        return (*shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@register_op
class ZeroState(Op):
    """Zeros, in the units of a state between -1 and 1, for as many samples as there are."""

    keras_layers = (Zeros,)
    litert = ("STRIDED_SLICE", "MUL")
    dtypes = ("int8", "int16")
    output = Fixed(1 / 128, 0)
    arithmetic = "real"
    cases = (Case(lambda: lambda x: layers.Dense(4)(x) + Zeros(4)(x), (2, 3)),)

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        return layer(inputs[0].values)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        rank = len(x.shape)
        one = builder.like(x, (*x.shape[:-1], 1))
        bounds = [np.array(sizes, "int32") for sizes in ([0] * rank, [0] * (rank - 1) + [1])]
        constants = [builder.constant(v) for v in (*bounds, np.ones(rank, "int32"))]
        masks = (1 << (rank - 1)) - 1
        builder.add("STRIDED_SLICE", [x, *constants], [one], {"beginMask": masks, "endMask": masks})
        zeros = np.zeros((1,) * (rank - 1) + (node.layer.units,), "float32")
        if y.quantized:
            stored = zeros.astype(x.dtype)
            factor = builder.constant(stored, scale=np.float32(1), zero_point=0)
        else:
            factor = builder.constant(zeros)
        builder.add("MUL", [one, factor], [y], {"fusedActivationFunction": "NONE"})


@keras.saving.register_keras_serializable("intact")
class Carried(layers.Layer):
    """A state on its way from step to step: nothing happens to it.

    XLA computes a chain of elementwise ops anew for everything that reads from it, so
    that the time to compile would grow with the square of the steps. It takes no matrix
    product into such a chain, not even that with the identity.
    """

    def call(self, x: Tensor) -> Tensor:
        """The state itself."""
        if keras.backend.backend() == "torch":
            return x
        return ops.matmul(x, ops.eye(x.shape[-1]))

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        return shape


@register_op
class Carry(Moving):
    """A state from one step to the next: nothing in the file."""

    keras_layers = (Carried,)
    cases = (Case(lambda: lambda x: layers.Dense(3)(Carried()(x)), (2, 4)),)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        node.alias(node.input)


def dense(
    cell: Any, role: str, kernel: np.ndarray, bias: np.ndarray | None, x: Any, tracer: Any
) -> Any:
    """A product with a part of a cell's weights; one layer for all steps.

    Args:
        cell: The cell.
        role: "kernel" or "recurrent": the weight that it is made from; perhaps followed by
            "_" and a name for the part.
        kernel: Its values.
        bias: Its bias, or None.
        x: A tensor of the new graph.
        tracer: The tracer.

    Returns:
        The output tensor.
    """
    kind = role.split("_")[0]

    def make() -> layers.Dense:
        made = layers.Dense(
            kernel.shape[1],
            use_bias=bias is not None,
            kernel_regularizer=getattr(cell, f"{kind}_regularizer"),
            kernel_constraint=getattr(cell, f"{kind}_constraint"),
            bias_regularizer=cell.bias_regularizer,
            bias_constraint=cell.bias_constraint,
            trainable=cell.trainable,
            name=role,
        )
        made.build((None, kernel.shape[0]))
        made.set_weights([kernel] if bias is None else [kernel, bias])
        return made

    return tracer.emit(tracer.once((cell, role), make), x)


class Cell(Op):
    """Base of the cells: one step of a recurrent layer.

    They work on tensors with any axes between the batch and the last one.
    """

    litert = ("FULLY_CONNECTED", "ADD", "MUL", "LOGISTIC", "TANH")

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        given = dict(zip(("inputs", "states"), args, strict=False)) | kwargs
        states = keras.tree.flatten(given["states"])
        with tracer.scope(layer):
            x = cls.project(layer, given["inputs"], tracer)
            return cls.advance(layer, x, states, tracer)

    @classmethod
    def project(cls, cell: Any, x: Any, tracer: Any) -> Any:
        """What the inputs give to the sums of a step; for all steps at once.

        Args:
            cell: The cell.
            x: The inputs.
            tracer: The tracer.
        """
        x = dropped_inputs(cell, x, tracer)
        return dense(cell, "kernel", *cls.input_weights(cell), x, tracer)

    @classmethod
    def input_weights(cls, cell: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Kernel and bias of the inputs' product."""
        return to_numpy(cell.kernel), None if cell.bias is None else to_numpy(cell.bias)

    @classmethod
    def advance(cls, cell: Any, x: Any, states: list | None, tracer: Any) -> tuple[Any, list]:
        """One step.

        Args:
            cell: The cell.
            x: What `project` returned for this step.
            states: The states before it; None for zeros.
            tracer: The tracer.

        Returns:
            The output and the new states.
        """
        raise NotImplementedError


def dropped_inputs(cell: Any, x: Any, tracer: Any) -> Any:
    """The inputs on their way into a cell's products."""
    if not cell.dropout:
        return x
    kind = layers.Dropout if len(x.shape) == 2 else layers.SpatialDropout1D
    drop = tracer.once(
        (cell, "dropout"), lambda: kind(cell.dropout, seed=cell.seed, name="dropout")
    )
    return tracer.trace(drop, (x,), {})


def dropped(cell: Any, state: Any, tracer: Any) -> Any:
    """A state on its way into the recurrent product."""
    if not cell.recurrent_dropout:
        return state

    def make() -> layers.Dropout:
        return layers.Dropout(cell.recurrent_dropout, seed=cell.seed, name="recurrent_dropout")

    return tracer.emit(tracer.once((cell, "recurrent_dropout"), make), state)


def add(name: str, a: Any, b: Any, tracer: Any, limit: Any = None) -> Any:
    """The sum of two tensors of the new graph; `limit` is `emit`'s `range_limit`."""
    return tracer.emit(layers.Add(name=name), [a, b], range_limit=limit)


def multiply(name: str, a: Any, b: Any, tracer: Any, limit: Any = None) -> Any:
    """The product of two tensors of the new graph; `limit` is `emit`'s `range_limit`."""
    return tracer.emit(layers.Multiply(name=name), [a, b], range_limit=limit)


def zeros(units: int, x: Any, tracer: Any) -> Any:
    """A state of zeros, with the axes of a tensor of the new graph."""
    return tracer.emit(Zeros(units, name="zeros"), x)


def subtract(name: str, a: Any, b: Any, tracer: Any) -> Any:
    """The difference of two tensors of the new graph."""
    return tracer.emit(layers.Subtract(name=name), [a, b])


def carried(x: Any, tracer: Any) -> Any:
    """A state that later steps read without a product in between."""
    return tracer.emit(Carried(name="carried"), x)


def part(name: str, x: Any, which: slice, tracer: Any) -> Any:
    """A part of the last axis of a tensor of the new graph."""
    return sliced(tracer, SimpleNamespace(name=name), x, [..., which])


def activated(name: str, function: Any, x: Any, tracer: Any) -> Any:
    """An activation function of a tensor of the new graph."""
    return tracer.activation(function, x, SimpleNamespace(name=name))


@register_op
class SimpleRNNCell(Cell):
    """`h' = activation(x W + h U + b)`."""

    keras_layers = (layers.SimpleRNNCell,)
    cases = (
        Case(lambda: lambda x, h: layers.SimpleRNNCell(3)(x, [h])[0], [(4,), (3,)], exact=False),
    )

    @classmethod
    def advance(cls, cell: Any, x: Any, states: list | None, tracer: Any) -> tuple[Any, list]:
        if states:
            h = dropped(cell, states[0], tracer)
            h = dense(cell, "recurrent", to_numpy(cell.recurrent_kernel), None, h, tracer)
            x = add("sum", x, h, tracer)
        h = activated("h", cell.activation, x, tracer)
        return h, [h]


def end_of_tanh(bits: int) -> float:
    """Where tanh is 1 to within half a step of its integers: `atanh(1 - 2^-bits)`.

    Args:
        bits: Width of what tanh gives, in bits.
    """
    return float(np.arctanh(1 - 2.0**-bits))


@register_op
class LSTMCell(Cell):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997).

    What it remembers is read through tanh, and rounded at each step. Its range ends where
    tanh does, so that the steps are small; a cell that holds more is held there.
    """

    keras_layers = (layers.LSTMCell,)
    cases = (
        Case(
            lambda: lambda x, h, c: layers.Concatenate()(layers.LSTMCell(3)(x, [h, c])[1]),
            [(4,), (3,), (3,)],
            exact=False,
        ),
    )

    @classmethod
    def advance(cls, cell: Any, x: Any, states: list | None, tracer: Any) -> tuple[Any, list]:
        if states:
            h, c = states
            h = dropped(cell, h, tracer)
            h = dense(cell, "recurrent", to_numpy(cell.recurrent_kernel), None, h, tracer)
            x = add("sum", x, h, tracer)
        i, f, g, o = (
            part(name, x, slice(n * cell.units, (n + 1) * cell.units), tracer)
            for n, name in enumerate("ifgo")
        )
        i = activated("i", cell.recurrent_activation, i, tracer)
        g = activated("g", cell.activation, g, tracer)
        o = activated("o", cell.recurrent_activation, o, tracer)
        new = multiply("new", i, g, tracer)
        if states:
            f = activated("f", cell.recurrent_activation, f, tracer)
            limit = end_of_tanh if cell.activation is keras.activations.tanh else None
            new = add("c", multiply("kept", f, c, tracer, limit), new, tracer, limit)
        new = carried(new, tracer)
        h = multiply("h", o, activated("c", cell.activation, new, tracer), tracer)
        return h, [h, new]


@register_op
class GRUCell(Cell):
    """Gated recurrent unit (Cho et al., arXiv:1406.1078).

    The new state is `h + g * (n - h)`, with `g = 1 - z`: what is kept is kept as it is.
    """

    keras_layers = (layers.GRUCell,)
    cases = (
        Case(lambda: lambda x, h: layers.GRUCell(3)(x, [h])[0], [(4,), (3,)], exact=False),
        Case(
            lambda: lambda x, h: layers.GRUCell(3, reset_after=False)(x, [h])[0],
            [(4,), (3,)],
            exact=False,
        ),
    )

    @classmethod
    def signs(cls, cell: Any) -> np.ndarray:
        """-1 for the sums of z, as `1 - sigmoid(x)` is `sigmoid(-x)`; 1 where it is not so."""
        limits = (cell.kernel_constraint, cell.recurrent_constraint, cell.bias_constraint)
        turned = cell.recurrent_activation in SYMMETRIC and not any(limits)
        return np.repeat(np.array([-1 if turned else 1, 1, 1], "float32"), cell.units)

    @classmethod
    def input_weights(cls, cell: Any) -> tuple[np.ndarray, np.ndarray | None]:
        kernel, bias = super().input_weights(cell)
        if bias is not None and cell.reset_after:
            # That of the recurrent product joins the same sums, but for the new value's.
            bias = bias[0] + bias[1] * np.repeat(np.array([1, 1, 0], "float32"), cell.units)
        signs = cls.signs(cell)
        return kernel * signs, None if bias is None else bias * signs

    @classmethod
    def advance(cls, cell: Any, x: Any, states: list | None, tracer: Any) -> tuple[Any, list]:
        signs, split = cls.signs(cell), 2 * cell.units
        kernel = to_numpy(cell.recurrent_kernel) * signs
        (h,) = states or (None,)
        inputs = h if h is None else dropped(cell, h, tracer)
        gates = part("gates", x, slice(split), tracer)
        new = part("new", x, slice(split, None), tracer)
        if states:
            more = dense(cell, "recurrent_gates", kernel[:, :split], None, inputs, tracer)
            gates = add("gates_sum", gates, more, tracer)
        gates = activated("gates", cell.recurrent_activation, gates, tracer)
        z = part("z", gates, slice(cell.units), tracer)
        r = part("r", gates, slice(cell.units, None), tracer)
        more = None
        if cell.reset_after:
            bias = None if cell.bias is None else to_numpy(cell.bias)[1, split:]
            if inputs is None and bias is not None:
                inputs = zeros(cell.units, x, tracer)
            if inputs is not None:
                more = dense(cell, "recurrent_new", kernel[:, split:], bias, inputs, tracer)
                more = multiply("reset", r, more, tracer)
        elif states:
            more = multiply("reset", r, inputs, tracer)
            more = dense(cell, "recurrent_new", kernel[:, split:], None, more, tracer)
        if more is not None:
            new = add("new_sum", new, more, tracer)
        new = activated("new", cell.activation, new, tracer)
        start, end = (h, new) if signs[0] < 0 else (new, h)
        if start is None:
            h = multiply("h", z, end, tracer)
        elif end is None:
            h = subtract("h", start, multiply("lost", z, start, tracer), tracer)
        else:
            way = multiply("way", z, subtract("distance", end, start, tracer), tracer)
            h = add("h", start, way, tracer)
        h = carried(h, tracer)
        return h, [h]


@register_op
class Recurrent(Op):
    """A cell, step after step; other cells than Keras' own are traced by their `call`."""

    keras_layers = (layers.RNN, layers.SimpleRNN, layers.GRU, layers.LSTM)
    litert = ("FULLY_CONNECTED", "STRIDED_SLICE", "ADD", "MUL", "LOGISTIC", "TANH", "CONCATENATION")
    masks = True
    notes = (
        "A known number of steps. LSTM(stateful=True): UNIDIRECTIONAL_SEQUENCE_LSTM, which keeps "
        "the state; other layers' states are inputs and outputs. "
        "Recurrent dropout draws anew at every step."
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

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if layer.stateful:
            return stateful(layer, args, kwargs, tracer)
        steps, states = unrolled(layer, *arguments(layer, args, kwargs, tracer), tracer)
        with tracer.scope(layer):
            y = joined(steps, tracer) if layer.return_sequences else flat(steps[-1], tracer)
        return (y, *states) if layer.return_state else y


def stateful(layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
    """The output of a layer that keeps its state between calls."""
    given = named(args, kwargs)
    x = given["sequences"]
    reason = why_not(layer, x, given)
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
    given = named(args, kwargs)
    mask = given.get("mask")
    if mask is not None:
        if not is_symbolic(mask) or mask.dtype != "bool":
            tracer.refuse(layer, "its mask does not come from a comparison")
        with tracer.scope(layer):
            mask = reshape(mask, (*mask.shape[1:], 1), "mask", tracer)
    return given["sequences"], given.get("initial_state"), mask


def unrolled(layer: Any, x: Any, initial: Any, mask: Any, tracer: Any) -> tuple[list, list]:
    """All steps of a recurrent layer.

    Args:
        layer: The layer.
        x: The sequence.
        initial: The initial states, nested as Keras does; or None.
        mask: Truth values of shape `(batch, steps, 1)`, where there is a step; or None.
        tracer: The tracer.

    Returns:
        The output of each step, with an axis for the time, in the order of computation;
        and the final states.
    """
    if layer.stateful:
        tracer.refuse(layer, f"{KEEPS}. {REMEDY}")
    check_steps(layer, x, tracer)
    if not all(is_symbolic(t) for t in keras.tree.flatten(initial) if t is not None):
        tracer.refuse(layer, "its initial state is a constant; leave it out, or make it an input")
    stacked = isinstance(layer.cell, layers.StackedRNNCells) and len(layer.cell.cells) > 1
    cells = getattr(layer.cell, "cells", [layer.cell])
    order = list(range(x.shape[1]))[:: -1 if layer.go_backwards else 1]
    seen: list[Any] = [None] * len(order)
    if mask is not None:
        with tracer.scope(layer), tracer.step(layer):
            seen = [part_of_time(mask, i, tracer) for i in order]
    steps: list[Any] = []
    final = []
    for i, cell in enumerate(cells):
        state = initial[i] if stacked and initial is not None else initial
        if i:
            with tracer.scope(layer), tracer.scope(cells[i - 1]):
                x, order = joined(steps, tracer), list(range(len(order)))
        with tracer.scope(layer):
            steps, states = run(cell, x, order, keras.tree.flatten(state), seen, tracer)
            final.append([flat(t, tracer) for t in states])
    if mask is not None:
        steps = shown(layer, steps, seen, tracer)
    return steps, final if stacked else final[0]


def run(
    cell: Any, x: Any, order: list[int], states: list, seen: list, tracer: Any
) -> tuple[list, list]:
    """The outputs of all steps of one cell, and its last states."""
    op: Any = find_op(cell) or CustomCell
    outputs = []
    with tracer.scope(cell):
        states = [row(t, tracer) for t in states if t is not None]
        x = op.project(cell, x, tracer)
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


def shown(layer: Any, steps: list, seen: list, tracer: Any) -> list:
    """The outputs of all steps, where those of masked steps are the last before them."""
    last = nothing(steps[0], tracer)
    repeats = not getattr(layer, "zero_output_for_mask", False)
    outputs = []
    with tracer.scope(layer), tracer.step(layer):
        for step, is_seen in zip(steps, seen, strict=True):
            outputs.append(carried(select("shown", is_seen, step, last, tracer), tracer))
            last = outputs[-1] if repeats else last
    return outputs


def nothing(like: Any, tracer: Any) -> Any:
    """Zeros in the place of one step's values, in the range of those that they are chosen from."""
    return tracer.constant(np.zeros((1, *like.shape[1:]), "float32"), "nothing", len(like.shape))


def select(name: str, condition: Any, a: Any, b: Any, tracer: Any) -> Any:
    """One tensor of the new graph where a condition holds, else another."""
    return tracer.emit(Select(name=name), [a, b, condition])


class CustomCell:
    """A cell that nobody registered, by what its `call` does."""

    @classmethod
    def project(cls, cell: Any, x: Any, tracer: Any) -> Any:
        """Nothing can be said of all steps at once."""
        return x

    @classmethod
    def advance(cls, cell: Any, x: Any, states: list, tracer: Any) -> tuple[Any, list]:
        """One step, of tensors without an axis for the time."""
        if not states:
            states = [zeros(n, x, tracer) for n in keras.tree.flatten(cell.state_size)]
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
    return tracer.emit(layers.Concatenate(axis=1, name="steps"), steps)


@register_op
class Bidirectional(Op):
    """Two recurrent layers, one of which reads from the end."""

    keras_layers = (layers.Bidirectional,)
    masks = True
    notes = "As its layers."
    cases = (
        Case(lambda: layers.Bidirectional(layers.SimpleRNN(3)), (3, 2), exact=False),
        Case(
            lambda: layers.Bidirectional(layers.LSTM(2, return_sequences=True), "ave"),
            (3, 2),
            exact=False,
        ),
        Case(
            lambda: (
                lambda x: layers.Concatenate()(
                    layers.Bidirectional(layers.GRU(2, return_state=True), None)(x)
                )
            ),
            (3, 2),
            exact=False,
        ),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, initial, mask = arguments(layer, args, kwargs, tracer)
        pair = (layer.forward_layer, layer.backward_layer)
        for inner in pair:
            if find_op(inner) is not Recurrent:
                tracer.refuse(layer, f"its layer is a {type(inner).__name__}")
        half = 0 if initial is None else len(initial) // 2
        halves = (None, None) if initial is None else (initial[:half], initial[half:])
        outputs, finals = [], []
        with tracer.scope(layer):
            for inner, state in zip(pair, halves, strict=True):
                steps, states = unrolled(inner, x, state, mask, tracer)
                finals += states
                with tracer.scope(inner):
                    if not layer.return_sequences:
                        outputs.append(flat(steps[-1], tracer))
                    else:
                        order = -1 if inner is layer.backward_layer else 1
                        outputs.append(joined(steps[::order], tracer))
        y = outputs
        if layer.merge_mode is not None:
            y = [tracer.trace(MERGES[layer.merge_mode](name=layer.name), (outputs,), {})]
        if layer.return_state:
            return (*y, *finals)
        return tuple(y) if layer.merge_mode is None else y[0]


MERGES = {
    "concat": layers.Concatenate,
    "sum": layers.Add,
    "mul": layers.Multiply,
    "ave": layers.Average,
}


POINTWISE = (layers.Dense, layers.Activation, layers.ReLU, layers.LeakyReLU, layers.Rescaling)
"""Layers that need not be told where a step ends."""


@register_op
class TimeDistributed(Op):
    """A layer for every step: the steps are samples to it."""

    keras_layers = (layers.TimeDistributed,)
    litert = ("RESHAPE",)
    masks = True
    notes = "Sizes must be known; a mask: where the layer takes none."
    cases = (
        Case(lambda: layers.TimeDistributed(layers.Dense(4, activation="relu")), (3, 5)),
        Case(lambda: layers.TimeDistributed(layers.Conv2D(3, 2, activation="relu")), (2, 4, 4, 2)),
        Case(
            lambda: layers.TimeDistributed(
                keras.Sequential(
                    [layers.Conv2D(2, 2), layers.BatchNormalization(), layers.Flatten()]
                )
            ),
            (2, 3, 3, 2),
        ),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, inner = args[0], layer.layer
        if "mask" in kwargs and "mask" in inspect.signature(inner.call).parameters:
            tracer.refuse(layer, f"its layer {inner.name!r} is given a mask at every step")
        if isinstance(inner, POINTWISE):
            return tracer.trace(inner, (x,), {})
        if None in x.shape[1:]:
            tracer.refuse(layer, f"all sizes but the batch must be known, received {x.shape}")
        samples = reshape(x, x.shape[2:], f"{layer.name}_samples", tracer)
        y = tracer.trace(inner, (samples,), {})
        return reshape(y, (x.shape[1], *y.shape[1:]), f"{layer.name}_steps", tracer)


def check_steps(layer: Any, x: Any, tracer: Any) -> None:
    """Refuse a sequence whose number of steps is unknown."""
    if x.shape[1] is None:
        tracer.refuse(layer, f"the number of steps must be known, received shape {x.shape}")


def part_of_time(x: Any, i: int, tracer: Any) -> Any:
    """One step of a sequence, with its axis."""
    return sliced(tracer, SimpleNamespace(name="step"), x, [slice(None), slice(i, i + 1)])
