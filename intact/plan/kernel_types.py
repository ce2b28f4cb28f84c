"""Adapts the quantization of weights and inputs to the kernels."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from intact.errors import IntactError
from intact.ops.base import NotQuantized, Op, Weight, Weighted
from intact.plan.plan import Step
from intact.plan.scheme import Rule, TensorSpec


def _as_kernels_have_it(
    layer: keras.layers.Layer, op: Op, spec: TensorSpec, activations: TensorSpec | None
) -> TensorSpec:
    """A spec of weights, in the first of its forms that the kernel takes."""
    if spec.kind != "int":
        return spec
    if activations is not None and not isinstance(op, Weighted):
        # The slopes of a PReLU are part of an activation.
        return TensorSpec(symmetric=True, per_axis=True)
    *preferred, last = spec.forms
    for form in preferred:
        takes = (_takes(w, getattr(layer, n), form, activations) for n, w in op.weights.items())
        if all(takes) and (activations is None or op.stores(layer, form)):
            return form
    return last


def _takes(weight: Weight, value: Any, form: TensorSpec, activations: TensorSpec | None) -> bool:
    """Whether kernels take a weight in a form."""
    if activations is None:
        known = weight.alone
    elif activations.dynamic:
        known = weight.dynamic
    else:
        known = () if activations.activation_dtype == "int16" else weight.kernels
    return form.form in known and form.layout(weight.layout).fits(value.shape)


def _has_one_scale(weights: TensorSpec | None) -> bool:
    """Whether all weights of a layer share one scale, chosen by their range."""
    return weights is not None and not weights.per_axis and weights.rule.name == "range"


def _taken_in(spec: TensorSpec) -> TensorSpec:
    """The spec of a layer's input, if only that of its output is known."""
    return TensorSpec() if spec.rule.signs else spec


def _fixed_input(name: str, stats: tuple[float, float], spec: TensorSpec) -> tuple[float, float]:
    """Scale and zero point of an input whose real values are `(q - mean) / std`."""
    mean, std = stats
    if not (np.isfinite([mean, std]).all() and std > 0):
        raise IntactError(
            f"Expected a finite mean, and std > 0, for input {name!r}. Received: {stats!r}."
        )
    wide = spec.activation_dtype == "int16"
    low, high = (0, 0) if wide else (128, 128) if spec.symmetric else (0, 255)
    # Keras holds signed integers; 127.5 becomes 128.
    zero_point = float(np.rint(mean))
    if not low <= zero_point <= high or spec.bits not in (8, 16):
        raise IntactError(
            f"Input {name!r} is quantized to {spec.activation_dtype}"
            f"{' with a zero point in the middle' if spec.symmetric else ''}, where mean, which is "
            f"the zero point of unsigned integers, is between {low} and {high}. "
            f"Received: mean={mean!r}. Shift the values, or leave its range to calibration."
        )
    return 1 / std, zero_point - (0 if wide else 128)


def _without_type(op: Op, step: Step) -> str | None:
    """Why an op's activations have no kernel, or None if they have one."""
    assert step.activations is not None
    dtype = step.activations.activation_dtype
    known = dtype in op.dtypes or op.output == NotQuantized("bool")
    return None if known else f"it has no {dtype} kernel, but of {', '.join(op.dtypes)}"


def _without_kernel(op: Op, step: Step) -> str | None:
    """Why an op's weights have no kernel, or None if they have one."""
    weights, activations = step.weights, step.activations
    if weights is None:
        return None
    if activations is None:
        return (
            f"weights have 2 to 8 bits, and the rule says {weights.bits}" if weights.wide else None
        )
    for name, weight in op.weights.items():
        known = weight.dynamic if activations.dynamic else weight.kernels
        if weights.form not in known and not (weights.wide and "int8" in weight.kernels):
            return (
                f"its {name} cannot have {weights.bits}-bit weights of type {weights.dtype}, "
                f"but of {', '.join(known)}"
            )
        if (weights.kind == "uint") != (activations.kind == "uint" and not activations.dynamic):
            return "unsigned weights go with unsigned activations, and no others"
        if weights.quantizer == "range" and not weights.symmetric and weights.kind == "int":
            return f"its {name} cannot have a zero point: the rule needs `symmetric=True`"
    return None


def _as_op_has_it(rule: Rule, op: Op | None) -> Rule:
    """A rule for 16-bit activations, with 8 bits if the op's kernels take only these."""
    spec = rule.activations
    if op is None or not rule.integer or spec is None or op.output == NotQuantized("bool"):
        return rule
    if spec.activation_dtype != "int16" or "int16" in op.dtypes or "int8" not in op.dtypes:
        return rule
    narrow = TensorSpec(observer=spec.observer, momentum=spec.momentum)
    return replace(rule, activations=narrow)
