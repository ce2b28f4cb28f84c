"""The battery: every case of every op, the whole way through."""

import keras
import numpy as np
import pytest
from battery import all_cases, build_model, first, make_data

import intact
from intact.ops import REGISTRY
from intact.quantizers import FakeQuantize

CASES = [
    pytest.param(name, case, id=name, marks=pytest.mark.xdist_group(name))
    for name, _, case in all_cases()
]
per_case = pytest.mark.parametrize(("name", "case"), CASES)
_made = {}

# Keras on torch repeats the edge where SAME average pooling leaves values out of the mean,
# unlike its other backends and every runtime.
UPSTREAM = {("torch", "AveragePooling2D-1")}


@pytest.fixture
def same_in_keras(name):
    if (keras.backend.backend(), name) in UPSTREAM:
        pytest.skip("this backend's own float layer computes something else")


@pytest.fixture
def calibrated(name, case):
    """Model, calibrated model and data of a case; made once, for the tests change none."""
    if name not in _made:
        rng = np.random.default_rng(11)
        model, data = build_model(case, rng), make_data(case, rng)
        q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
        _made[name] = case, model, q, data
    return _made[name]


def test_every_op_has_cases():
    assert not [op.__name__ for op in REGISTRY if not op.cases and op.keras_layers]


@per_case
def test_equals_litert(calibrated):
    case, _, q, data = calibrated
    comparison = intact.compare(q, intact.export(q, integer_only=True), data)
    for tensor in (*comparison.outputs, *comparison.layers):
        assert tensor.max_lsb <= (1e-3 if case.exact else 1.001), str(comparison)


@per_case
def test_close_to_float(calibrated, same_in_keras):
    _, model, q, data = calibrated
    expected = model.predict(data, verbose=0)
    error = np.abs(q.predict(data, verbose=0) - expected)
    span = expected.max() - expected.min()
    # A few quantization steps; but for the few values beside a jump of the function.
    assert np.quantile(error, 0.98) <= 0.05 * span, (error.max(), span)


@per_case
def test_integer_only_file_has_integer_tensors(calibrated):
    _, _, q, _ = calibrated
    content = intact.export(q, input_dtype="int8", output_dtype="uint8", integer_only=True)
    runtime = intact.load_litert(content).interpreter
    dtypes = {np.dtype(d["dtype"]).name for d in runtime.get_tensor_details()}
    assert "float32" not in dtypes
    assert {np.dtype(d["dtype"]).name for d in runtime.get_input_details()} == {"int8"}
    assert {np.dtype(d["dtype"]).name for d in runtime.get_output_details()} == {"uint8"}


@per_case
def test_float_export_equals_keras(calibrated, same_in_keras):
    _, model, _, data = calibrated
    if any(
        "Elementwise" in str(step.op) or step.op == "Table"
        for step in intact.plan_model(model).steps
    ):
        pytest.skip("tables are for integer files")
    found = intact.load_litert(intact.export(model)).predict(data)
    np.testing.assert_allclose(found, model.predict(data, verbose=0), atol=2e-5, rtol=2e-4)


@per_case
def test_gradients_reach_the_weights(calibrated):
    _, model, _, data = calibrated
    q = intact.quantize_model(model)
    if not q.trainable_variables:
        pytest.skip("no weights")
    data = first(data, 16)
    normalized = any("batch_normalization" in v.path for v in q.variables)
    before = [keras.ops.convert_to_numpy(v).copy() for v in q.trainable_variables]
    target = np.random.default_rng(3).normal(size=(16, *q.output_shape[1:]))
    q.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=False)
    q.fit(data, target, epochs=1, batch_size=16, verbose=0)
    for old, variable in zip(before, q.trainable_variables, strict=True):
        new = keras.ops.convert_to_numpy(variable)
        assert np.isfinite(new).all()
        # The mean that a batch norm takes away takes the gradient of a bias with it.
        if not (variable.path.endswith("bias") and normalized):
            assert (new != old).any(), variable.path


@per_case
def test_saves_and_loads(calibrated, tmp_path):
    _, _, q, data = calibrated
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    data = first(data, 8)
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), q.predict(data, verbose=0))
    assert intact.export(loaded) == intact.export(q)


@per_case
def test_batch_is_dynamic(calibrated):
    _, _, q, data = calibrated
    model = intact.load_litert(intact.export(q))
    whole = model.predict(data, batch_size=32)
    np.testing.assert_array_equal(model.predict(data, batch_size=5), whole)


@per_case
def test_untrained_model_computes_in_float(calibrated, same_in_keras):
    _, model, _, data = calibrated
    q = intact.quantize_model(model)
    assert any(isinstance(layer, FakeQuantize) for layer in q.layers)
    expected = model.predict(data, verbose=0)
    span = expected.max() - expected.min()
    fixed = any(layer.fixed for layer in q.layers if isinstance(layer, FakeQuantize))
    if not fixed:
        assert np.abs(q.predict(data, verbose=0) - expected).max() <= 0.02 * span
