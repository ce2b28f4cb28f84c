"""The verbs: quantize, export."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import keras

from intact.calibration.float_form import remember_float_model
from intact.calibration.without_data import correct_without_data
from intact.conversion import conversion
from intact.errors import (
    IntactError,
    MaskedOutputWarning,
    NotKeptWarning,
    ScheduleWarning,
    UnusedRuleWarning,
)
from intact.graph.canonicalize import canonicalize
from intact.graph.simplify import simplify
from intact.graph.view import is_graph, mask_of
from intact.layers.builder import build, flat
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.quantized_model import is_quantized, refuse_quantized
from intact.layers.ranges import check_calibrated, stand_in_ranges
from intact.layers.schedule import NEVER, Schedule, delay_left
from intact.layers.sharing import SharedWeight, find_shared_weights
from intact.litert.reader import read_bytes
from intact.lowering.lowering import lower
from intact.memory import separate_pages
from intact.names import IODtype, SchemeName, TargetName
from intact.paths import write_whole
from intact.plan.filters import Filters, LayerFilter
from intact.plan.plan import InputStats, Plan, States
from intact.plan.planner import make_plan
from intact.plan.scheme import Scheme
from intact.schemes import get_scheme
from intact.targets.c_array import c_array, c_name

IO_DTYPES = get_args(IODtype)


def quantize_model(
    model: keras.Model,
    scheme: SchemeName | Scheme = "int8",
    allow_float: bool = False,
    filters: Filters | None = None,
    schedule: Schedule | None = None,
    target: TargetName | None = None,
    input_stats: InputStats | None = None,
    fold_batch_norm: bool = False,
    states: States | None = None,
) -> keras.Model:
    """Make a quantized model of a float one.

    The result is an ordinary functional Keras model that computes on integer values as
    the device will. Calibrate it with `calibrate`, or train it with `fit`: the ranges of
    its activations start from the first data seen. The model given is not changed.

    Where all activations stay in float, biases are corrected at once: rounding the weights shifts
    the means of a layer's outputs, and batch norms tell by how much, without data (Nagel et al.,
    arXiv:1906.04721). A model with a `schedule` learns its biases in training.

    Args:
        model: A built Keras model, of any kind.
        scheme: The name of a preset, or a `Scheme`.
        allow_float: Keep layers without an integer form in float, in training and in the file,
            instead of refusing them. `explain` lists them beforehand.
        filters: Which layers are quantized: a regular expression that is searched for in
            their names, a list of them, or a function that takes a layer and returns a bool,
            as in Keras' `model.quantize`. The others stay in float, in training and in the
            file. Nested models and custom layers are looked into; a layer that intact knows
            as one, such as attention, is asked about as a whole. None: all layers.
        schedule: The training steps at which it begins to compute on integers, and at which ranges
            and batch norms freeze. Pass one, with any steps, to be able to change the steps later.
        target: Where the file will run, as for `export`: what cannot run there is refused now.
        input_stats: Inputs by name whose integers are known beforehand, such as the bytes of
            an image: `{"image": (mean, std)}` for `real = (q - mean) / std`, with q from 0 to
            255. The file's scale is `1 / std`, and its zero point `mean` (to the next integer)
            where it takes uint8, `mean - 128` where it takes int8. An input of 16 bits has
            its zero point, and so `mean`, at 0. It is an argument here, not of `calibrate`, because
            no other tensor can then share a range with the input.
        fold_batch_norm: Round weights with the factors of the batch norm behind them in
            them, in training, too, as `tf.contrib.quantize` did: for weights of one scale, or
            of a trained one, where the file has just that scale. Without, factors of channels
            go into the scales, which loses nothing where each channel has its own.
        states: Inputs by name that are states, and the outputs that are fed back to them at the
            next step, as the file's signature names them: `{"state_in": "state_out"}`. Both
            have one scale and zero point then, so that integers go round as they are.

    Returns:
        The quantized model, with the weights copied and the layers' names kept.

    Raises:
        InvalidModelError: The model is not built, or has weights that are not finite.
        UnsupportedLayerError: A layer has no integer form.
        TargetError: The target cannot run a layer.
        IntactError: `filters` are malformed, or choose no layer.
        IntactError: `input_stats` of no quantized input, or without a place in its integers.
        IntactError: `states` of no quantized input and output of the same shape.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu")])
    >>> q = quantize_model(model)
    >>> q.output_shape
    (None, 2)
    """
    refuse_quantized(model)
    chosen = LayerFilter(filters)
    scheme = get_scheme(scheme)
    with conversion(model):
        with separate_pages(model):
            canonical, shared = _canonical(model, scheme, chosen, loops=schedule is None)
        idle = chosen.check()
        if idle:
            warnings.warn(
                f"These filters match no layer's name: {', '.join(map(repr, idle))}.",
                UnusedRuleWarning,
                stacklevel=2,
            )
        plan = make_plan(canonical, scheme, allow_float, input_stats, fold_batch_norm, states)
        _warn_of_plan(model, plan, scheme)
        with separate_pages(model):
            quantized = build(canonical, plan, schedule, model)
            _warn_of_apart(shared, quantized.share_weights(model))
            if target is not None:
                with stand_in_ranges(quantized):
                    lower(quantized, target=target)
            observes = any(isinstance(layer, FakeQuantize) for layer in quantized.layers)
            if schedule is None and not observes:
                correct_without_data(quantized)
    remember_float_model(quantized, model)
    return quantized


def _warn_of_plan(model: keras.Model, plan: Plan, scheme: Scheme) -> None:
    """Warn of rules without layers, and of masks that the quantized model's outputs lack."""
    if plan.unused:
        warnings.warn(
            f"These rules of scheme {scheme.name!r} match no layer: "
            f"{', '.join(repr(rule.match) for rule in plan.unused)}. The first rule that matches "
            "a layer counts; `print(intact.explain(model))` shows the layers' names and types.",
            UnusedRuleWarning,
            stacklevel=3,
        )
    if is_graph(model) and any(mask_of(t) is not None for t in model.outputs):
        warnings.warn(
            f"An output of model {model.name!r} has a mask, which losses read. The quantized "
            "model's output has none: pass `sample_weight` when you train it.",
            MaskedOutputWarning,
            stacklevel=3,
        )


def _canonical(
    model: keras.Model, scheme: Scheme, chosen: LayerFilter, loops: bool
) -> tuple[keras.Model, list[SharedWeight]]:
    """The flat model that a scheme quantizes, and the weights that several of its layers copy.

    Args:
        model: The user's model.
        scheme: The scheme.
        chosen: The layers that are quantized.
        loops: As for `canonicalize`.
    """
    specs = [spec for rule in scheme.rules for spec in (rule.weights, rule.activations) if spec]
    # Steps of a schedule, and random numbers, are variables, which a loop cannot change.
    loops = loops and not any(spec.stochastic for spec in specs)
    canonical = canonicalize(model, chosen.rule, loops)
    if canonical.not_kept:
        warnings.warn(
            f"The quantized model trains without the losses of these layers of {model.name!r} "
            f"(`add_loss`, regularizers): {', '.join(canonical.not_kept)}. Add them to the loss "
            "that you compile it with, or exclude the layers with `filters`.",
            NotKeptWarning,
            stacklevel=3,
        )
    if canonical.not_trained:
        warnings.warn(
            f"Model {model.name!r} computes values from weights alone: from "
            f"{', '.join(canonical.not_trained)}. In the quantized model these values replace the "
            "weights: arrays train without the function, and single numbers are constants. If that "
            "is not what you want, train the float model first.",
            NotKeptWarning,
            stacklevel=3,
        )
    shared = find_shared_weights(canonical, model)
    return simplify(canonical, scheme), shared


def _warn_of_apart(wanted: Iterable[SharedWeight], kept: Iterable[SharedWeight]) -> None:
    """Warn of shared weights whose copies do not train as one."""
    copies = {weight.path: {copy.layer for copy in weight.copies} for weight in kept}
    apart = [w for w in wanted if len(copies.get(w.path, ())) < len(w.copies)]
    for weight in apart:
        layers = sorted({c.layer for c in weight.copies} - copies.get(weight.path, set()))
        warnings.warn(
            f"Weight {weight.path!r} is read in {len(weight.copies)} places. Its copies in "
            f"{', '.join(layers)} train by themselves, because these layers stay in float, or a "
            "factor is part of the copy. Train the float model first, or leave the quantized "
            "model as it is.",
            NotKeptWarning,
            stacklevel=3,
        )


def export(
    model: keras.Model,
    path: str | os.PathLike | None = None,
    input_dtype: IODtype = "float32",
    output_dtype: IODtype = "float32",
    integer_only: bool = False,
    target: TargetName | None = None,
    unroll: bool = False,
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
        target: Where the file is to run: "tflite-micro", "ethos-u55", "ethos-u65", "ethos-u85",
            "edgetpu" or "xnnpack". The file then has only kernels that are there, and fixed
            sizes (a batch of one) where the target takes no others. None is for LiteRT on any
            processor. `check` says how much of the file an NPU takes.
        unroll: Write the steps of recurrent layers one after the other. Otherwise eight equal
            steps or more are a loop (WHILE) where there is no `target`: the values are the same,
            the file is a fraction of the size, and small cells (16 units) take twice the time.

    Returns:
        The bytes of the file.

    Warns:
        ScheduleWarning: The model's `quant_delay` is not over.

    Raises:
        NotCalibratedError: The quantized model has seen no data.
        NotIntegerError: `integer_only`, and ops stay in float.
        TargetError: The target cannot run an op.
        ExportError: The path cannot be written.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> len(export(model)) > 0
    True
    """
    for name, dtype in (("input_dtype", input_dtype), ("output_dtype", output_dtype)):
        if dtype not in IO_DTYPES:
            raise IntactError(f"Expected {name} in {IO_DTYPES}. Received: {dtype!r}.")
    with conversion(model):
        with separate_pages(model):
            model = flat(model)
            if not is_quantized(model):
                real = get_scheme("float32")
                model = simplify(model, real)
                model = build(model, make_plan(model, real))
        left = delay_left(model)
        if left > 0:
            steps = "and quantization is switched off"
            steps = steps if left == NEVER else f"for {left:g} steps more"
            warnings.warn(
                f"Model {model.name!r} still trains in float, {steps}. The file is quantized "
                "nevertheless, with the ranges seen so far and weights not trained for it. "
                "Predictions are quantized, too, so `q.predict` shows how good the file is.",
                ScheduleWarning,
                stacklevel=2,
            )
        with separate_pages(model):
            content = lower(model, input_dtype, output_dtype, integer_only, target, not unroll)
    if path is not None:
        write_whole(content, path)
    return content


def write_c_array(
    file: str | os.PathLike | bytes, path: str | os.PathLike, name: str | None = None
) -> None:
    """Write a LiteRT file as C source, for microcontrollers that have no files.

    The source is an aligned constant array. The header has types, sizes, scales and zero points
    of inputs and outputs as defines, and the bytes of the arena if TFLite Micro is installed
    (`pip install 'keras-intact[targets]'`) and runs the file.

    Args:
        file: Path of a `.tflite` file of any origin, or its bytes.
        path: The source to write, such as "model.c"; the header goes beside it.
        name: The name of the array; by default, that of the source.

    Raises:
        IntactError: There is no such file, it is damaged, or the name is not a C identifier.
        ExportError: The source or header cannot be written.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> write_c_array(export(model), "dense.c")
    >>> print(Path("dense.h").read_text().splitlines()[0])
    /* A LiteRT model of ... bytes, written by intact. */
    """
    path = Path(path)
    content = read_bytes(file)
    header, source = c_array(content, name or c_name(path.name), path.with_suffix(".h").name)
    write_whole(source.encode(), path)
    write_whole(header.encode(), path.with_suffix(".h"))


def freeze_ranges(model: keras.Model, frozen: bool = True) -> None:
    """Freeze the ranges of a quantized model while it trains, or let them follow the data again.

    Args:
        model: A quantized model.
        frozen: Whether the ranges stay as they are.

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


__all__: list[Any] = [
    "export",
    "freeze_ranges",
    "is_quantized",
    "quantize_model",
    "write_c_array",
]
