"""From a plan to a quantized Keras model: ordinary layers, on integer values.

On the edges of the quantized model run `QTensor`s; between
an op and its quantizer run the op's 32-bit sums. Everything else is an ordinary
functional Keras model.
"""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import keras
import numpy as np

from intact.layers.base import Gives, QuantizedLayer, activity_loss, class_for
from intact.layers.schedule import Schedule, make_clock, schedule_config, schedule_from_config
from intact.layers.sharing import SharesWeights, Siblings
from intact.numerics.accumulator import (
    Accumulator,
    accumulator,
    add_bias,
    exact_sums,
    rescaled,
    scale_channels,
)
from intact.numerics.affine import QTensor, WideTensor
from intact.numerics.backend_kernels import exact_convolution, inverse
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import PER_TENSOR, ScaleLayout
from intact.numerics.straight_through import reparametrized, tied
from intact.numerics.tensors import Tensor, is_trainable, to_numpy
from intact.numerics.weights import half_precision
from intact.ops.base import AllSame, NotQuantized, SameAsInput
from intact.ops.registry import get_op
from intact.plan.scheme import TensorSpec
from intact.quantizers.base import QuantizeContext
from intact.rounding.kernel_rounding import KernelRounding


@keras.saving.register_keras_serializable("intact")
class Quantized(QuantizedLayer, SharesWeights):
    """A layer that computes on integer values, with quantized weights.

    It has the name of the layer that it holds. Freeze it by `trainable = False` like
    any other; a frozen batch norm uses its moving statistics.

    Args:
        layer: The Keras layer.
        spec: How its weights are quantized, if it has any.
        input_shapes: The shapes of the inputs that the layer is built with.
        keep_zeros: Weights that are 0 stay 0.
        tied_weights: Names of the weights whose equal values stay equal.
        schedule: When rounding of weights begins in training, and when a batch norm freezes.
        corrected: What bias correction has added to its sums, per channel.
        norm: The batch norm behind it, if its factors are in the weights before these are
            rounded.
        wide: Whether its inputs have 16 bits.
        activity: The regularizer of its output, where no quantizer knows it.

    Example:

    >>> dense = Quantized(layers.Dense(2, name="head"), input_shapes=[(None, 4)])
    >>> dense
    <QuantizedDense name=head, built=True>
    """

    registered: ClassVar[type["Quantized"] | None] = None
    """The class that files name, if this one is called after the layer that it holds."""

    def __new__(cls, layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> "Quantized":
        """A layer of a class that is called after the class of the user's layer."""
        kind: Any = cls
        if cls.registered is None:
            kind = class_for(kind, type(layer).__name__)
        return super().__new__(kind, layer, *args, **kwargs)

    def __reduce__(self) -> Any:
        # Pickle looks classes up by name, and finds only the registered one.
        function, arguments = super().__reduce__()
        return getattr(self.registered, function.__name__), arguments

    def __init__(
        self,
        layer: keras.layers.Layer,
        spec: TensorSpec | None = None,
        input_shapes: Any = None,
        schedule: Schedule | None = None,
        keep_zeros: bool = False,
        tied_weights: Iterable[str] = (),
        corrected: Any = None,
        norm: keras.layers.BatchNormalization | None = None,
        wide: bool = False,
        activity: Any = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("name", layer.name)
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.spec = spec
        self.wide = wide
        self.activity = keras.regularizers.get(activity)
        self.corrected = None if corrected is None else np.asarray(corrected, "float32")
        # A list, for Keras would track and wrap a nested attribute.
        self.shapes = [tuple(shape) for shape in input_shapes]
        if not layer.built:
            layer.build(self.shapes[0] if len(self.shapes) == 1 else self.shapes)
        self.norm = norm
        if norm is not None and not norm.built:
            axes = get_op(layer).weights["kernel"].layout.axes
            norm.build((None, math.prod(layer.kernel.shape[a] for a in axes)))
        self.keep_zeros = keep_zeros
        # Per name of a weight, where the first weight of each one's value stands.
        self.firsts: dict[str, Any] = {}
        self.siblings: dict[str, Siblings] = {}
        # Per name of a quantized weight, the trained numbers that go with it: what they were
        # first, and how far training has moved them.
        self.learned: dict[str, dict[str, list[Any]]] = {}
        if spec is not None and spec.kind != "float":
            self._add_learned(spec)
        self.schedule = schedule
        timed = spec is not None or isinstance(layer, keras.layers.BatchNormalization)
        self.clock = make_clock(schedule) if timed else None
        for name in tied_weights:
            self._add_firsts(name)
        self.built = True

    @property
    def gives(self) -> Gives:
        """What a call returns."""
        output = get_op(self.layer).output
        if isinstance(output, NotQuantized):
            return "real"
        return "integers" if isinstance(output, SameAsInput | AllSame) else "sums"

    @property
    def label(self) -> str:
        """The class of the layer that it holds, and the types that it computes with."""
        types = ["int16" if self.wide else "int8"]
        types += [f"weights {self.spec.width}"] if self.spec and self.spec.bits != 8 else []
        return ", ".join([type(self.layer).__name__, *types])

    def _add_learned(self, spec: TensorSpec) -> None:
        for weight, layout in self.layouts().items():
            value = self.weight(weight, numpy_ops)
            setting = self._setting(layout.parts(value.ndim))
            first = spec.rule.weight_state(layout.split(value, numpy_ops), setting)
            self.learned[weight] = {
                name: [
                    self.add_weight(
                        name=f"{weight}_{name}_first",
                        shape=start.shape,
                        initializer=keras.initializers.Constant(start),
                        trainable=False,
                    ),
                    self.add_weight(
                        name=f"{weight}_{name}", shape=start.shape, initializer="zeros"
                    ),
                ]
                for name, start in first.items()
            }
        if spec.stochastic:
            self.seeds = keras.random.SeedGenerator()

    def _setting(
        self, layout: ScaleLayout, xp: Any = ops, training: bool = False, step: Any = None
    ) -> QuantizeContext:
        """The quantizer's context for a weight with some layout of scales."""
        spec = self.spec
        assert spec is not None
        noise = None
        if spec.stochastic and training:

            def noise(w: Tensor) -> Tensor:
                return keras.random.uniform(ops.shape(w), -0.5, 0.5, seed=self.seeds)

        power = spec.power_of_two
        return QuantizeContext(spec.bits, layout, spec.symmetric, power, xp, training, noise, step)

    def _add_firsts(self, name: str) -> None:
        size = getattr(self.layer, name).shape
        self.firsts[name] = self.add_weight(
            name=f"{name}_firsts",
            shape=(math.prod(size),),
            dtype="int32",
            initializer="zeros",
            trainable=False,
        )

    def tie(self) -> None:
        """Tie the weights that are equal now."""
        for name in self.layouts():
            w = to_numpy(getattr(self.layer, name)).reshape(-1)
            _, first, place = np.unique(w, return_index=True, return_inverse=True)
            if len(first) < len(w):
                if name not in self.firsts:
                    self._add_firsts(name)
                self.firsts[name].assign(first[place])

    def shareable(self) -> dict[str, Any]:
        """By name, the quantized weights that train and have no ties of their own."""
        names = () if self.spec is None else self.layouts()
        weights = {n: getattr(self.layer, n) for n in names if n not in self.firsts}
        return {name: value for name, value in weights.items() if is_trainable(value)}

    def weight(self, name: str, xp: Any = ops, training: bool = False) -> Tensor:
        """A float weight before quantization: equal where tied, and 0 without a gradient.

        Args:
            name: The weight's name.
            xp: `keras.ops`, or `numpy_ops`.
            training: Whether its gradient also reaches the other copies of a shared weight.
        """
        w = self._kept(name, xp, training)
        if self.norm is None:
            return w
        variance = xp.convert_to_tensor(self.norm.moving_variance)
        factor = self._norm_op.gain(self.norm, variance, xp)
        return w * get_op(self.layer).weights[name].layout.spread(factor, w.shape, xp)

    def _kept(self, name: str, xp: Any = ops, training: bool = False) -> Tensor:
        w = xp.cast(xp.convert_to_tensor(getattr(self.layer, name)), "float32")
        if training and name in self.siblings:
            w = self.siblings[name].with_gradients(w)
        if name in self.firsts and xp is numpy_ops:
            w = np.reshape(w.reshape(-1)[to_numpy(self.firsts[name])], w.shape)
        elif name in self.firsts:
            w = tied(w, self.firsts[name])
        if self.keep_zeros and xp is not numpy_ops:
            # Without a gradient, no optimizer moves it, so no mask has to be stored.
            w = w * ops.cast(ops.stop_gradient(w) != 0, "float32")
        return w

    def quantized_weights(
        self, xp: Any = ops, training: bool = False, now: Tensor | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Per name of a quantized weight, its whole numbers and scales.

        Args:
            xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.
            training: Whether the model trains.
            now: The training step, where there is a schedule; by default, that of its clock.
        """
        if self.spec is None:
            return {}
        weights = {}
        # Times 1, for TensorFlow takes no variable where a gradient is written down.
        one = np.float32(1)
        if now is None and self.clock is not None:
            now = xp.convert_to_tensor(self.clock.step)
        for name, layout in self.layouts().items():
            w = self.weight(name, xp, training)
            learned = self.learned.get(name, {})
            state = {
                key: reparametrized(
                    xp.convert_to_tensor(first), xp.convert_to_tensor(delta) * one, xp
                )
                for key, (first, delta) in learned.items()
            }
            parts = layout.split(w, xp)
            setting = self._setting(layout.parts(len(w.shape)), xp, training, now)
            n, scale = self.spec.rule.weights(parts, state, setting)
            scale = layout.stored(scale, xp)
            if self.clock is not None and training:
                on = self.clock.reached("quant_delay", now)
                n = ops.where(on, n, parts * inverse(scale))
            weights[name] = layout.merge(n, w.shape, xp), layout.flat(scale, xp)
        return weights

    def unrounded(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("folds"):
            return self(*args, **kwargs)
        layouts, weights = self.layouts(), {}
        for name, (_, scale) in self.quantized_weights().items():
            w = ops.convert_to_tensor(getattr(self.layer, name))
            weights[name] = (w / layouts[name].spread(scale, w.shape), scale)
        return self.compute(args[0], weights)

    def layouts(self) -> dict[str, ScaleLayout]:
        """Per name of a quantized weight, which of its values share a scale."""
        spec, weights = self.spec, get_op(self.layer).weights
        return {n: spec.layout(w.layout) if spec else PER_TENSOR for n, w in weights.items()}

    def real_weights(self, training: bool = False, now: Tensor | None = None) -> dict[str, Tensor]:
        """Per name of a quantized weight, its rounded values.

        Args:
            training: Whether the model trains.
            now: The training step, where there is a schedule.
        """
        if self.spec is not None and self.spec.kind == "float":
            exact = {name: self.weight(name, training=training) for name in self.layouts()}
            halves = {name: half_precision(w) for name, w in exact.items()}
            if self.clock is None or not training:
                return halves
            on = self.clock.reached("quant_delay", now)
            return {k: ops.where(on, half, exact[k]) for k, half in halves.items()}
        layouts = self.layouts()
        return {
            name: values * layouts[name].spread(scale, values.shape)
            for name, (values, scale) in self.quantized_weights(training=training, now=now).items()
        }

    def _tick(self, again: bool, training: bool | None) -> Tensor | None:
        """Count a training step; those before it, if there is a schedule."""
        return self.clock.tick(again) if self.clock is not None and training else None

    def call(
        self,
        inputs: Any,
        folds: bool = False,
        again: bool = False,
        training: bool | None = None,
    ) -> Any:
        """Compute on integer values.

        Args:
            inputs: A `QTensor` or a plain tensor, or a list of them; an accumulator for a
                folded layer.
            folds: The layer is a batch norm that follows into the weights before it; where
                it is called elsewhere too, it need not there.
            again: The layer is also called elsewhere, and counts its steps there.
            training: Whether batch norm uses the batch's statistics.

        Returns:
            What the op's `call` returns.
        """
        result = self._result(inputs, folds, again, training)
        if self.activity is not None:
            self.add_loss(activity_loss(self.activity, self._real(result, folds)))
        return result

    def _real(self, result: Any, folds: bool) -> Tensor:
        """The real values of what a call returns."""
        if self.gives == "integers":
            return result.values * result.scale
        if self.gives == "real":
            return result
        op = get_op(self.layer)
        rounding = "accumulator" if folds else op.rounding(self.layer, "int8")
        return KernelRounding.registry.find(rounding).real(result)

    def _result(self, inputs: Any, folds: bool, again: bool, training: bool | None) -> Any:
        now = self._tick(again, training)
        training = bool(training) and self.trainable
        moves: Any = training
        if training and now is not None and (self.spec is None or self.norm is not None):
            assert self.clock is not None
            moves = ops.logical_not(self.clock.reached("freeze_batch_norm", now))
        if folds:
            return get_op(self.layer).fold(self.layer, Accumulator(*inputs), moves)
        weights = self.quantized_weights(training=training, now=now)
        if self.norm is not None:
            return self._normalized(self._operand(inputs, moves), *weights["kernel"], moves)
        return self.compute(inputs, weights, moves)

    def _normalized(self, x: QTensor, kernel: Tensor, scale: Tensor, moves: Any) -> Accumulator:
        """Sums of weights that have the batch norm's factors in them.

        The weights have those of the moving variance, so that they do not follow each batch;
        while the statistics move, sums are multiplied by `sigma / sigma_batch`, and the bias is
        the batch's. The result is the batch norm of the batch, until that is frozen.

        Source: batch normalization with correction and freeze, arXiv:1806.08342.
        """
        op: Any = get_op(self.layer)
        norm: Any = self.norm
        fixed = moves is False or not norm.trainable
        acc = accumulator(None, x.scale, scale, whole=x.whole)
        if fixed:
            acc = self.accumulator(acc)
            kernel = rescaled(kernel, scale, acc, self.layouts()["kernel"])
        with exact_convolution():
            values, high, low = exact_sums(lambda v: op.products(self.layer, v, kernel), x)
        acc = acc._replace(values=values, high=high, low=low)
        if fixed:
            return acc
        sigma = self._norm_op.sigma(norm, ops.convert_to_tensor(norm.moving_variance))
        # Statistics are those of the float weights, by a second product.
        real = op.products(self.layer, x.values * x.scale, self._kept("kernel", training=True))
        bias = ops.zeros_like(sigma) if self.layer.bias is None else self.layer.bias * 1.0
        mean, variance = self._norm_op.statistics(norm, Accumulator(real, bias, 1.0, 1.0), moves)
        acc = scale_channels(acc, sigma / self._norm_op.sigma(norm, variance))
        return self._shifted(acc, mean, variance)

    def accumulator(self, acc: Accumulator, xp: Any = ops) -> Accumulator:
        """Sums with the layer's bias, and that of its batch norm.

        Args:
            acc: The sums without them; their values may be yet to be filled in.
            xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.
        """
        op: Any = get_op(self.layer)
        if self.norm is None:
            return op.accumulator(self.layer, acc, xp)
        mean, variance = (
            xp.convert_to_tensor(v) for v in (self.norm.moving_mean, self.norm.moving_variance)
        )
        return self._shifted(acc, mean, variance, xp)

    def _shifted(self, acc: Accumulator, mean: Any, variance: Any, xp: Any = ops) -> Accumulator:
        """Sums with the bias that the batch norm leaves."""
        norm: Any = self.norm
        bias = 0.0 if self.layer.bias is None else xp.convert_to_tensor(self.layer.bias)
        acc = add_bias(acc, (bias - mean) * self._norm_op.gain(norm, variance, xp), xp)
        return add_bias(acc, norm.beta, xp) if norm.center else acc

    @property
    def _norm_op(self) -> Any:
        return get_op(self.norm)

    def compute(self, inputs: Any, weights: dict[str, Any], moves: Any = False) -> Any:
        """The same, with the given weights.

        Args:
            inputs: As for a call.
            weights: As `quantized_weights` returns them.
            moves: Whether batch norm uses the batch's statistics.
        """
        op = get_op(self.layer)
        operands = [inputs] if len(self.shapes) == 1 else inputs
        taken = [
            x if index in op.plain else self._operand(x, moves) for index, x in enumerate(operands)
        ]
        return op.call(self.layer, taken, weights, moves)

    def _operand(self, parts: Any, moves: Any) -> QTensor:
        """An input; training does not need sums that are more exact than float32."""
        return WideTensor(*parts) if self.wide and moves is False else QTensor(*parts)

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        op = get_op(self.layer)
        operands = [inputs] if len(self.shapes) == 1 else inputs
        # Of this call: a layer may be called on several shapes.
        shapes = [(x if index in op.plain else x[0]).shape for index, x in enumerate(operands)]
        try:
            shape = self.layer.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes)
        except NotImplementedError:
            # A layer of the user's that leaves it to its `call`.
            symbols = [keras.KerasTensor(shape, "float32") for shape in shapes]
            operand = symbols[0] if len(symbols) == 1 else symbols
            shape = self.layer.compute_output_spec(operand).shape
        return op.pending_spec(self.layer, inputs, shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            layer=keras.saving.serialize_keras_object(self.layer),
            spec=None if self.spec is None else self.spec.get_config(),
            input_shapes=[list(shape) for shape in self.shapes],
            corrected=None if self.corrected is None else self.corrected.tolist(),
            keep_zeros=self.keep_zeros,
            tied_weights=list(self.firsts),
            schedule=schedule_config(self.schedule),
            wide=self.wide,
        )
        if self.norm is not None:
            config["norm"] = keras.saving.serialize_keras_object(self.norm)
        if self.activity is not None:
            config["activity"] = keras.saving.serialize_keras_object(self.activity)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Quantized":
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        if "norm" in config:
            config["norm"] = keras.saving.deserialize_keras_object(config["norm"])
        spec = config.pop("spec")
        spec = None if spec is None else TensorSpec.from_config(spec)
        schedule = schedule_from_config(config.pop("schedule", None))
        return cls(layer, spec=spec, schedule=schedule, **config)
