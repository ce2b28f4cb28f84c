"""The toolkit's schemes, as intact's."""

from collections.abc import Callable
from typing import ClassVar

import keras

from intact.layers.sparsity import keep_clusters, keep_sparsity
from intact.plan.scheme import Rule, Scheme, TensorSpec
from intact.schemes import int8


class Default8BitQuantizeScheme(Scheme):
    """The scheme `int8`: 8 bits, weights with a scale per output channel.

    Example:

    >>> Default8BitQuantizeScheme().rules == intact.schemes.int8.rules
    True
    """

    def __init__(self) -> None:
        super().__init__("default_8bit", int8.rules)


class Preserving(Default8BitQuantizeScheme):
    """A scheme whose weights keep something of the float model's while they train."""

    keeps: ClassVar[tuple[Callable[[keras.Model], None], ...]]
    """What `quantize_apply` calls with the quantized model."""


class Default8BitPrunePreserveQuantizeScheme(Preserving):
    """8 bits, and weights that are 0 stay 0 (PQAT): `intact.keep_sparsity`.

    Example:

    >>> [keep.__name__ for keep in Default8BitPrunePreserveQuantizeScheme().keeps]
    ['keep_sparsity']
    """

    keeps = (keep_sparsity,)


class Default8BitClusterPreserveQuantizeScheme(Preserving):
    """8 bits, and equal weights of a layer stay equal (CQAT): `intact.keep_clusters`.

    Args:
        preserve_sparsity: Weights that are 0 stay 0, too (PCQAT).

    Example:

    >>> scheme = Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True)
    >>> [keep.__name__ for keep in scheme.keeps]
    ['keep_clusters', 'keep_sparsity']
    """

    def __init__(self, preserve_sparsity: bool = False) -> None:
        super().__init__()
        keeps = (keep_clusters, keep_sparsity) if preserve_sparsity else (keep_clusters,)
        # The dataclass is frozen.
        object.__setattr__(self, "keeps", keeps)


class DefaultNBitQuantizeScheme(Scheme):
    """Weights and activations of other widths than 8 bits.

    Activations of more than 8 bits have the zero point 0, as their kernels demand.

    Args:
        disable_per_axis: One scale for each weight tensor, instead of one per output channel.
        num_bits_weight: Width of the weights.
        num_bits_activation: Width of the activations.

    Raises:
        IntactError: A width does not exist.

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
