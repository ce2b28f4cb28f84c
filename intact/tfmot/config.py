"""A layer's `QuantizeConfig`, read as a rule."""

from typing import Any

from intact.errors import IntactError
from intact.ops.registry import find_op
from intact.plan.scheme import FLOAT_RULE, Rule, TensorSpec
from intact.tfmot.quantizers import Quantizer


class QuantizeConfig:
    """How one layer is quantized; a subclass returns its quantizers.

    Only `quantize_apply` reads it, once. It does not replace the layer's weights and activation, so
    `set_quantize_weights` and `set_quantize_activations` are not called.

    * Weights and activation (or output): the layer computes on integers.
    * Weights alone: they are rounded, and the layer computes in float.
    * Activation or output alone, or nothing: a layer with a kernel stays in float; its
      output is quantized if the next layer is.

    Example:

    >>> class FourBits(QuantizeConfig):
    ...     def get_weights_and_quantizers(self, layer):
    ...         return [(layer.kernel, tfmot.quantizers.LastValueQuantizer(4, True, True, True))]
    ...
    ...     def get_activations_and_quantizers(self, layer):
    ...         quantizer = tfmot.quantizers.MovingAverageQuantizer(8, False, False, False)
    ...         return [(layer.activation, quantizer)]
    >>> tfmot = intact.tfmot.quantization.keras
    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 4))
    >>> rule_of_config(FourBits(), layer).weights.bits
    4
    """

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Quantizer]]:
        """Pairs of a weight and its quantizer.

        Args:
            layer: The layer, built.
        """
        return []

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Quantizer]]:
        """Pairs of an activation function of the layer and its quantizer.

        Args:
            layer: The layer, built.
        """
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list) -> None:
        """Not called: rounded weights are computed where they are used."""

    def set_quantize_activations(self, layer: Any, quantize_activations: list) -> None:
        """Not called: the output of an activation is quantized behind it."""

    def get_output_quantizers(self, layer: Any) -> list[Quantizer]:
        """The quantizer of the layer's output, in a list.

        Args:
            layer: The layer, built.
        """
        return []

    def get_config(self) -> dict[str, Any]:
        """The arguments of its constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeConfig":
        """A config of what `get_config` returned."""
        return cls(**config)


def rule_of_config(config: QuantizeConfig, layer: Any) -> Rule:
    """The rule for a layer with a config.

    Args:
        config: The config.
        layer: The layer, built.

    Returns:
        The rule.

    Raises:
        IntactError: A quantizer is of another type, or several differ where there can be only one.
    """
    pairs = [*config.get_weights_and_quantizers(layer)]
    bias = getattr(layer, "bias", None)
    if bias is not None and any(weight is bias for weight, _ in pairs):
        raise IntactError(
            f"{_both(config, layer)} quantizes the bias. A bias has 32 bits, at the scale of the "
            "sums that it is added to: leave it out of `get_weights_and_quantizers`."
        )
    outputs = [quantizer for _, quantizer in config.get_activations_and_quantizers(layer)]
    # What stands behind the activation comes last.
    outputs = list(config.get_output_quantizers(layer)) or outputs
    weights = _spec([quantizer for _, quantizer in pairs], config, layer, activation=False)
    activations = _spec(outputs, config, layer, activation=True)
    op = find_op(layer)
    has_kernel = bool(op.weights) if op else bool(getattr(layer, "weights", None))
    if weights is None and (has_kernel or activations is None):
        return FLOAT_RULE
    return Rule(None, weights or Rule().weights, activations)


def _spec(
    quantizers: list[Any], config: QuantizeConfig, layer: Any, activation: bool
) -> TensorSpec | None:
    for quantizer in quantizers:
        if not isinstance(quantizer, Quantizer):
            raise IntactError(
                f"{_both(config, layer)} returns {quantizer!r} of type "
                f"{type(quantizer).__name__} for a quantizer. Expected one of "
                "`tfmot.quantization.keras.quantizers`, or a subclass of its `Quantizer`."
            )
    specs = [quantizer.spec(activation) for quantizer in quantizers]
    if any(spec != specs[0] for spec in specs):
        what = "activations" if activation else "weights"
        raise IntactError(
            f"{_both(config, layer)} has different quantizers for the {what} of one layer: "
            f"{quantizers!r}. A layer has one."
        )
    return specs[0] if specs else None


def _both(config: QuantizeConfig, layer: Any) -> str:
    return f"{type(config).__name__} of {type(layer).__name__} {layer.name!r}"
