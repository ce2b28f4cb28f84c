"""Layers around layers: in both directions, and over time."""

import inspect
from typing import Any

import keras
from keras import layers

from intact.ops.base import Case, Op
from intact.ops.moves import reshape
from intact.ops.recurrent import Recurrent, arguments, sequence
from intact.ops.registry import find_op, register_op


@register_op
class Bidirectional(Op):
    """Two recurrent layers, one of which reads the sequence from its end."""

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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, initial, mask = arguments(layer, args, kwargs, tracer)
        pair = (layer.forward_layer, layer.backward_layer)
        for inner in pair:
            if not isinstance(find_op(inner), Recurrent):
                tracer.refuse(layer, f"its layer is a {type(inner).__name__}")
        half = 0 if initial is None else len(initial) // 2
        halves = (None, None) if initial is None else (initial[:half], initial[half:])
        outputs, finals = [], []
        with tracer.scope(layer):
            for inner, state in zip(pair, halves, strict=True):
                turned = layer.return_sequences and inner is layer.backward_layer
                y, states = sequence(inner, x, state, mask, tracer, turned)
                finals += states
                outputs.append(y)
        merged = outputs
        if layer.merge_mode is not None:
            merged = [tracer.trace(MERGES[layer.merge_mode](name=layer.name), (outputs,), {})]
        if layer.return_state:
            return (*merged, *finals)
        return tuple(merged) if layer.merge_mode is None else merged[0]


MERGES = {
    "concat": layers.Concatenate,
    "sum": layers.Add,
    "mul": layers.Multiply,
    "ave": layers.Average,
}


POINTWISE = (layers.Dense, layers.Activation, layers.ReLU, layers.LeakyReLU, layers.Rescaling)
"""Layers that apply to all steps at once."""


@register_op
class TimeDistributed(Op):
    """A layer applied to every step, as if steps were samples."""

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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
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


@register_op
class SpectralNormalization(Op):
    """The layer itself, with the weights that it has."""

    keras_layers = (layers.SpectralNormalization,)
    notes = "The weights are no longer normalized in training."
    cases = (Case(lambda: layers.SpectralNormalization(layers.Dense(4, "relu")), (8,)),)

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return tracer.trace(layer.layer, args, {})
