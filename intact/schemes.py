"""The presets: how a whole model is quantized, by name.

| name | weights | activations | calibration |
| --- | --- | --- | --- |
| `int8` | 8 bits, per channel | 8 bits | yes |
| `int8_dense_per_tensor` | 8 bits, per channel; one scale in `Dense` | 8 bits | yes |
| `int4` | 4 bits, per channel (transposed convolutions 8) | 8 bits | yes |
| `int16x8` | 8 bits, per channel | 16 bits, zero point 0 | yes |
| `uint8` | 8 bits unsigned, per tensor, with a zero point | 8 bits unsigned | yes |
| `dynamic_range` | 8 bits, per channel | float, 8 bits inside the kernels | no |
| `dynamic_range_4_blocks` | 4 bits, in blocks of 32 | float, 8 bits inside the kernels | no |
| `weight_only_8` | 8 bits, per channel | float | no |
| `weight_only_4` | 4 bits, per channel | float | no |
| `weight_only_4_blocks` | 4 bits, in blocks of 32 | float | no |
| `float16` | float16 | float | no |
| `float32` | float | float | no |

Blocks are those of `Dense` and `Embedding`; other layers have a scale per channel, and
convolutions of `dynamic_range_4_blocks` 8 bits.
"""

from keras import layers

from intact.plan.scheme import FLOAT_RULE, Rule, Scheme, TensorSpec
from intact.registry import Registry

_TENSOR_8 = TensorSpec(8, symmetric=True)
_CHANNELS_8 = TensorSpec(8, symmetric=True, per_axis=True)
_CHANNELS_4 = TensorSpec(4, symmetric=True, per_axis=True)

_BLOCKS_4 = TensorSpec(4, symmetric=True, block=32)

int8 = Scheme("int8")
# Kernels of microcontrollers and NPUs copy the scales of each FULLY_CONNECTED into their arena.
int8_dense_per_tensor = Scheme(
    "int8_dense_per_tensor", (Rule(layers.Dense, weights=_TENSOR_8), Rule())
)
int4 = Scheme("int4", (Rule(layers.Conv2DTranspose), Rule(weights=_CHANNELS_4)))
int16x8 = Scheme("int16x8", (Rule(activations=TensorSpec(16, symmetric=True)),))
uint8 = Scheme(
    "uint8", (Rule(weights=TensorSpec(kind="uint"), activations=TensorSpec(kind="uint")),)
)
dynamic_range = Scheme("dynamic_range", (Rule(activations=TensorSpec(dynamic=True)),))
_DYNAMIC = TensorSpec(dynamic=True)
# Not every kernel of a convolution with 4 bits is known to find its ranges as Keras does.
dynamic_range_4_blocks = Scheme(
    "dynamic_range_4_blocks",
    (
        Rule(layers.Conv2D, activations=_DYNAMIC),
        Rule(weights=_BLOCKS_4, activations=_DYNAMIC),
    ),
)
weight_only_8 = Scheme("weight_only_8", (Rule(weights=_CHANNELS_8, activations=None),))
weight_only_4 = Scheme("weight_only_4", (Rule(weights=_CHANNELS_4, activations=None),))
weight_only_4_blocks = Scheme("weight_only_4_blocks", (Rule(weights=_BLOCKS_4, activations=None),))
float16 = Scheme("float16", (Rule(weights=TensorSpec(16, kind="float"), activations=None),))
float32 = Scheme("float32", (FLOAT_RULE,))

SCHEMES: Registry[Scheme] = Registry("scheme", "Pass one of these, or an `intact.Scheme`.")
"""The presets by name."""

for _preset in (
    int8,
    int8_dense_per_tensor,
    int4,
    int16x8,
    uint8,
    dynamic_range,
    dynamic_range_4_blocks,
    weight_only_8,
    weight_only_4,
    weight_only_4_blocks,
    float16,
    float32,
):
    SCHEMES.add(_preset.name, _preset)


def get_scheme(scheme: str | Scheme) -> Scheme:
    """A scheme by name, or the scheme itself.

    Args:
        scheme: A name in `SCHEMES` or a `Scheme`.

    Returns:
        The scheme.

    Raises:
        IntactError: There is no preset of that name.

    Example:

    >>> get_scheme("int8").name
    'int8'
    """
    if isinstance(scheme, Scheme):
        return scheme
    return SCHEMES.find(scheme)
