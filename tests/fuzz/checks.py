"""What must hold for every model: it is quantized rightly, or refused with reasons."""

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

import intact
from fuzz.models import Sample
from intact.graph.view import view
from intact.layers.fake_quantize import FakeQuantize, tensor_name
from intact.layers.quantized import Quantized
from intact.ops import REGISTRY, get_op

INEXACT = [op for op in REGISTRY if op.cases and not any(case.exact for case in op.cases)]
"""Ops that are within 1 LSB of LiteRT."""


def check(sample: Sample) -> str:
    """Take a model the whole way.

    Args:
        sample: The model, and data for it.

    Returns:
        What became of it: "quantized", or why it was refused.
    """
    model = sample.model
    data = sample.data if len(sample.data) > 1 else sample.data[0]
    expected = _predict(model, sample.data)
    if expected is None or not all(np.isfinite(y).all() for y in expected):
        return "invalid: not a number, or not even Keras computes it"
    _check_float_file(model, data, expected, sample)
    try:
        q = intact.quantize_model(model)
        intact.calibrate(q, data, verbose=0)
        content = intact.export(q, integer_only=True)
    except intact.IntactError as error:
        return f"refused: {_reason(error, model)}"
    _check_equal(q, content, data)
    findings = intact.verify(content)
    assert not findings, str(findings)
    _check_wide(model, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.keras"
        q.save(path)
        assert intact.export(keras.saving.load_model(path), integer_only=True) == content
    return "quantized"


def _predict(model: keras.Model, data: list[np.ndarray]) -> list[np.ndarray] | None:
    """The outputs, flat; None where Keras finds only now that it cannot compute them."""
    try:
        outputs = model(data if len(data) > 1 else data[0], training=False)
    except Exception:
        return None
    # Truth values too, so that they can be told apart by subtraction.
    return [keras.ops.convert_to_numpy(y).astype("float32") for y in keras.tree.flatten(outputs)]


def _reason(error: intact.IntactError, model: keras.Model) -> str:
    """An error's reason without names; it must name a layer of the model."""
    text = str(error)
    names = [str(name) for name in _names(model)]
    if "no ranges to calibrate" in text:
        return "nothing to quantize"
    assert any(name in text for name in names), f"names no layer: {text}"
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "_")
    return text.split(": ", 1)[-1].split(". ")[0]


def _names(model: Any) -> list[str]:
    names = []
    for node in view(model).nodes:
        names.append(node.layer.name)
        if isinstance(node.layer, keras.Model):
            names += _names(node.layer)
    return names


def _check_float_file(model: keras.Model, data: Any, expected: list, sample: Sample) -> None:
    try:
        content = intact.export(model)
    except intact.IntactError as error:
        _reason(error, model)
        return
    found = intact.load_litert(content).predict(data)
    found = list(found.values()) if isinstance(found, dict) else [found]
    # As near as Keras' own results when the inputs change in their last digits.
    rng = np.random.default_rng(0)
    nearby = []
    for _ in range(3):
        noise = (1 + 1e-6 * rng.normal(size=a.shape) for a in sample.data)
        moved = [(a * n).astype(a.dtype) for a, n in zip(sample.data, noise, strict=True)]
        nearby.append(_predict(model, moved) or expected)
    for ours, theirs, *others in zip(expected, found, *nearby, strict=True):
        assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
        assert np.isfinite(theirs).all(), "not a number in the float file"
        near = np.max([np.abs(o - ours) for o in others], axis=0)
        span = np.abs(ours).max() if ours.size else 0.0
        gap = np.abs(ours - theirs)
        wrong = gap > 2e-5 + 2e-4 * np.abs(ours) + 1e-5 * span + 30 * near.max()
        assert not wrong.any(), f"float file: {gap.max()} off, {wrong.mean():.2%} of the values"


def _check_equal(q: keras.Model, content: bytes, data: Any) -> None:
    comparison = intact.compare(q, content, data)
    depth = _depths(q)
    for tensor in comparison.layers:
        limit = {0: 1e-3, 1: 1.001}.get(depth[tensor.name])
        assert limit is None or tensor.max_lsb <= limit, f"{tensor.name}:\n{comparison}"
    limit = 40.0 if any(depth.values()) else 1e-3
    assert comparison.max_lsb <= limit, str(comparison)


def _check_wide(model: keras.Model, data: Any) -> None:
    """The same with 16-bit activations, where every op is exact that has kernels for them."""
    try:
        q = intact.calibrate(intact.quantize_model(model, "int16x8"), data, verbose=0)
        content = intact.export(q, integer_only=True)
    except intact.IntactError:
        return
    comparison = intact.compare(q, content, data)
    for tensor in (*comparison.layers, *comparison.outputs):
        assert tensor.max_lsb <= 1e-3, f"int16x8: {tensor.name}:\n{comparison}"


def _depths(q: keras.Model) -> dict[str, int]:
    """Per quantized tensor: 0 if all ops before it are exact, 1 if only its own is not."""
    depth: dict[int, int] = {}
    named: dict[str, int] = {}
    for node in view(q).nodes:
        before = max((depth[id(t)] for t in node.inputs), default=0)
        layer = node.layer
        if before or (isinstance(layer, Quantized) and get_op(layer.layer) in INEXACT):
            # Its quantizer is a part of the op.
            before += isinstance(layer, Quantized) and not before
            before = 2 if isinstance(layer, Quantized) and depth_of_inputs(node, depth) else before
        for tensor in node.outputs:
            depth[id(tensor)] = before
        if isinstance(layer, FakeQuantize):
            named[tensor_name(layer, node.kwargs)] = before
    return named


def depth_of_inputs(node: Any, depth: dict[int, int]) -> int:
    return max((depth[id(t)] for t in node.inputs), default=0)
