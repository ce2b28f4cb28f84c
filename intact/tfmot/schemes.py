"""The toolkit's schemes, as intact's."""

from intact.scheme import Rule, Scheme, TensorSpec
from intact.schemes import int8


class Default8BitQuantizeScheme(Scheme):
    """The scheme `int8`: 8 bits, weights with a scale per output channel.

    Example:

    >>> Default8BitQuantizeScheme().rules == intact.schemes.int8.rules
    True
    """

    def __init__(self) -> None:
        super().__init__("default_8bit", int8.rules)


class DefaultNBitQuantizeScheme(Scheme):
    """Weights and activations of other widths than 8 bits.

    Activations of more than 8 bits have the zero point 0, as their kernels demand.

    Args:
        disable_per_axis: One scale for each weight tensor, instead of one per output channel.
        num_bits_weight: Width of the weights.
        num_bits_activation: Width of the activations.

    Raises:
        IntactError: A width that there is not.

    Example:

    >>> rule = DefaultNBitQuantizeScheme(num_bits_weight=4).rules[-1]
    >>> rule.weights.bits, rule.activations.bits
    (4, 8)
    """

    def __init__(
        self,
        disable_per_axis: bool = False,
        num_bits_weight: int = 8,
        num_bits_activation: int = 8,
    ) -> None:
        per_axis = not disable_per_axis
        weights = TensorSpec(num_bits_weight, symmetric=True, per_axis=per_axis)
        activations = TensorSpec(num_bits_activation, symmetric=num_bits_activation > 8)
        name = f"w{num_bits_weight} a{num_bits_activation}"
        super().__init__(name, (Rule(None, weights, activations),))
