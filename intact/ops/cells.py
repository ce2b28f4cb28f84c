"""Recurrent cells, as steps made of other ops."""

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import layers

from intact.numerics.tensors import to_numpy
from intact.ops.base import Case, Op
from intact.ops.registry import register_op
from intact.ops.slicing import sliced
from intact.ops.states import Carried, Zeros

SYMMETRIC = (keras.activations.sigmoid, keras.activations.hard_sigmoid)
"""Functions with `f(-x) = 1 - f(x)`."""


def dense(
    cell: Any, role: str, kernel: np.ndarray, bias: np.ndarray | None, x: Any, tracer: Any
) -> Any:
    """A product with a part of a cell's weights, by one layer for all steps.

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
        dense_layer = layers.Dense(
            kernel.shape[1],
            use_bias=bias is not None,
            kernel_regularizer=getattr(cell, f"{kind}_regularizer"),
            kernel_constraint=getattr(cell, f"{kind}_constraint"),
            bias_regularizer=cell.bias_regularizer,
            bias_constraint=cell.bias_constraint,
            trainable=cell.trainable,
            name=role,
        )
        dense_layer.build((None, kernel.shape[0]))
        dense_layer.set_weights([kernel] if bias is None else [kernel, bias])
        return dense_layer

    return tracer.emit(tracer.once((cell, role), make), x)


class Cell(Op):
    """Base of the cells: one step of a recurrent layer.

    They work on tensors with any axes between the batch and the last one.
    """

    litert = ("FULLY_CONNECTED", "ADD", "MUL", "LOGISTIC", "TANH")

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        arguments = dict(zip(("inputs", "states"), args, strict=False)) | kwargs
        states = keras.tree.flatten(arguments["states"])
        with tracer.scope(layer):
            x = self.project(layer, arguments["inputs"], tracer)
            return self.advance(layer, x, states, tracer)

    def state_sizes(self, cell: Any) -> list[int]:
        """The size of the last axis of each state.

        Args:
            cell: The cell.
        """
        return keras.tree.flatten(cell.state_size)

    def project(self, cell: Any, x: Any, tracer: Any) -> Any:
        """The inputs' part of the sums of all steps.

        Args:
            cell: The cell.
            x: The inputs.
            tracer: The tracer.
        """
        x = dropped_inputs(cell, x, tracer)
        return dense(cell, "kernel", *self.input_weights(cell), x, tracer)

    def input_weights(self, cell: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Kernel and bias of the inputs' product."""
        return to_numpy(cell.kernel), None if cell.bias is None else to_numpy(cell.bias)

    def advance(self, cell: Any, x: Any, states: list | None, tracer: Any) -> tuple[Any, list]:
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
    return tracer.emit_new(layers.Add(name=name), [a, b], range_limit=limit)


def multiply(name: str, a: Any, b: Any, tracer: Any, limit: Any = None) -> Any:
    """The product of two tensors of the new graph; `limit` is `emit`'s `range_limit`."""
    return tracer.emit_new(layers.Multiply(name=name), [a, b], range_limit=limit)


def zeros(units: int, x: Any, tracer: Any) -> Any:
    """A state of zeros, with the axes of a tensor of the new graph."""
    return tracer.emit(Zeros(units, name="zeros"), x)


def subtract(name: str, a: Any, b: Any, tracer: Any) -> Any:
    """The difference of two tensors of the new graph."""
    return tracer.emit_new(layers.Subtract(name=name), [a, b])


def carried(x: Any, tracer: Any) -> Any:
    """A state that later steps read without a product in between."""
    if tracer.in_loop:
        return x
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

    def advance(self, cell: Any, x: Any, states: list | None, tracer: Any) -> tuple[Any, list]:
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

    The cell state is read through tanh, and rounded at each step. Its range ends where tanh
    saturates, so that its scale is small; a larger state is clipped.
    """

    keras_layers = (layers.LSTMCell,)
    cases = (
        Case(
            lambda: lambda x, h, c: layers.Concatenate()(layers.LSTMCell(3)(x, [h, c])[1]),
            [(4,), (3,), (3,)],
            exact=False,
        ),
    )

    def advance(self, cell: Any, x: Any, states: list | None, tracer: Any) -> tuple[Any, list]:
        if states:
            h, c = states
            h = self.recur(cell, dropped(cell, h, tracer), tracer)
            x = add("sum", x, h, tracer)
        units = x.shape[-1] // 4
        i, f, g, o = (
            part(name, x, slice(n * units, (n + 1) * units), tracer)
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

    def recur(self, cell: Any, h: Any, tracer: Any) -> Any:
        """The previous output's part of the sums of a step."""
        return dense(cell, "recurrent", to_numpy(cell.recurrent_kernel), None, h, tracer)


@register_op
class GRUCell(Cell):
    """Gated recurrent unit (Cho et al., arXiv:1406.1078).

    The new state is `h + g * (n - h)`, with `g = 1 - z`, so that a kept state is not rounded.
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

    def signs(self, cell: Any) -> np.ndarray:
        """-1 for the sums of z, as `1 - sigmoid(x)` is `sigmoid(-x)`; 1 where it is not so."""
        limits = (cell.kernel_constraint, cell.recurrent_constraint, cell.bias_constraint)
        turned = cell.recurrent_activation in SYMMETRIC and not any(limits)
        return np.repeat(np.array([-1 if turned else 1, 1, 1], "float32"), cell.units)

    def input_weights(self, cell: Any) -> tuple[np.ndarray, np.ndarray | None]:
        kernel, bias = super().input_weights(cell)
        if bias is not None and cell.reset_after:
            # The recurrent bias joins the same sums, except for those of the new value.
            bias = bias[0] + bias[1] * np.repeat(np.array([1, 1, 0], "float32"), cell.units)
        signs = self.signs(cell)
        return kernel * signs, None if bias is None else bias * signs

    def advance(self, cell: Any, x: Any, states: list | None, tracer: Any) -> tuple[Any, list]:
        signs, split = self.signs(cell), 2 * cell.units
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
