"""Where the toolkit goes wrong, and what its own tests assert: each is a test here or elsewhere."""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from small import enliven, host, lossy, op_names, quantizers, ready

import intact
import intact.testing
from intact.layers.quantized import Quantized

HERE = Path(__file__).parent
# The twelve cases in which it goes wrong, and what its tests assert, each with the tests that say
# so of intact: "file::function".
TABLE = {
    "1 an untrained model outputs zeros": "testing::computes_in_float_before_calibration",
    "1 ranges start at 6": "test_quantizers::test_ranges_start_from_the_first_data",
    "1 the average is slow": "test_observers::test_a_constant_maximum_is_tracked_exactly",
    "2 a ReLU layer takes the kernel's quantizer": (
        "test_plan::test_one_range_at_the_tail_of_a_group"
    ),
    "2 and a custom config": "test_tfmot::test_a_config_holds_before_an_activation_layer",
    "3 depthwise channels share a scale": "test_tfmot::test_a_range_per_output_channel",
    "4 Dense and batch norm, inline swish": (
        "test_tfmot_conformance::test_integer_kernels_where_the_toolkit_has_float_ones"
    ),
    "5 Conv2DTranspose and batch norm": (
        "test_tfmot_conformance::test_integer_kernels_where_the_toolkit_has_float_ones"
    ),
    "6 pooling has its own range": "test_plan::test_moving_layers_pass_the_range_on",
    "6 pooling, tanh, relu6, leaky relu, resizing 1 LSB off": "testing::equals_litert",
    "7 more than 6 inputs": "test_plan::test_concatenation_of_eight_shares_one_range",
    "7 inputs that are quantized": "test_plan::test_fixed_input_of_a_concatenation_is_requantized",
    "8 trainable = False": "test_training::test_frozen_layers_keep_their_weights_and_statistics",
    "8 of the whole model": "test_training::test_a_frozen_model_keeps_its_ranges",
    "9 a .keras file does not load": "testing::saves_and_loads",
    "10 weight ranges lag": (
        "test_tfmot_conformance::test_scales_of_weights_follow_the_optimizer_at_once"
    ),
    "10 Fixed ignores its width": "test_tfmot::test_a_fixed_quantizer_has_its_width",
    "10 rank 3 and 5": "test_tfmot::test_a_range_per_output_channel",
    "11 16-bit activations": "test_tfmot::test_the_toolkits_schemes",
    "11 4-bit activations": "test_tfmot_conformance::test_4_bit_activations_convert",
    "12 a range per call": "test_plan::test_shared_layer_has_a_range_per_call",
    "quantizers: ranges": "test_tfmot::test_ranges_after_feeding",
    "quantizers: configs": "test_tfmot::test_quantizers_go_through_their_configs",
    "wrapping: saved": "test_tfmot::test_annotations_survive",
    "wrapping: nothing to do": "test_tfmot::test_a_config_of_nothing_changes_nothing",
    "API: twice": "test_tfmot::test_no_layer_is_annotated_twice",
    "API: Lambda": "test_tfmot::test_a_lambda_is_quantized_like_any_code",
    "API: errors": "test_tfmot::test_errors",
    "API: the user's config": "test_tfmot::test_the_users_config_is_preferred",
    "API: weights": "test_tfmot::test_weights_are_equal_but_not_the_same",
    "API: producers and inputs": "test_tfmot::test_what_an_annotated_layer_reads_is_quantized",
    "API: nested": "test_tfmot::test_nested_models_are_annotated_whole_or_in_part",
    "API: fixed ranges": "test_tfmot::test_fixed_ranges_are_exactly_those_of_the_file",
    "patterns: tails": "test_plan::test_one_range_at_the_tail_of_a_group",
    "patterns: SeparableConv": "test_training::test_separable_convolution_trains_as_in_float",
    "patterns: SeparableConv in all forms": (
        "test_tfmot_conformance::test_separable_convolutions_compute_the_same"
    ),
    "patterns: SeparableConv's regularizers and constraints": (
        "test_tfmot_conformance::test_separable_convolutions_keep_their_settings"
    ),
    "patterns: Add and ReLU": "test_tfmot_conformance::test_a_sum_and_its_activation_have_a_range",
    "patterns: concat of concat": (
        "test_plan::test_concatenation_of_concatenations_shares_one_range"
    ),
    "end to end: single layers, numerics": "testing::equals_litert",
    "end to end: full-integer": "testing::has_only_integers",
    "PQAT, CQAT, PCQAT": "test_tfmot_conformance::test_pruned_and_clustered_models_stay_so",
    "end to end: the MNIST CNN": "test_tfmot_guides::test_training_example",
    "end to end: checkpoints": (
        "test_training::test_saved_in_the_middle_training_continues_as_if_it_had_not_been"
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_case_has_its_test(case):
    name, _, function = TABLE[case].partition("::")
    # The checks of the battery, which test_ops.py runs on every case, are public.
    path = intact.testing.__file__ if name == "testing" else HERE / f"{name}.py"
    tree = ast.parse(Path(path).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


KERNELS = {
    "dense and batch norm": (
        lambda: [layers.Dense(4), layers.BatchNormalization()],
        (8,),
        ["FULLY_CONNECTED"],
    ),
    "inline swish": (
        lambda: [layers.Conv2D(4, 3, activation="swish")],
        (6, 6, 2),
        ["CONV_2D", "LOGISTIC", "MUL"],
    ),
    "transposed convolution and batch norm": (
        lambda: [layers.Conv2DTranspose(4, 3, strides=2), layers.BatchNormalization()],
        (6, 6, 2),
        ["TRANSPOSE_CONV"],
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_integer_kernels_where_the_toolkit_has_float_ones(name, rng):
    make, shape, expected = KERNELS[name]
    model = enliven(keras.Sequential([keras.Input(shape), *make()]), rng)
    data = rng.normal(size=(32, *shape)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert op_names(content) == ["QUANTIZE", *expected, "DEQUANTIZE"]
    # This allocates it, too.
    assert intact.compare(q, content, data).different == 0


def test_scales_of_weights_follow_the_optimizer_at_once(rng):
    model = enliven(keras.Sequential([keras.Input((6,)), layers.Dense(3, name="d")]), rng)
    q = intact.quantize_model(model)
    q.compile(keras.optimizers.SGD(0.5), "mse")
    q.fit(rng.normal(size=(8, 6)), rng.normal(size=(8, 3)), verbose=0)
    held = q.get_layer("d")
    _, scale = held.quantized_weights()["kernel"]
    np.testing.assert_allclose(host(scale), np.abs(host(held.layer.kernel)).max(0) / 127, rtol=1e-6)


@lossy
def test_4_bit_activations_convert(rng):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Conv2D(3, 3),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    keras_api = intact.tfmot.quantization.keras
    scheme = keras_api.experimental.default_n_bit.DefaultNBitQuantizeScheme(
        num_bits_weight=4, num_bits_activation=4
    )
    q = keras_api.quantize_apply(keras_api.quantize_annotate_model(enliven(model, rng)), scheme)
    data = rng.normal(size=(32, 6, 6, 2)).astype("float32")
    intact.calibrate(q, data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, data).different == 0
    assert len(np.unique(q.predict(data, verbose=0))) <= 16


def separable(rank, rng, **settings):
    made = getattr(layers, f"SeparableConv{rank}D")(4, 3, name="op", **settings)
    return enliven(keras.Sequential([keras.Input((9,) * rank + (2,)), made]), rng)


@pytest.mark.parametrize(
    "settings",
    [{"padding": "same"}, {"strides": 2}, {"dilation_rate": 2}, {"depth_multiplier": 2}],
    ids=lambda settings: next(iter(settings)),
)
def test_separable_convolutions_compute_the_same(settings, rng):
    model = separable(2, rng, **settings)
    q = intact.quantize_model(model)
    data = rng.normal(size=(16, 9, 9, 2)).astype("float32")
    # Without a range it computes in float, but for the rounded weights.
    np.testing.assert_allclose(q.predict(data, verbose=0), model.predict(data, verbose=0), atol=0.1)
    intact.calibrate(q, data, bias_correction=False, verbose=0)
    assert intact.compare(q, intact.export(q), data, per_layer=False).different == 0


@pytest.mark.parametrize("rank", [1, 2])
def test_separable_convolutions_keep_their_settings(rank, rng):
    model = separable(
        rank,
        rng,
        depthwise_regularizer="l2",
        pointwise_regularizer="l2",
        depthwise_constraint="max_norm",
        pointwise_constraint="max_norm",
        use_bias=False,
    )
    q = intact.quantize_model(model)
    assert len(q.losses) == len(model.losses) == 2
    held = {layer.name: layer.layer for layer in q.layers if isinstance(layer, Quantized)}
    depthwise, pointwise = held["op_depthwise"], held["op_pointwise"]
    assert isinstance(depthwise.depthwise_constraint, keras.constraints.MaxNorm)
    assert isinstance(pointwise.kernel_constraint, keras.constraints.MaxNorm)
    assert pointwise.bias is None


def test_a_sum_and_its_activation_have_a_range():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    total = layers.ReLU(name="relu")(layers.Add(name="sum")([a, b]))
    q = intact.quantize_model(keras.Model([a, b], total))
    assert sorted(quantizers(q)) == ["a", "b", "relu"]
    assert op_names(intact.export(ready(q))) == ["QUANTIZE", "QUANTIZE", "ADD", "DEQUANTIZE"]


@pytest.mark.parametrize("name", ["pruned", "clustered", "both"])
def test_pruned_and_clustered_models_stay_so(name, rng, tmp_path):
    combine = intact.tfmot.experimental.combine
    scheme = {
        "pruned": combine.Default8BitPrunePreserveQuantizeScheme,
        "clustered": combine.Default8BitClusterPreserveQuantizeScheme,
        "both": lambda: combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True),
    }[name]()
    dense = [layers.Dense(6, activation="relu", name="a"), layers.Dense(3, name="b")]
    model = enliven(keras.Sequential([keras.Input((8,)), *dense]), rng)
    for layer in dense:
        kernel = np.round(host(layer.kernel), 0 if name == "clustered" else 1)
        kernel = kernel + 0.25 * (name == "clustered")
        layer.kernel.assign(np.where(np.abs(kernel) < 0.3, 0.0, kernel))
    before = {layer.name: host(layer.kernel) for layer in dense}
    api = intact.tfmot.quantization.keras
    q = api.quantize_apply(api.quantize_annotate_model(model), scheme)
    q.compile(keras.optimizers.Adam(0.02), "mse")
    x, y = rng.normal(size=(64, 8)).astype("float32"), rng.normal(size=(64, 3))
    q.fit(x, y, epochs=3, verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    loaded.fit(x, y, epochs=1, verbose=0)
    for found in (q, loaded):
        for key, kernel in before.items():
            after = host(found.get_layer(key).layer.kernel)
            assert (after != kernel).any()
            if name != "clustered":
                np.testing.assert_array_equal(after[kernel == 0], 0)
                values, _ = found.get_layer(key).quantized_weights()["kernel"]
                np.testing.assert_array_equal(host(values)[kernel == 0], 0)
            if name != "pruned":
                assert len(np.unique(host(found.get_layer(key).weight("kernel")))) <= len(
                    np.unique(kernel)
                )


def test_schemes_that_keep_something_are_the_default_otherwise():
    combine = intact.tfmot.experimental.combine
    scheme = combine.Default8BitPrunePreserveQuantizeScheme()
    assert scheme.rules == intact.schemes.int8.rules
    api = intact.tfmot.quantization.keras
    model = keras.Sequential([keras.Input((4,)), api.quantize_annotate_layer(layers.Dense(2))])
    held = [x for x in api.quantize_apply(model, scheme).layers if isinstance(x, Quantized)]
    assert [layer.keep_zeros for layer in held] == [True]
