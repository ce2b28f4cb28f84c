"""The battery: every case of every op, the whole way through."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import pytest
from battery import LOSSY, UPSTREAM, Case, all_cases, build_model, first, make_data
from small import host

import intact
from intact.layers.fake_quantize import FakeQuantize
from intact.ops import REGISTRY

CASES = [
    pytest.param(name, case, id=name, marks=pytest.mark.xdist_group(name))
    for name, _, case in all_cases()
]
per_case = pytest.mark.parametrize(("name", "case"), CASES)
_made = {}


@dataclass
class Made:
    """What the tests of a case share; they change none of it.

    Args:
        case: The case.
        model: Its float model.
        q: The calibrated model.
        data: Data for it.
        untrained: What the quantized model made of it before it was calibrated.
        found: What the calibrated one makes of it.
    """

    case: Case
    model: keras.Model
    q: keras.Model
    data: Any
    untrained: np.ndarray
    found: np.ndarray

    @cached_property
    def expected(self) -> np.ndarray:
        """What the float model makes of the data."""
        return self.model.predict(self.data, verbose=0)

    @property
    def span(self) -> float:
        return float(self.expected.max() - self.expected.min())


@pytest.fixture
def made(name, case):
    if name not in _made:
        rng = np.random.default_rng(11)
        model, data = build_model(case, rng), make_data(case, rng)
        q = intact.quantize_model(model)
        untrained = q.predict(data, verbose=0)
        with warnings.catch_warnings():
            if name in LOSSY:
                warnings.simplefilter("ignore", intact.AccuracyWarning)
            intact.calibrate(q, data, verbose=0)
        found = q.predict(data, verbose=0)
        _made[name] = Made(case, model, q, data, untrained, found)
    return _made[name]


@pytest.fixture
def same_in_keras(name, made):
    backend = keras.backend.backend()
    first = any(getattr(x, "data_format", None) == "channels_first" for x in made.model.layers)
    if backend == "tensorflow" and first:
        pytest.skip("on a CPU TensorFlow has its channels last")
    if (backend, name) in UPSTREAM:
        pytest.skip("this backend's own float layer computes something else")


def test_every_op_has_cases():
    own = [op for op in REGISTRY if op.__module__.startswith("intact.ops")]
    bare = [op for op in own if op.keras_layers and not (op.cases or op.float_cases)]
    assert not [op.__name__ for op in bare]


@per_case
def test_equals_litert(made):
    content = intact.export(made.q, output_dtype="int8", integer_only=True)
    file = intact.load_litert(content)
    scale, _ = file.interpreter.get_output_details()[0]["quantization"]
    gap = np.abs(file.predict(made.data) - made.found).max() / scale
    if gap > (1e-3 if made.case.exact else 1.001):
        pytest.fail(str(intact.compare(made.q, content, made.data)))


@per_case
def test_close_to_float(made, same_in_keras):
    error = np.abs(made.found - made.expected)
    # A few quantization steps; but for the few values beside a jump of the function.
    assert np.quantile(error, 0.98) <= 0.05 * made.span, (error.max(), made.span)


@per_case
def test_integer_only_file_has_integer_tensors(made):
    content = intact.export(made.q, input_dtype="int8", output_dtype="uint8", integer_only=True)
    runtime = intact.load_litert(content).interpreter
    dtypes = {np.dtype(d["dtype"]).name for d in runtime.get_tensor_details()}
    assert "float32" not in dtypes
    expected = "int8" if made.case.dtype == "float32" else made.case.dtype
    assert {np.dtype(d["dtype"]).name for d in runtime.get_input_details()} == {expected}
    assert {np.dtype(d["dtype"]).name for d in runtime.get_output_details()} == {"uint8"}
    findings = intact.verify(content)
    assert not findings, str(findings)


@per_case
def test_float_export_equals_keras(made, same_in_keras):
    found = intact.load_litert(intact.export(made.model)).predict(made.data)
    np.testing.assert_allclose(found, made.expected, atol=2e-5, rtol=2e-4)


@per_case
def test_gradients_reach_the_weights(made):
    q = intact.quantize_model(made.model)
    if not q.trainable_variables:
        pytest.skip("no weights")
    size = made.case.batch or 16
    data = first(made.data, size)
    normalized = any("batch_normalization" in v.path for v in q.variables)
    before = [keras.ops.convert_to_numpy(v).copy() for v in q.trainable_variables]
    target = np.random.default_rng(3).normal(size=(size, *q.output_shape[1:]))
    q.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=keras.backend.backend() == "jax")
    q.fit(data, target, epochs=1, batch_size=size, verbose=0)
    for old, variable in zip(before, q.trainable_variables, strict=True):
        new = keras.ops.convert_to_numpy(variable)
        assert np.isfinite(new).all()
        # The mean that a batch norm takes away takes the gradient of a bias with it. A bias of the
        # keys moves all scores of a query alike, and their softmax does not see it.
        unseen = variable.path.endswith("key/bias") or (
            variable.path.endswith("bias") and normalized
        )
        if not unseen:
            assert (new != old).any(), variable.path


@per_case
def test_saves_and_loads(made, tmp_path):
    made.q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    for new, old in zip(loaded.variables, made.q.variables, strict=True):
        if "seed" not in old.path:
            np.testing.assert_array_equal(host(new), host(old))
    assert intact.export(loaded) == intact.export(made.q)


@per_case
def test_batch_is_dynamic(made):
    if made.case.batch:
        pytest.skip("its batch is fixed")
    model = intact.load_litert(intact.export(made.q))
    whole = model.predict(made.data, batch_size=32)
    np.testing.assert_array_equal(model.predict(made.data, batch_size=5), whole)


@per_case
def test_untrained_model_computes_in_float(made, same_in_keras):
    quantizers = [layer for layer in made.q.layers if isinstance(layer, FakeQuantize)]
    assert quantizers
    if not any(layer.fixed for layer in quantizers):
        assert np.abs(made.untrained - made.expected).max() <= 0.02 * made.span
