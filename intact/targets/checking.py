"""Checks whether a model or a file runs on a target, and where its ops run."""

import os
from typing import cast

import keras

from intact.api import export, quantize_model
from intact.calibration.sources import Data
from intact.layers.builder import flat
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.quantized_model import is_quantized
from intact.layers.ranges import stand_in_ranges
from intact.litert.kernels.targets import get_target
from intact.litert.reader import read_bytes
from intact.names import IODtype, SchemeName, Target, TargetName
from intact.plan.scheme import Scheme
from intact.targets.placement import Placement, place


def check(
    model: keras.Model | str | os.PathLike | bytes,
    target: Target,
    data: Data | None = None,
    scheme: SchemeName | Scheme = "int8",
) -> Placement:
    """Check whether a model or a file runs on a target, and where its ops run.

    The target's own tool decides: TFLite Micro runs the file and is compared with LiteRT's
    reference kernels, Vela compiles it for an Ethos-U, LiteRT delegates ops to XNNPACK. For the
    Edge TPU there are the rules of its documentation. The tools come with
    `pip install 'keras-intact[targets]'`.

    Args:
        model: Path of a `.tflite` file of any origin, or its bytes; or a Keras model, float or
            quantized. One without ranges gets some for the check: it may be asked before any
            training or calibration.
        target: "tflite-micro", "ethos-u55", "ethos-u65", "ethos-u85", "edgetpu" or "xnnpack"; an
            Ethos-U may have its number of MACs behind it, as in "ethos-u55-256".
        data: For "tflite-micro", the samples to run: arrays as for `calibrate`. Random integers
            by default.
        scheme: How a float model would be quantized.

    Returns:
        The placement, with the tool's figures; print it.

    Raises:
        MissingToolError: The target's tool is not installed.
        IntactError: There is no such file or target, or the tool refuses the file.

    Example:

    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(2, name="a"), keras.layers.Softmax(name="b")]
    ... )
    >>> print(check(model, "edgetpu"))
    edgetpu (rules of its documentation)
    <BLANKLINE>
       op               output  runs on   why
    0  FULLY_CONNECTED  a       Edge TPU
    1  SOFTMAX          b       Edge TPU
    <BLANKLINE>
    2 of 2 ops (100.0 %) run on Edge TPU.
    """
    if isinstance(model, keras.Model):
        return place(_file(model, target, scheme), target, data)
    return place(read_bytes(model), target, data)


def _file(model: keras.Model, target: Target, scheme: SchemeName | Scheme) -> bytes:
    """The file that a model would become, with integers in and out."""
    float_model = not is_quantized(model)
    model = quantize_model(model, scheme, allow_float=True) if float_model else flat(model)
    base = cast(TargetName, get_target(target))
    quantizers = (layer for layer in model.layers if isinstance(layer, FakeQuantize))
    dtypes = {quantizer.spec.activation_dtype for quantizer in quantizers}
    dtype = cast(IODtype, dtypes.pop() if len(dtypes) == 1 else "float32")
    with stand_in_ranges(model):
        return export(model, input_dtype=dtype, output_dtype=dtype, target=base)
