"""Normalizations, and other scalings by channel."""

from typing import Any

import keras
import numpy as np
from keras import layers

from intact.numerics.accumulator import Accumulator, accumulator, add_bias, scale_channels
from intact.numerics.affine import QTensor
from intact.numerics.backend_kernels import either, shared, sqrt, with_shape
from intact.numerics.exact import inverse_of
from intact.numerics.light_ops import ops
from intact.numerics.moments import batch_norm, moments
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import is_trainable, to_numpy
from intact.ops.base import Case, Op, Weighted
from intact.ops.moves import channel_last
from intact.ops.registry import register_op

UNIT = 127.0
"""A factor of 1 as a weight, with the finest scale of 8 bits, so that biases are fine, too."""


class ByChannel(Weighted):
    """Base of the ops that scale and shift each channel: a depthwise convolution of size 1."""

    litert = ("DEPTHWISE_CONV_2D",)
    dtypes = ("int8", "int16")
    weights = {}
    folds_batch_norm = False

    def before_move(self, layer: Any, move: Any) -> Any:
        channels = {t.shape[-1] for t in (*move.inputs, *move.outputs)}
        kept = len(channels) == 1 and not isinstance(move.layer, layers.Permute)
        return layer if kept and None not in channels else None

    def refuse(self, layer: Any, shapes: list) -> str | None:
        if shapes[0].count(None) > 2 and len(shapes[0]) != 4:
            return f"one size may be unknown beside the batch, received shape {shapes[0]}"
        if shapes[0][-1] is None:
            return f"the number of channels must be known, received shape {shapes[0]}"
        return None

    def unit(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        ones = np.ones(channels, "float32")
        return ones * np.float32(UNIT), ones * np.float32(1 / UNIT)

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return self.accumulator(layer, self.unscaled(x))

    def unscaled(self, x: QTensor) -> Accumulator:
        """The input as sums, before they are scaled and shifted."""
        scale = ops.convert_to_tensor(self.unit(x.values.shape[-1])[1])
        return accumulator(x.values * UNIT, x.scale, scale, whole=x.whole)

    def lower(self, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        channels = x.shape[-1]
        flat = len(x.shape) != 4
        if flat:
            inner = x.shape[1:-1]
            size = None if None in inner else int(np.prod(inner))
            x = builder.reshape(x, (x.shape[0], 1, size, channels))
            y = builder.like(y, (y.shape[0], 1, size, channels))
        options = {
            "padding": "VALID",
            "strideH": 1,
            "strideW": 1,
            "dilationHFactor": 1,
            "dilationWFactor": 1,
            "depthMultiplier": 1,
            "fusedActivationFunction": node.activation,
        }
        kernel = node.constant("kernel", shape=(1, 1, 1, channels), axis=3)
        builder.add("DEPTHWISE_CONV_2D", [x, kernel, node.bias()], [y], options)
        if flat:
            builder.reshape(y, node.output.shape, node.output)


@register_op
class BatchNormalization(ByChannel):
    """Folds into the weights before it; alone, it is a depthwise convolution by 1.

    While training it uses and updates its statistics as in float. Both ways it is
    `gamma * (x - mean) / sqrt(variance + epsilon) + beta` (arXiv:1502.03167).
    """

    keras_layers = (layers.BatchNormalization,)
    notes = "One axis; no renormalization."
    cases = (
        Case(lambda: layers.BatchNormalization(), (4, 5, 3)),
        Case(lambda: layers.BatchNormalization(center=False), (6,)),
        Case(lambda: lambda x: layers.ReLU(6.0)(layers.BatchNormalization(scale=False)(x)), (5, 3)),
        Case(lambda: lambda x: layers.Conv2D(2, 1)(layers.BatchNormalization()(x)), (4, 5, 3)),
        Case(lambda: layers.BatchNormalization(axis=1), (3, 5, 4)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        axis = layer.axis[0] if isinstance(layer.axis, list | tuple) else layer.axis
        x, back = channel_last(args[0], axis % len(args[0].shape), layer.name, tracer)
        return back(tracer.emit(layer, x, axis=-1))

    def refuse(self, layer: Any, shapes: list) -> str | None:
        if layer.renorm if hasattr(layer, "renorm") else False:
            return "batch renormalization is not known"
        return super().refuse(layer, shapes)

    def folds_into_weights(self, layer: Any, shape: tuple) -> bool:
        return True

    def statistics(
        self, layer: Any, acc: Accumulator, training: Any, xp: Any = ops
    ) -> tuple[Any, Any]:
        """Mean and variance to normalize by; while training, the moving ones follow the batch's.

        Args:
            layer: The canonical layer.
            acc: As for `fold`.
            training: As for `fold`.
            xp: As for `fold`.
        """
        mean, variance = (
            xp.convert_to_tensor(v) for v in (layer.moving_mean, layer.moving_variance)
        )
        if training is not False and layer.trainable:
            unit = acc.input_scale * acc.weight_scale
            kept = mean, variance
            mean, variance = _batch_moments(acc, mean / unit, unit)
            if training is not True:
                # A schedule says in the graph whether the statistics still move.
                mean = ops.where(training, mean, kept[0])
                variance = ops.where(training, variance, kept[1])
            self.follow(layer, mean, variance, training)
        return mean, variance

    def follow(self, layer: Any, mean: Any, variance: Any, moves: Any = True) -> None:
        """Let the moving statistics follow a batch's, if they still move."""
        rest = 1.0 - layer.momentum
        rest = rest if moves is True else ops.where(moves, rest, 0.0)
        for moving, batch in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * (1.0 - rest) + ops.stop_gradient(batch) * rest)

    def of_batch(self, layer: Any, acc: Accumulator, moves: Any) -> Accumulator:
        """What `fold` comes to by a batch's own statistics, while these move: real values."""

        def kept() -> tuple[Any, Any, Any]:
            real = self.fold(layer, acc, False).real()
            return real, layer.moving_mean * 1.0, layer.moving_variance * 1.0

        if moves is True:
            y, mean, variance = self.by_batch(layer, acc)
        else:
            # A schedule says in the graph whether the statistics still move.
            y, mean, variance = either(moves, lambda: self.by_batch(layer, acc), kept)
        self.follow(layer, mean, variance, moves)
        return Accumulator(y, None, None, None, None)

    def by_batch(self, layer: Any, acc: Accumulator) -> tuple[Any, Any, Any]:
        """Sums normalized by their own mean and variance, and these."""
        ones = ops.ones((acc.values.shape[-1],))
        unit = ops.stop_gradient(acc.input_scale * acc.weight_scale) * ones
        # Where weights are 0, the unit is too small to divide by its square.
        size = ops.maximum(ops.abs(unit), 1e-15)
        gamma = unit / size * (layer.gamma if layer.scale else 1.0)
        # A bias before it has no effect; its gradient is 0, and not missing.
        beta = ones * (layer.beta if layer.center else 0.0) + 0.0 * acc.bias
        epsilon = layer.epsilon / (size * size)
        # The moving mean is near the batch's.
        centre = ops.stop_gradient(layer.moving_mean / unit - acc.bias)
        y, mean, variance = batch_norm(acc.values, centre, gamma, beta, epsilon)
        return y, (mean + acc.bias) * unit, variance * unit * unit

    def sigma(self, layer: Any, variance: Any, xp: Any = ops) -> Any:
        """The standard deviation that goes with a variance."""
        return _sigma(layer.epsilon, variance, xp)

    def gain(self, layer: Any, variance: Any, xp: Any = ops) -> Any:
        """The factor of each channel for a variance."""
        return _factor(_weight(layer, "gamma", xp), layer.epsilon, variance, xp)

    def fold(self, layer: Any, acc: Accumulator, training: bool, xp: Any = ops) -> Accumulator:
        if training is not False and layer.trainable:
            return self.of_batch(layer, acc, training)
        mean, variance = self.statistics(layer, acc, training, xp)
        epsilon = layer.epsilon

        def folded(sums: Any, mean: Any, variance: Any, gamma: Any, beta: Any) -> tuple[Any, ...]:
            sums = add_bias(Accumulator(*sums), -mean, xp)
            sums = scale_channels(sums, _factor(gamma, epsilon, variance, xp))
            # Also without an offset: a factor of 0 must leave a scale that is not 0.
            sums = add_bias(sums, 0.0 if beta is None else beta, xp)
            return tuple(part for part in _changed(sums) if part is not None)

        parts = [acc, mean, variance, *(_weight(layer, name, xp) for name in ("gamma", "beta"))]
        if xp is numpy_ops or training is not False:
            results = folded(*parts)
        else:
            results = shared(("folded", epsilon), folded, *parts)
        before = dict(zip(CHANGED, _changed(acc), strict=True))
        names = [name for name in CHANGED if before[name] is not None]
        changed = dict(zip(names, results, strict=True))
        if xp is not numpy_ops:
            channels = mean.shape
            for name, part in changed.items():
                by_channel = name in ("bias", "weight_scale")
                with_shape(part, channels if by_channel else before[name].shape)
        return acc._replace(**changed)

    def shift(self, layer: Any, amount: np.ndarray) -> None:
        layer.moving_mean.assign(to_numpy(layer.moving_mean) - amount)

    def accumulator(self, layer: Any, acc: Accumulator, xp: Any = ops) -> Accumulator:
        return self.fold(layer, acc, False, xp)

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        return self.fold(layer, self.unscaled(inputs[0]), training)

    def factors(self, layer: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
        sigma = np.sqrt(numpy_ops.convert_to_tensor(layer.moving_variance) + layer.epsilon)
        factor = (numpy_ops.convert_to_tensor(layer.gamma) if layer.scale else 1.0) / sigma
        beta = numpy_ops.convert_to_tensor(layer.beta) if layer.center else 0.0
        return factor, beta - numpy_ops.convert_to_tensor(layer.moving_mean) * factor


CHANGED = ("values", "bias", "weight_scale", "high", "low")
"""The parts of an `Accumulator` that a bias or a factor changes."""


def _changed(acc: Accumulator) -> list[Any]:
    return [getattr(acc, name) for name in CHANGED]


def _weight(layer: Any, name: str, xp: Any) -> Any:
    """Gamma or beta of a batch norm; None where it has none."""
    value = getattr(layer, name, None)
    return None if value is None else xp.convert_to_tensor(value)


def _sigma(epsilon: float, variance: Any, xp: Any) -> Any:
    variance = variance + np.float32(epsilon)
    # Not a plain quotient by a root: compilers would make it an inexact `rsqrt`.
    root = np.sqrt(variance) if xp is numpy_ops else sqrt(variance)
    return xp.maximum(root, np.float32(1e-18))


def _factor(gamma: Any, epsilon: float, variance: Any, xp: Any) -> Any:
    sigma = _sigma(epsilon, variance, xp)
    return inverse_of(sigma, xp) if gamma is None else gamma / sigma


def _batch_moments(acc: Accumulator, guess: Any, unit: Any) -> tuple[Any, Any]:
    """Mean and variance of the sums over all axes but the last, as real values."""
    # The moving mean is near the batch's.
    mean, variance = moments(acc.values, guess - acc.bias)
    return (mean + acc.bias) * unit, variance * unit * unit


@keras.saving.register_keras_serializable("intact")
class ChannelScale(keras.layers.Layer):
    """`gamma * x + beta` along the last axis, with weights that train.

    Args:
        channels: Size of the last axis.
        scale: Whether there is a gamma.
        center: Whether there is a beta.
    """

    def __init__(
        self, channels: int, scale: bool = True, center: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.channels, self.scale, self.center = channels, scale, center
        shape = (channels,)
        self.gamma: Any = 1.0
        self.beta: Any = 0.0
        if scale:
            self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        if center:
            self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros")
        self.built = True

    def call(self, x: Any) -> Any:
        """Scaled and shifted values."""
        return x * self.gamma + self.beta

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def get_config(self) -> dict[str, Any]:
        own = {"channels": self.channels, "scale": self.scale, "center": self.center}
        return {**super().get_config(), **own}


def channel_scale(
    name: str, channels: int, tracer: Any, gamma: Any = None, beta: Any = None
) -> ChannelScale:
    """A `ChannelScale` with a user's variables; the same one for the same variables.

    Args:
        name: Its name.
        channels: Size of the last axis.
        tracer: The tracer.
        gamma: The factors, or None.
        beta: The offsets, or None.
    """

    def make() -> ChannelScale:
        channel_layer = ChannelScale(channels, gamma is not None, beta is not None, name=name)
        for variable, value in ((channel_layer.gamma, gamma), (channel_layer.beta, beta)):
            if value is not None:
                variable.assign(np.broadcast_to(to_numpy(value).reshape(-1), (channels,)))
        channel_layer.trainable = any(is_trainable(v) for v in (gamma, beta))
        return channel_layer

    return tracer.once((gamma, beta, "scale"), make)


@register_op
class Scale(ByChannel):
    """Trained factors and offsets of the channels; folds into the weights before it."""

    keras_layers = (ChannelScale,)
    cases = (
        Case(lambda: ChannelScale(3), (4, 5, 3)),
        Case(lambda: lambda x: ChannelScale(4, center=False)(layers.Dense(4)(x)), (5, 3)),
        Case(lambda: ChannelScale(3, scale=False), (3,)),
    )

    def folds_into_weights(self, layer: Any, shape: tuple) -> bool:
        return True

    def fold(self, layer: Any, acc: Accumulator, training: bool, xp: Any = ops) -> Accumulator:
        if layer.scale:
            acc = scale_channels(acc, xp.convert_to_tensor(layer.gamma))
        # Also without an offset: a factor of 0 must leave a scale that is not 0.
        return add_bias(acc, layer.beta if layer.center else 0.0, xp)

    def shift(self, layer: Any, amount: np.ndarray) -> None:
        if layer.center:
            gamma = to_numpy(layer.gamma) if layer.scale else 1.0
            layer.beta.assign(to_numpy(layer.beta) + gamma * amount)

    def accumulator(self, layer: Any, acc: Accumulator, xp: Any = ops) -> Accumulator:
        return self.fold(layer, acc, False, xp)

    def factors(self, layer: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
        ones = np.ones(channels, "float32")
        factor = numpy_ops.convert_to_tensor(layer.gamma) if layer.scale else ones
        return factor, numpy_ops.convert_to_tensor(layer.beta) if layer.center else 0 * ones


@register_op
class Rescaling(ByChannel):
    """A product and sum by constants, as a depthwise convolution of size 1."""

    keras_layers = (layers.Rescaling,)
    folds_batch_norm = True
    cases = (
        Case(lambda: layers.Rescaling(1 / 127.5, -1.0), (4, 5, 3), low=0.0, high=255.0),
        Case(lambda: layers.Rescaling([2.0, -0.5, 3.0], [0.0, 1.0, -4.0]), (4, 3)),
        Case(lambda: lambda x: x * 2.0 + 1.0, (6,)),
        Case(lambda: lambda x: 1.0 - x / 4.0, (6,)),
    )

    def before_move(self, layer: Any, move: Any) -> Any:
        one = np.size(layer.scale) == np.size(layer.offset) == 1
        return layer if one else super().before_move(layer, move)

    def factors(self, layer: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
        ones = np.ones(channels, "float32")
        return ones * np.asarray(layer.scale, "float32"), ones * np.asarray(layer.offset, "float32")

    def accumulator(self, layer: Any, acc: Accumulator, xp: Any = ops) -> Accumulator:
        factor, offset = self.factors(layer, acc.weight_scale.shape[0])
        return add_bias(scale_channels(acc, xp.convert_to_tensor(factor)), offset, xp)


@register_op
class Normalization(Op):
    """A product and sum by constants, from the adapted mean and variance."""

    keras_layers = (layers.Normalization,)
    litert = ("DEPTHWISE_CONV_2D",)
    notes = "The last axis only."
    cases = (
        Case(lambda: layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 4.0, 0.5]), (4, 3)),
        Case(
            lambda: layers.Normalization(mean=[0.1, -0.2], variance=[1.0, 4.0], invert=True),
            (3, 3, 2),
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if not layer.built:
            tracer.refuse(layer, "it has not been adapted to data")
        mean, variance = (to_numpy(t) for t in (layer.mean, layer.variance))
        if mean.size not in (1, mean.shape[-1]):
            tracer.refuse(layer, f"its axis is {layer.axis}, and only the last axis is supported")
        mean, sigma = mean.reshape(-1), np.maximum(np.sqrt(variance.reshape(-1)), 1e-7)
        if layer.invert:
            scale, offset = sigma, mean
        else:
            scale, offset = 1 / sigma, -mean / sigma
        rescaling = layers.Rescaling(scale.tolist(), offset.tolist(), name=layer.name)
        return tracer.emit(rescaling, args[0])
