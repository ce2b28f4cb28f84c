"""The verbs: quantize, export."""

import os
import warnings
from typing import Any

import keras

from intact.canonicalize import canonicalize
from intact.errors import IntactError, UnusedRuleWarning
from intact.lowering import lower, write_whole
from intact.plan import InputStats, Plan, make_plan
from intact.quantizers import FakeQuantize, check_calibrated
from intact.scheme import Scheme
from intact.schemes import get_scheme
from intact.training import Quantized, build

IO_DTYPES = ("float32", "int8", "uint8", "int16")


def quantize_model(
    model: keras.Model,
    scheme: str | Scheme = "int8",
    allow_float: bool = False,
    input_stats: InputStats | None = None,
) -> keras.Model:
    """Make a quantized model of a float one.

    The result is an ordinary functional Keras model that computes on integer values as
    the device will. Calibrate it with `calibrate`, or train it with `fit`: the ranges of
    its activations start from the first data seen. The model given is not changed.

    Args:
        model: A built Keras model, of any kind.
        scheme: The name of a preset, or a `Scheme`.
        allow_float: Keep in float what has no integer form, in training and in the file,
            rather than refuse it. `explain` says beforehand what that is.
        input_stats: Inputs by name whose integers are known beforehand, such as the bytes of
            an image: `{"image": (mean, std)}` for `real = (q - mean) / std`, with q from 0 to
            255. The file's scale is `1 / std`, and its zero point `mean` (to the next integer)
            where it takes uint8, `mean - 128` where it takes int8. An input of 16 bits has
            its zero point, and so `mean`, at 0. It is said here, not to `calibrate`, because
            tensors that would share a range with the input then cannot.

    Returns:
        The quantized model, with the weights copied and the layers' names kept.

    Raises:
        InvalidModelError: The model is not built, or has weights that are not finite.
        UnsupportedLayerError: A layer has no integer form.
        IntactError: `input_stats` of no quantized input, or without a place in its integers.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu")])
    >>> q = quantize_model(model)
    >>> q.output_shape
    (None, 2)
    """
    if is_quantized(model):
        raise IntactError(
            f"Model {model.name!r} is quantized already. Pass the float model it was made from."
        )
    canonical = canonicalize(model)
    scheme = get_scheme(scheme)
    plan = make_plan(canonical, scheme, allow_float, input_stats)
    if plan.unused:
        warnings.warn(
            f"These rules of scheme {scheme.name!r} count for no layer: "
            f"{', '.join(repr(rule.match) for rule in plan.unused)}. Layers have the names and "
            "types that `print(intact.plan_model(model))` shows, and the first rule that "
            "matches counts.",
            UnusedRuleWarning,
            stacklevel=2,
        )
    return build(canonical, plan)


def plan_model(
    model: keras.Model, scheme: str | Scheme = "int8", allow_float: bool = False
) -> Plan:
    """Say how a model would be quantized, without doing it.

    Args:
        model: A built Keras model.
        scheme: The name of a preset, or a `Scheme`.
        allow_float: As for `quantize_model`.

    Returns:
        The plan; print it.

    Raises:
        UnsupportedLayerError: A layer has no integer form.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu", name="a")])
    >>> print(plan_model(model))
    layer   op     type  output range
    a       Dense  int8  -
    a_relu  ReLU   int8  fused a_relu
    """
    return make_plan(canonicalize(model), get_scheme(scheme), allow_float)


def is_quantized(model: keras.Model) -> bool:
    """Whether a model came from `quantize_model`."""
    return isinstance(model, keras.Model) and any(
        isinstance(layer, FakeQuantize | Quantized) for layer in model.layers
    )


def export(
    model: keras.Model,
    path: str | os.PathLike | None = None,
    input_dtype: str = "float32",
    output_dtype: str = "float32",
    integer_only: bool = False,
) -> bytes:
    """Write a model as a LiteRT (`.tflite`) file.

    A quantized model becomes a file of integer kernels, with the outputs that it has in
    Keras; a float model becomes a float32 file.

    Args:
        model: A quantized or float Keras model.
        path: The file to write; None only returns the bytes.
        input_dtype: "float32", "int8" or "uint8": the type of the file's inputs; "int16" if
            the model has activations of 16 bits.
        output_dtype: The same for its outputs.
        integer_only: Raise if any op would stay in float.

    Returns:
        The bytes of the file.

    Raises:
        NotCalibratedError: The quantized model has seen no data.
        NotIntegerError: `integer_only`, and ops stay in float.
        ExportError: The path cannot be written.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> len(export(model)) > 0
    True
    """
    for name, dtype in (("input_dtype", input_dtype), ("output_dtype", output_dtype)):
        if dtype not in IO_DTYPES:
            raise IntactError(f"Expected {name} in {IO_DTYPES}. Received: {dtype!r}.")
    if not is_quantized(model):
        canonical = canonicalize(model)
        model = build(canonical, make_plan(canonical, get_scheme("float32")))
    content = lower(model, input_dtype, output_dtype, integer_only)
    if path is not None:
        write_whole(content, path)
    return content


def freeze_ranges(model: keras.Model, frozen: bool = True) -> None:
    """Stop (or let) the ranges of a quantized model follow the data while it trains.

    Args:
        model: A quantized model.
        frozen: Whether ranges stand still.

    Raises:
        NotCalibratedError: There are ranges to freeze that have seen no data.

    Example:

    >>> import numpy as np
    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model)
    >>> q = intact.calibrate(q, np.random.default_rng(0).normal(size=(100, 4)), verbose=0)
    >>> freeze_ranges(q)  # from here on, `q.fit(...)` trains the weights alone
    """
    if frozen:
        check_calibrated(model, "freezing its ranges")
    for layer in model.layers:
        if isinstance(layer, FakeQuantize):
            layer.trainable = not frozen


__all__: list[Any] = ["export", "freeze_ranges", "is_quantized", "plan_model", "quantize_model"]
