"""Native kernels give the numbers of the formulas."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import compiled, gradient, gradients, host, ready

import intact
from intact.numerics.affine import QTensor
from intact.numerics.backend_kernels import multiply_add, round_clip, shared, with_shape
from intact.numerics.integer_kernels import half_up
from intact.numerics.moments import batch_norm, moments
from intact.ops.relu import RequantizeRounding
from intact.rounding.kernel_rounding import KernelRounding


def test_round_clip_passes_the_gradient_inside_only():
    start = [-200.0, -127.6, -0.3, 0.0, 12.5, 126.4, 500.0]
    found = gradient(lambda w: round_clip(w, -128.0, 127.0), start)
    np.testing.assert_allclose(found, [0, 2, 3, 4, 5, 6, 0], rtol=1e-4)
    rounded = host(round_clip(np.array(start, "float32"), -128.0, 127.0))
    assert rounded.tolist() == [-128, -128, 0, 0, 12, 126, 127]


def test_round_clip_scales_values_and_gradient():
    start = [-3.0, -0.26, 0.0, 0.25, 0.74, 0.76, 9.0]
    found = gradient(lambda w: round_clip(w, -1.0, 3.0, 4.0), start)
    np.testing.assert_allclose(found, [0, 0, 12, 16, 20, 0, 0], rtol=1e-4, atol=1e-4)
    rounded = host(round_clip(np.array(start, "float32"), -1.0, 3.0, 4.0))
    assert rounded.tolist() == [-1, -1, 0, 1, 3, 3, 3]


def test_round_clip_has_a_gradient_for_its_factor():
    x = np.array([-3.0, -0.2, 0.5, 9.0], "float32")
    (found,) = gradients(lambda w: ops.sum(round_clip(x, -1.0, 3.0, w)), 4.0)
    np.testing.assert_allclose(host(found), -0.2 + 0.5, rtol=1e-5)


def test_multiply_add_broadcasts(rng):
    x, factor, offset = (rng.normal(size=n).astype("float32") for n in ((5, 3), 3, 3))
    found = host(multiply_add(*map(ops.convert_to_tensor, (x, factor, offset))))
    np.testing.assert_allclose(found, x * factor + offset, rtol=1e-5, atol=1e-6)


def test_halves_are_rounded_up_and_nothing_below_them():
    halves = np.arange(0, 300, dtype="float32") + np.float32(0.5)
    below, above = (np.nextafter(halves, np.float32(end)) for end in (0, 1e9))
    x = np.concatenate([halves, below, above, np.arange(300, dtype="float32"), [0.49999997, 2e6]])
    expected = np.floor(x.astype("float64") + 0.5)
    np.testing.assert_array_equal(host(half_up(ops.convert_to_tensor(x, "float32"))), expected)


SCALED = [
    rounding
    for rounding in KernelRounding.registry.values()
    if vars(type(rounding)).get("scaled", KernelRounding.scaled) is not KernelRounding.scaled
]


@pytest.mark.parametrize("rounding", SCALED, ids=lambda rounding: rounding.name)
def test_scaled_values_are_the_real_ones(rounding, rng):
    fields = {"scale": 0.01, "scale_a": 0.3, "scale_b": 0.02, "input_scale": 0.1, "share": 0.2}
    fields["weight_scale"] = np.array([0.2, -0.1, 0.3], "float32")

    def filled(kind):
        def value(name):
            return fields[name] if name in fields else rng.integers(-9, 9, (4, 3))

        parts = (np.asarray(value(name), "float32") for name in kind._fields)
        return kind(*map(ops.convert_to_tensor, parts))

    kind = rounding.takes
    operands = kind._fields == ("a", "b")
    pending = kind(*(filled(QTensor) for _ in kind._fields)) if operands else filled(kind)
    real, scaled = rounding.real(pending), rounding.scaled(pending).real()
    np.testing.assert_allclose(host(scaled), host(real), rtol=1e-5, atol=1e-6)


def test_a_rounding_of_other_real_values_has_other_scaled_ones():
    class Doubled(RequantizeRounding):
        def real(self, pending):
            return pending * 2.0

    x = ops.ones((2,))
    assert host(Doubled().scaled(x).real()).tolist() == [2.0, 2.0]


def test_moments_are_those_of_the_channels():
    x = np.random.default_rng(0).normal(300.0, 40.0, size=(8, 5, 6, 3)).astype("float32")
    mean, variance = (host(part) for part in moments(x, np.array([290.0, 300.0, 320.0], "float32")))
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, x.var((0, 1, 2)), rtol=1e-4)


def test_moments_have_the_gradients_of_their_formulas():
    x = np.random.default_rng(0).normal(size=12).astype("float32")

    def weighed(w):
        mean, variance = moments(ops.reshape(w, (2, 3, 2)), np.zeros(2, "float32"))
        return ops.concatenate([mean, variance, ops.zeros(8)])

    found = gradient(weighed, x).reshape(6, 2)
    centred = x.reshape(6, 2) - x.reshape(6, 2).mean(0)
    np.testing.assert_allclose(
        found, np.array([1, 2]) / 6 + np.array([3, 4]) * centred * 2 / 6, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("shape", [(8, 5, 6, 3), (40, 3), (10, 4, 3), (4, 2, 3, 2, 3)])
def test_batch_norm_has_the_numbers_and_gradients_of_its_formula(shape, rng):
    x = rng.normal(30.0, 4.0, size=shape).astype("float32")
    g = rng.normal(size=shape).astype("float32")
    gamma, beta = np.array([1.5, -0.5, 0.0], "float32"), np.array([0.0, 2.0, 3.0], "float32")
    epsilon = np.array([0.1, 5.0, 20.0], "float32")
    axes = tuple(range(len(shape) - 1))

    def plain(x, gamma, beta, epsilon):
        mean = ops.mean(x, axes)
        variance = ops.mean(ops.square(x - mean), axes)
        return (x - mean) * (gamma / ops.sqrt(variance + epsilon)) + beta, mean, variance

    def ours(x, *rest):
        return batch_norm(x, np.array([29.0, 30.0, 31.0], "float32"), *rest)

    given = [ops.convert_to_tensor(v) for v in (x, gamma, beta, epsilon)]
    for a, b in zip(ours(*given), plain(*given), strict=True):
        np.testing.assert_allclose(host(a), host(b), rtol=1e-4, atol=1e-4)

    def slopes(function):
        return gradients(
            lambda *given: ops.sum(function(*given)[0] * ops.convert_to_tensor(g)),
            x,
            gamma,
            beta,
            epsilon,
        )

    for a, b in zip(slopes(ours), slopes(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def residual(blocks, bias=True):
    """Convolutions with batch norms and sums, as a ResNet has them."""
    x = inputs = keras.Input((8, 8, 4))
    for _ in range(blocks):
        y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x)))
        y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", use_bias=bias)(y))
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, x)


def graph_of(model):
    """A model's inference as a TensorFlow graph."""
    import tensorflow as tf

    spec = tf.TensorSpec((None, 8, 8, 4), "float32")
    return tf.function(lambda x: model(x, training=False)).get_concrete_function(spec).graph


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow stores ops")
@pytest.mark.parametrize("bias", [True, False])
def test_a_quantized_graph_has_at_most_half_as_many_ops_again(bias):
    def size(model):
        return len(graph_of(model).get_operations())

    small, large = residual(1, bias), residual(4, bias)
    float_ops = size(large) - size(small)
    ops_ = [size(ready(intact.quantize_model(model))) for model in (small, large)]
    assert ops_[1] - ops_[0] <= 1.5 * float_ops


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow stores ops")
def test_shared_graphs_are_neither_copied_nor_optimized_at_each_call():
    from tensorflow.core.protobuf.config_pb2 import ConfigProto

    graph = graph_of(ready(intact.quantize_model(residual(1))))
    bodies = {f.signature.name: f.node_def for f in graph.as_graph_def().library.function}
    calls = [op for op in graph.get_operations() if op.type == "PartitionedCall"]
    assert calls
    for call in calls:
        config = ConfigProto.FromString(call.get_attr("config_proto"))
        assert config.graph_options.rewrite_options.disable_meta_optimizer
        body = bodies[call.get_attr("f").name]
        assert {node.op for node in body} <= {"PartitionedCall", "Identity"}
        assert call.get_attr("_references").name in bodies


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a format of TensorFlow")
def test_a_saved_model_gives_the_same_values(tmp_path, rng):
    import tensorflow as tf

    model = ready(intact.quantize_model(residual(1)))
    model.export(str(tmp_path), format="tf_saved_model", verbose=False)
    x = rng.normal(size=(2, *model.input_shape[1:])).astype("float32")
    saved = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(np.asarray(saved.serve(x)), model.predict(x, verbose=0))


def test_a_shared_function_has_its_values_and_gradients(rng):
    x = rng.normal(size=(5, 3)).astype("float32")

    def function(pair, scale, absent):
        assert absent is None
        a, b = pair
        return a * b * scale, scale + 1.0

    def called(x):
        y, scale = shared("test", function, (x, x), ops.max(x), None)
        return with_shape(y, (5, 3)), scale

    y, scale = (host(part) for part in compiled(called)(x))
    np.testing.assert_allclose(y, x * x * x.max(), rtol=1e-6)
    assert scale == x.max() + 1.0
    (slope,) = gradients(lambda x: ops.sum(compiled(lambda x: called(x)[0])(x)), x)
    expected = 2 * x * x.max()
    expected[x == x.max()] += (x * x).sum()
    np.testing.assert_allclose(slope, expected, rtol=1e-4)
