"""What random models have found, one small model each."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import lossy, mlp, quantizers, ready

import intact
from fuzz.checks import check
from fuzz.models import Sample
from intact.testing import randomize

# Random models need not be accurate in integers.
pytestmark = lossy


def image(*shape):
    return keras.Input(shape or (6, 6, 3))


def batch_norm_that_folds_in_one_place_only():
    x, norm = image(), layers.BatchNormalization()
    return x, [norm(layers.Conv2D(3, 3)(x)), norm(x)]


def batch_norm_that_folds_in_the_second_place():
    x, norm = image(), layers.BatchNormalization()
    return x, norm(layers.Conv2D(3, 3)(layers.ReLU()(norm(x))))


def a_squeeze_behind_an_extremum():
    x = keras.Input((4, 1))
    limits = np.linspace(-1, 1, 4, dtype="float32")[:, None]
    return x, layers.Dense(3)(ops.squeeze(ops.maximum(x, limits)))


def a_batch_norm_behind_a_loop():
    x = keras.Input((8, 2))
    return x, layers.Dense(7)(layers.BatchNormalization()(layers.SimpleRNN(2)(x)))


def an_angle_with_a_number():
    x = keras.Input((5,))
    return x, ops.arctan2(x, -3.7)


def layers_on_two_shapes():
    x, y, conv, pool = image(), image(9, 8, 3), layers.Conv2D(3, 3), layers.MaxPooling2D()
    return [x, y], [pool(conv(x)), pool(pool(conv(y)))]


def merges_of_several_ranks():
    x, y = image(), image(6, 3)
    merges = (layers.Add, layers.Subtract, layers.Multiply, layers.Maximum, layers.Average)
    return [x, y], [merge()([x, y]) for merge in merges]


def sizes_that_are_open_and_too_small_at_first():
    x = image(None, None, 3)
    return x, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 5, strides=2)(x))


def an_output_that_is_an_input_of_open_sizes():
    x = image(None, None, 3)
    return x, [x, layers.ReLU()(x), x]


def two_outputs_of_one_reshape():
    x = image(20)
    y = layers.Reshape((4, 5))(layers.Dense(20)(x))
    return x, [layers.ReLU()(y), y]


def a_concatenation_of_fixed_ranges():
    x = image(6)
    return x, layers.Concatenate()([layers.Activation("tanh")(x), layers.ReLU(0.3)(x)])


def a_difference_of_five_axes():
    x, y = image(2, 3, 4, 2), image(1, 3, 1, 2)
    return [x, y], layers.Subtract()([x, y])


def an_operand_beside_which_the_other_is_nothing():
    x = image(60)
    y = layers.ReLU()(x * 1e-5)
    return x, [x + y, y - x, layers.LeakyReLU(0.001)(x)]


def sums_of_astronomical_numbers():
    x = image(20)
    return x, layers.Add()([ops.exp(x * 20.0), x])


def a_hard_silu_of_large_numbers():
    x = image(20)
    return x, layers.Activation("hard_silu")(x * 1e6)


def a_hard_silu_of_negative_numbers():
    x = image(20)
    return x, layers.Activation("hard_silu")(ops.relu(x) * -40.0)


def outputs_of_truth_values():
    x = image(20)
    return x, [ops.not_equal(x, 0.5), ops.any(x > 2.0, axis=1, keepdims=True), x]


MODELS = [
    outputs_of_truth_values,
    a_hard_silu_of_large_numbers,
    a_hard_silu_of_negative_numbers,
    sums_of_astronomical_numbers,
    batch_norm_that_folds_in_one_place_only,
    batch_norm_that_folds_in_the_second_place,
    a_squeeze_behind_an_extremum,
    a_batch_norm_behind_a_loop,
    an_angle_with_a_number,
    layers_on_two_shapes,
    merges_of_several_ranks,
    sizes_that_are_open_and_too_small_at_first,
    an_output_that_is_an_input_of_open_sizes,
    two_outputs_of_one_reshape,
    a_concatenation_of_fixed_ranges,
    a_difference_of_five_axes,
    an_operand_beside_which_the_other_is_nothing,
]


def sample(make, rng):
    inputs, outputs = make()
    model = keras.Model(inputs, outputs)
    randomize(model, rng)
    shapes = [(16, *(7 if n is None else n for n in x.shape[1:])) for x in model.inputs]
    return Sample(model, [rng.normal(size=shape).astype("float32") for shape in shapes])


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_is_quantized(make, rng):
    assert check(sample(make, rng)) == "quantized"


def a_difference_of_what_is_nearly_the_same(x):
    return layers.Subtract()([x * 1.0, x * 1.0000001])


def a_sum_that_is_nearly_nothing(x):
    return layers.Add()([x * 1.0, x * -1.0000001])


def a_clip_of_astronomical_numbers(x):
    return layers.Activation("hard_tanh")(x * 1e12)


NOTHING_BESIDE = [
    a_clip_of_astronomical_numbers,
    a_difference_of_what_is_nearly_the_same,
    a_sum_that_is_nearly_nothing,
]


@pytest.mark.parametrize("make", NOTHING_BESIDE, ids=lambda make: make.__name__)
def test_outputs_that_are_nothing_beside_inputs_have_a_wider_range(make, rng):
    # In their own range LiteRT's kernels overflow, or end the process.
    x = keras.Input((20,))
    data = rng.normal(size=(16, 20)).astype("float32")
    q = intact.calibrate(intact.quantize_model(keras.Model(x, make(x))), data, verbose=0)
    assert_equal(q, intact.export(q), data)


def test_a_range_that_is_nothing_beside_the_sums_saturates(rng):
    q = ready(intact.quantize_model(mlp()))
    quantizers(q)["hidden_relu"].set_range(0.0, 1e-7)
    data = rng.normal(size=(64, *q.input_shape[1:])).astype("float32")
    assert_equal(q, intact.export(q), data)


def assert_equal(q, content, data):
    """What a model computes in Keras is what its file computes."""
    assert not any(tensor.different for tensor in intact.compare(q, content, data).outputs)


def test_an_image_without_a_batch_is_refused():
    x = keras.Input((4, 2))
    model = keras.Model(x, layers.Resizing(2, 1, interpolation="nearest", name="resize")(x))
    with pytest.raises(intact.UnsupportedLayerError, match="'resize' is not supported: it takes"):
        intact.quantize_model(model)


def test_scores_of_a_negative_scale_are_refused():
    x = keras.Input((3, 4))
    model = keras.Model(x, layers.Attention(use_scale=True, name="attention")([x, x]))
    model.get_layer("attention").scale.assign(-0.5)
    with pytest.raises(intact.UnsupportedLayerError, match="'attention' is not supported: its sc"):
        intact.export(model)


def test_weights_along_an_axis_in_the_middle_are_refused():
    # They would be taken for those of the last axis, where that has as many values.
    x = keras.Input((4, 4))
    model = keras.Model(x, layers.LayerNormalization(axis=1, name="norm")(x))
    with pytest.raises(intact.UnsupportedLayerError, match="'norm' is not supported: its weights"):
        intact.export(model)
