"""Recurrent convolutions."""

import inspect
from typing import Any

from keras import layers

from intact.numerics.tensors import to_numpy
from intact.ops.base import Case, Op
from intact.ops.cells import LSTMCell
from intact.ops.moves import reshape
from intact.ops.recurrent import Recurrent
from intact.ops.registry import register_op

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)

KERAS_CELL = vars(inspect.getmodule(layers.ConvLSTM2D.__base__))["ConvLSTMCell"]
"""Keras' class of the cells, which it does not export."""


def convolution(cell: Any, recurrent: bool, x: Any, tracer: Any) -> Any:
    """A convolution of each step with a part of a cell's weights; one layer for all steps.

    Args:
        cell: The cell.
        recurrent: Whether it is the recurrent convolution, or else that of the inputs.
        x: A tensor of the new graph, with an axis for the time.
        tracer: The tracer.

    Returns:
        The output tensor, with that axis.
    """
    role = "recurrent" if recurrent else "kernel"

    def make() -> Any:
        kernel = to_numpy(cell.recurrent_kernel if recurrent else cell.kernel)
        weights = [kernel] if recurrent or cell.bias is None else [kernel, to_numpy(cell.bias)]
        convolution = CONVOLUTIONS[cell.rank - 1](
            kernel.shape[-1],
            cell.kernel_size,
            strides=1 if recurrent else cell.strides,
            padding="same" if recurrent else cell.padding,
            dilation_rate=1 if recurrent else cell.dilation_rate,
            data_format="channels_last",
            use_bias=len(weights) > 1,
            kernel_regularizer=getattr(cell, f"{role}_regularizer"),
            kernel_constraint=getattr(cell, f"{role}_constraint"),
            bias_regularizer=cell.bias_regularizer,
            bias_constraint=cell.bias_constraint,
            trainable=cell.trainable,
            name=role,
        )
        convolution.build((None, *x.shape[2:]))
        convolution.set_weights(weights)
        return convolution

    steps = x.shape[1]
    images = reshape(x, x.shape[2:], f"{role}_images", tracer)
    y = tracer.trace(tracer.once((cell, role), make), (images,), {})
    return reshape(y, (steps, *y.shape[1:]), f"{role}_steps", tracer)


@register_op
class ConvLSTMCell(LSTMCell):
    """An LSTM whose products are convolutions (Shi et al., arXiv:1506.04214)."""

    keras_layers = (KERAS_CELL,)
    litert = ("CONV_2D", "ADD", "MUL", "LOGISTIC", "TANH")
    cases = (Case(lambda: layers.ConvLSTM2D(2, 1, padding="same"), (2, 3, 3, 2), exact=False),)

    def state_sizes(self, cell: Any) -> list[int]:
        return [cell.filters] * 2

    def project(self, cell: Any, x: Any, tracer: Any) -> Any:
        if cell.dropout:
            x = tracer.trace(layers.Dropout(cell.dropout, name="dropout"), (x,), {})
        return convolution(cell, False, x, tracer)

    def recur(self, cell: Any, h: Any, tracer: Any) -> Any:
        return convolution(cell, True, h, tracer)


@register_op
class ConvLSTM(Op):
    """A recurrent convolution, step after step."""

    keras_layers = (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
    litert = ("CONV_2D", "STRIDED_SLICE", "ADD", "MUL", "LOGISTIC", "TANH", "CONCATENATION")
    notes = "A known number of steps, channels last. No masks, no state between calls."
    cases = (
        Case(lambda: layers.ConvLSTM2D(3, 3, padding="same"), (3, 5, 4, 2), exact=False),
        Case(lambda: layers.ConvLSTM1D(3, 3, return_sequences=True), (3, 6, 2), exact=False),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if layer.stateful or kwargs.get("mask") is not None:
            tracer.refuse(layer, "a mask, or a state between calls, is not known for convolutions")
        if layer.data_format == "channels_first":
            tracer.refuse(layer, "its channels must come last")
        return Recurrent().trace(layer, args, kwargs, tracer)
