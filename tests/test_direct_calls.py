"""Quantized models on torch, which calls their layers without Keras' machinery around them."""

import gc
import weakref

import keras
import numpy as np
import pytest
from small import cnn, enliven, host

import intact
from intact.layers import fake_quantize, quantized_model, tracked_range
from intact.layers.direct_calls import can_call_directly
from intact.numerics.backend_kernels import TORCH

pytestmark = pytest.mark.skipif(not TORCH, reason="other backends trace a model once")


@pytest.fixture
def images(rng):
    return rng.normal(size=(16, 8, 8, 3)).astype("float32")


def trained(images, rng):
    """The weights of a model that took three steps, and its predictions."""
    keras.utils.set_random_seed(0)
    q = intact.quantize_model(enliven(cnn(), rng), schedule=intact.Schedule(quant_delay=1))
    q.compile(keras.optimizers.SGD(0.01), "mse")
    q.fit(images, np.ones((16, 4)), batch_size=8, epochs=3, shuffle=False, verbose=0)
    return [*map(host, q.variables), host(q(images)), q.predict(images, verbose=0)]


def test_direct_calls_compute_what_keras_calls_do(images, monkeypatch):
    direct = trained(images, np.random.default_rng(0))
    monkeypatch.setattr(quantized_model, "can_call_directly", lambda inputs: False)
    for ours, expected in zip(direct, trained(images, np.random.default_rng(0)), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_ranges_on_the_host_are_those_of_tensors(images, monkeypatch):
    numbers = trained(images, np.random.default_rng(0))
    for module in (tracked_range, fake_quantize):
        monkeypatch.setattr(module, "number_ops", lambda *x: keras.ops)
    for ours, expected in zip(numbers, trained(images, np.random.default_rng(0)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_hooks_of_torch_are_called(images, rng):
    q = intact.calibrate(intact.quantize_model(enliven(cnn(), rng)), images, verbose=0)
    seen = []
    q.get_layer("conv").register_forward_hook(lambda layer, args, y: seen.append(layer.name))
    q(images)
    assert seen == ["conv"]


def test_symbolic_and_half_precision_inputs_take_the_long_way(images):
    assert can_call_directly([keras.ops.convert_to_tensor(images)])
    assert not can_call_directly(keras.Input((4,)))
    q = intact.quantize_model(cnn())
    outer = keras.Sequential([keras.Input((8, 8, 3)), q])
    assert outer.output_shape == (None, 4)
    with keras.src.backend.AutocastScope("float16"):
        assert not can_call_directly(keras.ops.convert_to_tensor(images))


def test_stateless_calls_leave_the_ranges_alone(images):
    q = intact.quantize_model(cnn())
    before = [host(v) for v in q.non_trainable_variables]
    trained = [v.value for v in q.trainable_variables]
    fixed = [v.value for v in q.non_trainable_variables]
    _, after = q.stateless_call(trained, fixed, images, training=True)
    for variable, expected in zip(q.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(host(variable), expected)
    assert any((host(new) != old).any() for new, old in zip(after, before, strict=True))


def test_tensors_that_nothing_reads_any_more_are_freed(images):
    q = intact.quantize_model(cnn())
    q(images)
    alive = []

    class Watch(keras.layers.Layer):
        def call(self, x):
            gc.collect()
            alive.append(sum(ref() is not None for ref in seen))
            return x

    seen = []
    for layer in q.layers:
        if isinstance(layer, fake_quantize.FakeQuantize):
            layer.register_forward_hook(lambda layer, args, y: seen.append(weakref.ref(y.values)))
    outer = keras.Sequential([q, Watch()])
    outer.predict(images, verbose=0)
    # The last one may live in a frame that has not ended.
    assert len(seen) > 3 and alive[-1] < 2
