"""Recurrent layers that keep their state, as one kernel for all steps."""

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.accumulator import Accumulator, accumulator, add_bias, rescaled
from intact.numerics.affine import QTensor
from intact.numerics.backend_kernels import exact_convolution
from intact.numerics.exact import inverse_of
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import ScaleLayout
from intact.numerics.straight_through import round_where
from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import Case, Op, Weight
from intact.ops.registry import register_op
from intact.ops.slicing import sliced
from intact.rounding.int16_tables import GATE_BITS
from intact.rounding.lstm import GATES, LSTMRounding, State, StateKeeper, Steps, Sums, in_float

LIMITS = {"regularizer": keras.regularizers, "constraint": keras.constraints}
"""Regularizers and constraints of weights, and where Keras keeps them."""


@keras.saving.register_keras_serializable("intact")
class StatefulLSTM(StateKeeper, layers.Layer):
    """A `keras.layers.LSTM(stateful=True, return_sequences=True)`, with its weights by gates.

    Args:
        units: Size of the output.
        use_bias: Whether there is a bias.
        **kwargs: Regularizers and constraints, by the names that `keras.layers.LSTM` has for
            them, and what any layer takes.
    """

    def __init__(self, units: int, use_bias: bool = True, **kwargs: Any) -> None:
        self.limits = {
            f"{weight}_{kind}": getter.get(kwargs.pop(f"{weight}_{kind}", None))
            for kind, getter in LIMITS.items()
            for weight in ("kernel", "recurrent", "bias")
        }
        super().__init__(**kwargs)
        self.units = units
        self.use_bias = use_bias

    def build(self, shape: Any) -> None:
        """Make the weights and the state.

        Args:
            shape: (batch, steps, inputs), the batch known.
        """
        gates = (len(GATES), self.units)

        def weight(name: str, limits: str, *shape: int) -> Any:
            fields = {kind: self.limits[f"{limits}_{kind}"] for kind in LIMITS}
            return self.add_weight(name=name, shape=shape, **fields)

        self.input_kernel = weight("input_kernel", "kernel", shape[-1], *gates)
        self.recurrent_kernel = weight("recurrent_kernel", "recurrent", self.units, *gates)
        self.bias = weight("bias", "bias", *gates) if self.use_bias else None
        self.hidden, self.cell = (
            self.add_weight(
                name=name, shape=(shape[0], self.units), initializer="zeros", trainable=False
            )
            for name in State._fields
        )

    def call(self, x: Tensor) -> Tensor:
        """All outputs from the kept state; keeps the new state.

        Args:
            x: (batch, steps, inputs).
        """
        return self.with_weights(x, *map(ops.convert_to_tensor, self.kernels()))

    def kernels(self) -> list[Any]:
        """The weights but the bias."""
        return [self.input_kernel, self.recurrent_kernel]

    def with_weights(self, x: Tensor, input_kernel: Tensor, recurrent_kernel: Tensor) -> Tensor:
        """The same with other weights.

        Args:
            x: (batch, steps, inputs).
            input_kernel: (inputs, 4, units).
            recurrent_kernel: (units, 4, units).
        """
        sums = products(x, input_kernel)
        sums = sums if self.bias is None else sums + self.bias
        before = State(self.hidden * 1.0, self.cell * 1.0)
        steps: Steps = in_float(sums, recurrent_kernel, before)
        self.keep(steps.last)
        return steps.hidden

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        return (*shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        limits = {name: keras.saving.serialize_keras_object(v) for name, v in self.limits.items()}
        return {**super().get_config(), "units": self.units, "use_bias": self.use_bias, **limits}


def products(x: Tensor, kernel: Tensor) -> Tensor:
    """Sums of products with the inputs of all steps, (batch, steps, 4, units)."""
    inputs, gates, units = kernel.shape
    flat = ops.matmul(x, ops.reshape(kernel, (inputs, gates * units)))
    return ops.reshape(flat, (-1, x.shape[1], gates, units))


def with_bias(layer: Any, acc: Accumulator, xp: Any = ops) -> Accumulator:
    """The sums with the inputs, with the layer's bias.

    Args:
        layer: The canonical layer.
        acc: The sums without it, yet to be filled in; the scale of the weights is one or (4,).
        xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.

    Returns:
        The sums, with a bias of (4, units); gates whose bias would not fit in 32 bits have a
        larger scale.
    """
    bias = np.zeros((len(GATES), layer.units), "float32") if layer.bias is None else layer.bias
    bias = xp.cast(xp.convert_to_tensor(bias), "float32")
    by_gate = len(acc.weight_scale.shape) > 0
    # A gate has one scale for all its units, that of its largest bias.
    largest = xp.max(xp.abs(bias), axis=-1 if by_gate else None)
    scale = add_bias(acc, largest, xp).weight_scale
    units = bias * inverse_of(acc.input_scale * _by_gate(scale), xp)
    return acc._replace(bias=round_where(acc.whole, units, xp), weight_scale=scale)


@register_op
class SequenceLSTM(Op):
    """An LSTM whose state LiteRT keeps between calls."""

    keras_layers = (StatefulLSTM,)
    litert = ("UNIDIRECTIONAL_SEQUENCE_LSTM",)
    wide = "8 bits inside, because the kernel has no others; QUANTIZE before and after it"
    # Per gate one scale.
    weights = {
        "input_kernel": Weight(ScaleLayout((1,)), kernels=("int8",), dynamic=()),
        "recurrent_kernel": Weight(ScaleLayout((1,)), kernels=("int8",), dynamic=()),
    }
    kernel_rounding = LSTMRounding.name
    own_range = True
    # The product of a gate and the tanh of a cell; the kernel would overflow.
    max_accumulator_scale, fit_accumulator_scale = 1, 0.5
    cases = (
        Case(lambda: layers.LSTM(4, stateful=True, return_sequences=True), (5, 3), batch=32),
        Case(lambda: layers.LSTM(3, stateful=True, use_bias=False), (2, 2), batch=32),
        Case(
            lambda: (
                lambda x: layers.Concatenate()(
                    [layers.LSTM(3, stateful=True, dropout=0.2)(x), x[:, 0]]
                )
            ),
            (3, 2),
            batch=32,
        ),
    )

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,), (kernel, scale) = inputs, weights["input_kernel"]
        recurrent, recurrent_scale = weights["recurrent_kernel"]
        acc = with_bias(layer, accumulator(None, x.scale, scale, whole=x.whole))
        kernel = rescaled(kernel, scale, acc, self.weights["input_kernel"].layout)
        with exact_convolution():
            sums = products(x.values, kernel)
        scale, recurrent_scale = (_by_gate(s) for s in (acc.weight_scale, recurrent_scale))
        return Sums(sums, acc.bias, x.scale, scale, recurrent, recurrent_scale)

    def accumulator_scale(self, node: Any) -> float:
        return 2.0**-30

    def real(self, layer: Any, inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
        return layer.with_weights(inputs[0], weights["input_kernel"], weights["recurrent_kernel"])

    def lower(self, node: Any, builder: Any) -> None:
        x, y, layer = node.input, node.output, node.layer
        units, inside, cell = (y.shape[0], layer.units), [], {"dtype": y.dtype}
        biases = _biases(node, builder)
        inputs, recurrent = (_by_gates(node, name, builder) for name in self.weights)
        if node.integer:
            cell = {"dtype": "int16", "scale": np.float32(to_numpy(node.quantizer.cell_scale()))}
            # The kernel uses the scale of the last gate's products only.
            fields = {"dtype": "int16", "scale": np.float32(2.0 ** (GATE_BITS - 15))}
            inside = [builder.tensor((0,), name=f"{layer.name}/{g}_sums", **fields) for g in GATES]
            inside.append(builder.like(y, (0,)))
        states = [builder.like(y, units), builder.tensor(units, name="", **cell)]
        for state, name in zip(states, State._fields, strict=True):
            state.name, state.variable = f"{layer.name}/{name}", True
        none = [None]
        operands = [x, *inputs, *recurrent, *3 * none, *biases, *2 * none, *states, *4 * none]
        options = {"fusedActivationFunction": "TANH"}
        builder.add(self.litert[0], operands, [y], options, inside)


def _by_gate(scale: Any) -> Any:
    """Scales per gate, to multiply sums (..., 4, units) with; or one for all."""
    return scale if not len(scale.shape) else scale[:, None]


def _biases(node: Any, builder: Any) -> list[Any]:
    """The bias of each gate as a constant of the file; weights get the scale that goes with it."""
    layer, fields = node.layer, [{"dtype": "float32"}] * len(GATES)
    if node.integer:
        stored = node.weights["input_kernel"]
        scale = np.asarray(stored.scale)
        acc = with_bias(layer, accumulator(None, node.input.scale, scale, numpy_ops), numpy_ops)
        stored.values = rescaled(stored.values, scale, acc, stored.layout, numpy_ops)
        stored.scale = np.broadcast_to(acc.weight_scale, len(GATES))
        bias = acc.bias
        fields = [{"dtype": "int32", "scale": node.input.scale * one} for one in stored.scale]
    else:
        bias = np.zeros(1) if layer.bias is None else to_numpy(layer.bias)
        bias = np.broadcast_to(bias, (len(GATES), layer.units))
    names = [f"{layer.name}/{gate}_bias" for gate in GATES]
    rows = zip(bias, names, fields, strict=True)
    return [builder.constant(values, name, **more) for values, name, more in rows]


def _by_gates(node: Any, weight: str, builder: Any) -> list[Any]:
    """The weights of each gate as a constant of the file, (units, inputs)."""
    real = SimpleNamespace(
        values=to_numpy(getattr(node.layer, weight)), dtype="float32", scale=None
    )
    stored, constants = node.weights.get(weight, real), []
    for place, gate in enumerate(GATES):
        name, fields = f"{node.layer.name}/{gate}_{weight}", {}
        if stored.scale is not None:
            fields["scale"] = np.broadcast_to(stored.scale, len(GATES))[place]
        values = stored.values[:, place].T
        tensor = builder.constant(values, name, dtype=stored.dtype, **fields)
        if not (node.integer or stored.dtype == "float32"):
            packed, tensor = tensor, builder.tensor(tensor.shape, "float32", f"{name}_float")
            builder.add("DEQUANTIZE", [packed], [tensor])
        constants.append(tensor)
    return constants


def streamed(layer: Any, x: Any, tracer: Any) -> Any:
    """The outputs of an LSTM that keeps its state.

    Args:
        layer: The user's layer.
        x: Its inputs, of known sizes.
        tracer: The tracer.

    Returns:
        All outputs, or the last one.
    """
    cell = layer.cell

    def make() -> StatefulLSTM:
        bias = cell.bias is not None
        lstm = StatefulLSTM(cell.units, bias, name=layer.name, trainable=layer.trainable)
        lstm.limits = {name: getattr(cell, name) for name in lstm.limits}
        lstm.build(x.shape)
        values = [cell.kernel, cell.recurrent_kernel, *([cell.bias] if bias else [])]
        for variable, value in zip(lstm.weights, values, strict=False):
            variable.assign(to_numpy(value).reshape(variable.shape))
        return lstm

    lstm = tracer.once((layer, "stateful"), make)
    if tracer.called(lstm):
        tracer.refuse(layer, "it keeps one state (stateful=True), and is called twice")
    y = tracer.emit(lstm, x)
    if layer.return_sequences:
        return y
    with tracer.scope(layer):
        return sliced(tracer, SimpleNamespace(name="last"), y, [slice(None), -1])


def why_not(layer: Any, x: Any, arguments: dict[str, Any]) -> str | None:
    """Why a layer that keeps its state has no kernel, or None if it has one.

    Args:
        layer: The user's layer.
        x: Its inputs.
        arguments: The arguments of its call.
    """
    named = {
        "only an LSTM can": type(layer) is not layers.LSTM,
        "the size of the batch must be known": x.shape[0] is None,
        "an `initial_state` is given": arguments.get("initial_state") is not None,
        "it is called with a mask": arguments.get("mask") is not None,
    }
    if type(layer) is layers.LSTM:
        named |= {
            "its activation must be tanh": layer.activation is not keras.activations.tanh,
            "its recurrent_activation must be sigmoid": (
                layer.recurrent_activation is not keras.activations.sigmoid
            ),
            "go_backwards must be False": layer.go_backwards,
            "return_state must be False": layer.return_state,
            "recurrent_dropout must be 0": bool(layer.recurrent_dropout),
        }
    return next((reason for reason, holds in named.items() if holds), None)
