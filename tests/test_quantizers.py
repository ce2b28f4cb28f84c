"""The FakeQuantize layer."""

import keras
import numpy as np
import pytest
from small import host

import intact
from intact import TensorSpec
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.ranges import check_calibrated
from intact.numerics.affine import affine_params
from intact.rounding.kernel_rounding import KernelRounding


@pytest.fixture
def x(rng):
    return rng.uniform(-1.0, 3.0, size=(16, 5)).astype("float32")


def real(y):
    values, scale = host(y.values), host(y.scale)
    return values * scale


def state(layer):
    return [host(v) for v in layer.variables]


def test_ranges_start_from_the_first_data(x):
    x[0, 0] = 3.0
    layer = FakeQuantize()
    layer(x, training=True)
    np.testing.assert_allclose(host(layer.maximum), [3.0], rtol=1e-5)
    np.testing.assert_allclose(host(layer.scale), (3.0 - min(x.min(), 0)) / 255, rtol=1e-5)


def test_values_are_whole_numbers_within_half_a_step(x):
    layer = FakeQuantize()
    layer(x, training=True)
    for training in (False, True):
        values, scale, zero_point, _ = map(host, layer(x, training=training))
        assert (values == np.rint(values)).all()
        assert (values + zero_point).min() >= -128
        assert (values + zero_point).max() <= 127
        assert np.abs(values * scale - x).max() <= 0.5001 * scale
    # Beyond the range is saturated.
    far = host(layer(1e6 * np.sign(x))[0]) + host(layer.zero_point)
    assert set(far.ravel()) == {-128, 127}


def test_symmetric_range_has_zero_point_0(x):
    layer = FakeQuantize(TensorSpec(symmetric=True))
    layer(x, training=True)
    assert host(layer.zero_point) == 0
    np.testing.assert_allclose(host(layer.scale), np.abs(x).max() / 127, rtol=1e-5)
    # Where the kernels saturate.
    assert host(layer(-100 * np.abs(x))[0]).min() == -128


def test_a_range_ends_at_its_limit(x):
    layer = FakeQuantize(TensorSpec(symmetric=True, limit=2.0))
    values, scale, *_ = map(host, layer(x, training=True))
    np.testing.assert_allclose(scale, 2 / 127, rtol=1e-5)
    np.testing.assert_allclose(values * scale, np.minimum(x, 2.0), atol=0.51 * scale)
    small = FakeQuantize(TensorSpec(symmetric=True, limit=100.0))
    small(x, training=True)
    np.testing.assert_allclose(host(small.scale), np.abs(x).max() / 127, rtol=1e-5)
    with pytest.raises(intact.IntactError, match="limit above 0"):
        TensorSpec(limit=0.0)


def test_moving_average_while_training(x):
    layer = FakeQuantize(TensorSpec(momentum=0.9))
    for factor in (1.0, 2.0, 4.0):
        layer(factor * x, training=True)
    weights = np.array([0.81, 0.9, 1.0])
    expected = x.max() * (weights * [1, 2, 4]).sum() / weights.sum()
    np.testing.assert_allclose(host(layer.maximum), [expected], rtol=1e-5)


def test_inference_does_not_move_the_range(x):
    layer = FakeQuantize()
    layer(x, training=True)
    before = state(layer)
    layer(100 * x)
    layer(100 * x, training=False)
    for a, b in zip(before, state(layer), strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_range_does_not_move(x):
    layer = FakeQuantize()
    layer(x, training=True)
    layer.trainable = False
    before = state(layer)
    found = layer(10 * x, training=True)
    for a, b in zip(before, state(layer), strict=True):
        np.testing.assert_array_equal(a, b)
    assert real(found).max() <= x.max() + 0.01


def test_fixed_range_never_moves(x):
    layer = FakeQuantize(fixed=(1 / 256, -128))
    assert layer.calibrated
    values, scale, zero_point, _ = layer(100 * x, training=True)
    assert (float(host(scale)), float(host(zero_point))) == (1 / 256, -128.0)
    assert host(values).max() == 255
    assert len(layer.variables) == 2


def test_slots_share_the_union(x):
    layer = FakeQuantize(slots=3)
    for slot, factor in enumerate((1.0, -2.0, 0.5)):
        layer(factor * x, slot=slot, training=True)
    low, high = min(x.min(), -2 * x.max()), max(x.max(), -2 * x.min())
    scale, zero_point = affine_params(low, high)
    np.testing.assert_allclose(host(layer.scale), host(scale), rtol=1e-5)
    assert host(layer.zero_point) == host(zero_point)
    np.testing.assert_allclose(host(layer.maximum)[0], x.max(), rtol=1e-5)
    scales = [float(host(layer(x, slot=slot)[1])) for slot in range(3)]
    assert len(set(scales)) == 1


def test_all_slots_need_data(x):
    layer = FakeQuantize(slots=2)
    layer(x, slot=0, training=True)
    assert not layer.calibrated
    layer(x, slot=1, training=True)
    assert layer.calibrated


def test_a_later_slot_does_not_change_what_an_earlier_one_gave(x):
    layer = FakeQuantize(slots=2)
    first = layer(x, slot=0, training=True)
    before = real(first)
    layer(100 * x, slot=1, training=True)
    np.testing.assert_array_equal(real(first), before)


def test_without_data_it_lets_real_values_through(x):
    np.testing.assert_array_equal(real(FakeQuantize()(x)), x)
    found = real(FakeQuantize()(x, lower=0.0, upper=1.0))
    np.testing.assert_array_equal(found, x.clip(0, 1))


def test_fused_activation_clamps(x):
    layer = FakeQuantize()
    found = real(layer(x, lower=0.0, upper=1.0, training=True))
    np.testing.assert_allclose(host(layer.scale), 1 / 255, rtol=1e-5)
    assert np.abs(found - x.clip(0, 1)).max() <= 0.51 / 255
    # A range by hand that is wider than the clamp.
    layer.set_range(-4.0, 4.0)
    found = real(layer(x, lower=0.0, upper=1.0))
    assert found.min() == 0
    assert found.max() <= 1.0 + 0.51 * 8 / 255


def test_calibration_sees_real_values(x):
    for layer in (FakeQuantize(), FakeQuantize(fixed=(1 / 256, -128))):
        layer(x, training=True)
        before = state(layer)
        layer.observing = True
        np.testing.assert_array_equal(real(layer(2 * x)), 2 * x)
        np.testing.assert_array_equal(real(layer(x, lower=0.0, training=True)), x.clip(0))
        layer.observing = False
        np.testing.assert_array_equal(state(layer)[0], before[0])
        assert np.abs(real(layer(x)) - x).max() > 0


@pytest.mark.parametrize("value", [0.0, 4.0, -4.0])
def test_constant_tensors_are_safe_and_exact(value):
    layer = FakeQuantize()
    x = np.full((2, 3), value, "float32")
    layer(x, training=True)
    np.testing.assert_allclose(real(layer(x)), x, rtol=1e-5)


def test_set_range_and_reset(x):
    layer = FakeQuantize(slots=2)
    layer.set_range(-1.0, 1.55)
    assert layer.calibrated
    np.testing.assert_allclose(host(layer.scale), 0.01, rtol=1e-5)
    assert host(layer.zero_point) == -28
    layer.reset()
    assert not layer.calibrated


def test_check_calibrated_names_every_tensor():
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(2, name=f"d{i}")(inputs) for i in range(9)]
    q = intact.quantize_model(keras.Model(inputs, outputs))
    with pytest.raises(intact.NotCalibratedError, match="10 ranges of model") as error:
        check_calibrated(q, "shipping")
    assert str(error.value).count("_quantizer: behind Dense") == 9
    assert "before shipping" in str(error.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"spec": TensorSpec(16, symmetric=True, momentum=0.5), "slots": 3},
        {"fixed": (1 / 128, 0)},
    ],
)
def test_config_round_trip(kwargs):
    layer = FakeQuantize(**kwargs, name="range")
    again = FakeQuantize.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    for name, value in kwargs.items():
        assert getattr(again, name) == value
    assert [v.shape for v in again.variables] == [v.shape for v in layer.variables]


def test_arithmetics_are_found_by_name():
    assert {name: rule.name for name, rule in KernelRounding.registry.items()} == {
        name: name for name in KernelRounding.registry
    }
