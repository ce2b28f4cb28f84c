"""The toolkit's names: annotations, configs and quantizers, as intact's rules."""

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, host, lossy, mlp, op_names, parse, quantizers, ready

import intact
import intact.layers.fake_quantize
from intact import Rule, TensorSpec, tfmot
from intact.graph.view import view
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.quantized import Quantized
from intact.layers.quantized_weights import QuantizedWeights

api = tfmot.quantization.keras
annotate = api.quantize_annotate_layer
INT4, INT8 = 17, 9


class DenseConfig(api.QuantizeConfig):
    """Weights and activation of a layer with a kernel."""

    def __init__(self, bits=8, per_axis=False):
        self.bits, self.per_axis = bits, per_axis

    def get_weights_and_quantizers(self, layer):
        quantizer = api.quantizers.LastValueQuantizer(
            num_bits=self.bits, symmetric=True, narrow_range=False, per_axis=self.per_axis
        )
        return [(layer.kernel, quantizer)]

    def get_activations_and_quantizers(self, layer):
        quantizer = api.quantizers.MovingAverageQuantizer(
            num_bits=8, symmetric=False, narrow_range=False, per_axis=False
        )
        return [(layer.activation, quantizer)]

    def get_config(self):
        return {"bits": self.bits, "per_axis": self.per_axis}


class NoConfig(api.QuantizeConfig):
    """Quantizes nothing."""


def parts(*names, config=None, model=None):
    """A model of which the layers of these names are annotated."""
    model = model or mlp()
    return keras.models.clone_model(
        model,
        clone_function=lambda layer: annotate(layer, config) if layer.name in names else layer,
    )


def types(q):
    """Names of the layers that are quantized."""
    return {layer.name for layer in q.layers if isinstance(layer, Quantized)}


def tensors(content):
    graph = parse(content).subgraphs[0]
    return {t.name.decode() if isinstance(t.name, bytes) else t.name: t for t in graph.tensors}


# Annotations ------------------------------------------------------------------------------


def test_only_what_is_annotated_is_quantized(rng):
    model = enliven(cnn(), rng)
    q = api.quantize_apply(parts("conv", "bn", "act", model=model))
    # Folded and fused, as ever.
    assert list(quantizers(q)) == ["image", "act"]
    assert types(q) == {"conv", "bn"}
    content = intact.export(ready(q))
    assert op_names(content)[:2] == ["QUANTIZE", "CONV_2D"]
    assert intact.inspect(content).float_ops == ("DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED")


def test_what_an_annotated_layer_reads_is_quantized():
    q = api.quantize_apply(parts("head"))
    assert list(quantizers(q)) == ["hidden_relu", "head"]
    # The input is quantized only where its reader is.
    assert list(quantizers(api.quantize_apply(parts("hidden")))) == ["features", "hidden_relu"]


def test_a_model_annotated_whole_is_one_that_is_quantized_whole(rng):
    model = enliven(cnn(), rng)
    data = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    files = []
    for q in (
        api.quantize_apply(api.quantize_annotate_model(model)),
        api.quantize_model(model),
        intact.quantize_model(model),
    ):
        files.append(intact.export(intact.calibrate(q, data, verbose=0), integer_only=True))
    assert files[0] == files[1] == files[2]


def test_no_layer_is_annotated_twice():
    once = api.quantize_annotate_model(parts("head", config=DenseConfig()))
    hidden, head = once.layers
    assert not isinstance(hidden.layer, api.QuantizeAnnotate)
    assert isinstance(head.quantize_config, DenseConfig)
    with pytest.raises(intact.IntactError, match=r"'head' is annotated already"):
        annotate(head)


def test_the_users_config_is_preferred():
    model = api.quantize_annotate_model(parts("head", config=DenseConfig(4, per_axis=True)))
    for q in (api.quantize_apply(model), api.quantize_model(model)):
        assert q.get_layer("head").spec == TensorSpec(4, symmetric=True, per_axis=True)
        assert q.get_layer("hidden").spec == Rule().weights


def test_weights_are_equal_but_not_the_same(rng):
    model = enliven(cnn(), rng)
    annotated = api.quantize_annotate_model(model)
    assert [w.shape for w in annotated.weights] == [w.shape for w in model.weights]
    before = [host(w) for w in model.weights]
    q = api.quantize_apply(annotated)
    kernel = q.get_layer("conv").layer.kernel
    np.testing.assert_array_equal(host(kernel), host(model.get_layer("conv").kernel))
    q.compile("sgd", "mse")
    q.fit(rng.normal(size=(8, 8, 8, 3)), rng.normal(size=(8, 4)), verbose=0)
    assert (host(kernel) != before[0]).any()
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(host(weight), old)


def test_nested_models_are_annotated_whole_or_in_part(rng):
    inner = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, name="first"),
            annotate(layers.Dense(4, name="second"), DenseConfig(4, True)),
        ],
        name="inner",
    )
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2, name="head")(inner(inputs)))
    assert types(api.quantize_apply(model)) == {"second"}
    q = api.quantize_apply(api.quantize_annotate_model(model))
    assert types(q) == {"first", "second", "head"}
    assert [q.get_layer(name).spec.bits for name in ("first", "second", "head")] == [8, 4, 8]


def test_operations_follow_what_they_read():
    inputs = keras.Input((6,), name="x")
    a = layers.Dense(4, name="a")(inputs) * 2.0
    b = layers.Dense(4, name="b")(inputs) * 3.0
    model = keras.Model(inputs, a + b)
    q = api.quantize_apply(parts("a", model=model))
    names = {name.rstrip("_0123456789") for name in types(q)}
    assert names == {"a", "multiply"}
    q = api.quantize_apply(api.quantize_annotate_model(model))
    assert intact.export(ready(q), integer_only=True)


def test_a_lambda_is_quantized_like_any_code(rng):
    """The toolkit leaves it out with a warning; here it is traced, and there is none."""
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4), layers.Lambda(lambda x: 2 * keras.ops.tanh(x))]
    )
    q = api.quantize_apply(api.quantize_annotate_model(model))
    data = rng.normal(size=(32, 6)).astype("float32")
    intact.calibrate(q, data, verbose=0)
    assert intact.compare(q, intact.export(q, integer_only=True), data).different == 0


def test_several_inputs_and_keyword_arguments():
    a, b = keras.Input((4, 6)), keras.Input((4, 6))
    x = annotate(layers.Add(name="sum"))([a, b])
    x = annotate(layers.MultiHeadAttention(2, 3, name="attention"))(query=x, value=x)
    q = api.quantize_apply(keras.Model([a, b], layers.Flatten()(x)))
    assert {"sum", "attention_query"} <= types(q)


def test_masks_pass_through_annotations(rng):
    def make(wrap):
        inputs = keras.Input((5,), dtype="int32")
        x = wrap(layers.Embedding(9, 4, mask_zero=True, name="table"))(inputs)
        x = wrap(layers.GlobalAveragePooling1D(name="mean"))(x)
        return keras.Model(inputs, wrap(layers.Dense(2, name="head"))(x))

    model = make(lambda layer: layer)
    annotated = make(annotate)
    annotated.set_weights(model.get_weights())
    x = rng.integers(0, 3, size=(16, 5)).astype("int32")
    np.testing.assert_array_equal(annotated.predict(x, verbose=0), model.predict(x, verbose=0))
    found, expected = (
        intact.calibrate(q, x, verbose=0)
        for q in (api.quantize_apply(annotated), intact.quantize_model(model))
    )
    np.testing.assert_array_equal(found.predict(x, verbose=0), expected.predict(x, verbose=0))
    assert op_names(intact.export(found)) == op_names(intact.export(expected))


def test_a_shared_layer_that_is_annotated(rng):
    shared = annotate(layers.Dense(4, name="shared"))
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    q = api.quantize_apply(keras.Model([a, b], [shared(a), shared(b)]))
    assert types(q) == {"shared"}
    assert len(quantizers(q)) == 4


def test_training_arguments_and_frozen_layers_pass_through(rng):
    model = keras.Sequential(
        [keras.Input((6,)), annotate(layers.BatchNormalization(name="bn")), layers.Dense(2)]
    )
    model.compile("sgd", "mse")
    model.fit(rng.normal(3.0, size=(8, 6)), np.zeros((8, 2)), verbose=0)
    assert (host(model.layers[0].layer.moving_mean) > 0).all()
    model.layers[0].trainable = False
    assert not api.quantize_apply(model).get_layer("bn").layer.trainable


@pytest.mark.parametrize("how", ["saved", "cloned", "config"])
def test_annotations_survive(how, rng, tmp_path):
    model = parts("head", config=DenseConfig(4, per_axis=True), model=enliven(mlp(), rng))
    x = rng.normal(size=(4, 6)).astype("float32")
    with api.quantize_scope({"DenseConfig": DenseConfig}):
        if how == "saved":
            model.save(tmp_path / "model.keras")
            loaded = keras.models.load_model(tmp_path / "model.keras")
        elif how == "cloned":
            loaded = keras.models.clone_model(model)
            loaded.set_weights(model.get_weights())
        else:
            loaded = keras.Sequential.from_config(model.get_config())
            loaded.set_weights(model.get_weights())
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    found, expected = api.quantize_apply(loaded), api.quantize_apply(model)
    assert found.get_layer("head").spec.bits == 4
    assert types(found) == types(expected) == {"head"}
    assert intact.export(ready(found)) == intact.export(ready(expected))


def test_a_quantized_model_needs_no_scope_to_load(rng, tmp_path):
    q = api.quantize_apply(parts("hidden", config=DenseConfig(4, True), model=enliven(mlp(), rng)))
    x = rng.normal(size=(16, 6)).astype("float32")
    intact.calibrate(q, x, verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), q.predict(x, verbose=0))


# Configs ----------------------------------------------------------------------------------


def test_a_config_becomes_a_rule(rng):
    q = api.quantize_apply(parts("hidden", "head", config=DenseConfig(4)))
    spec = q.get_layer("hidden").spec
    assert (spec.bits, spec.symmetric, spec.per_axis) == (4, True, False)
    assert quantizers(q)["hidden_relu"].spec.momentum == 0.999
    kernel = tensors(intact.export(ready(q)))["hidden/kernel"]
    assert kernel.type == INT4
    assert len(kernel.quantization.scale) == 1


@pytest.mark.parametrize("tail", [layers.ReLU, lambda **k: layers.Activation("relu", **k)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_config_holds_before_an_activation_layer(tail, batch_norm):
    stack = [keras.Input((6,)), annotate(layers.Dense(4, name="op"), DenseConfig(4, True))]
    stack += [annotate(layers.BatchNormalization())] if batch_norm else []
    q = api.quantize_apply(keras.Sequential([*stack, annotate(tail(name="tail"))]))
    assert q.get_layer("op").spec.bits == 4
    assert op_names(intact.export(ready(q))) == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]


def test_without_an_activation_quantizer_the_weights_alone_are_rounded(rng):
    class Weights(DenseConfig):
        def get_activations_and_quantizers(self, layer):
            return []

    q = api.quantize_apply(parts("hidden", "head", config=Weights(), model=enliven(mlp(), rng)))
    assert all(isinstance(q.get_layer(n), QuantizedWeights) for n in ("hidden", "head"))
    x = rng.normal(size=(16, 6)).astype("float32")
    content = intact.export(q)
    assert tensors(content)["hidden/kernel"].type == INT8
    np.testing.assert_allclose(
        intact.load_litert(content).predict(x), q.predict(x, verbose=0), atol=1e-5
    )


def test_a_config_of_nothing_changes_nothing(rng):
    model = enliven(mlp(), rng)
    q = api.quantize_apply(
        keras.Sequential(
            [model.inputs[0], annotate(model.layers[0], NoConfig()), annotate(model.layers[1])]
        )
    )
    assert types(q) == {"head"}
    hidden = keras.Model(model.inputs, model.layers[0].output)
    node = next(node for node in view(q).nodes if node.layer.name == "hidden_relu")
    x = rng.normal(size=(16, 6)).astype("float32")
    np.testing.assert_array_equal(
        keras.Model(q.inputs, node.outputs[0]).predict(x, verbose=0), hidden.predict(x, verbose=0)
    )


def test_an_output_quantizer_of_a_layer_without_weights():
    class Output(api.QuantizeConfig):
        def get_output_quantizers(self, layer):
            return [api.quantizers.LastValueQuantizer(8, False, True, False)]

    a, b = keras.Input((6,)), keras.Input((6,))
    q = api.quantize_apply(keras.Model([a, b], annotate(layers.Add(name="sum"), Output())([a, b])))
    assert quantizers(q)["sum"].spec == TensorSpec(symmetric=True, momentum=0.0)
    # A layer with a kernel cannot compute on integers without integer weights.
    dense = annotate(layers.Dense(4, name="dense"), Output())
    q = api.quantize_apply(
        keras.Sequential([keras.Input((6,)), dense, annotate(layers.Dense(2, name="head"))])
    )
    assert types(q) == {"head"}


@lossy
def test_a_custom_layer_by_its_config(rng):
    class Mine(layers.Dense):
        pass

    model = keras.Sequential(
        [keras.Input((20,)), annotate(Mine(6, name="mine"), DenseConfig(4)), layers.Flatten()]
    )
    q = api.quantize_apply(enliven(model, rng))
    data = rng.normal(size=(32, 20)).astype("float32")
    intact.calibrate(q, data, verbose=0)
    content = intact.export(q)
    assert INT4 in {t.type for t in tensors(content).values()}
    assert intact.compare(q, content, data).different == 0


# Ranges -----------------------------------------------------------------------------------


def fed(quantizer, batches):
    """The range of an activation that has seen some batches while training."""
    fake = FakeQuantize(quantizer.spec(activation=True))
    for batch in batches:
        fake(np.asarray(batch, "float32"), training=True)
    return float(host(fake.minimum)[0]), float(host(fake.maximum)[0]), fake


BATCHES = ([-1.0, 2.0], [-3.0, 1.0], [-2.0, 8.0])


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("LastValueQuantizer", -2.0, 8.0),
        ("AllValuesQuantizer", -3.0, 8.0),
        # Debiased: the average of what was seen, with weights 0.999, 0.999^2 and 0.999^3.
        ("MovingAverageQuantizer", -2.00033, 3.66867),
    ],
)
def test_ranges_after_feeding(name, low, high):
    made = getattr(api.quantizers, name)(8, per_axis=False, symmetric=False, narrow_range=False)
    minimum, maximum, fake = fed(made, BATCHES)
    assert (minimum, maximum) == (pytest.approx(low, rel=1e-4), pytest.approx(high, rel=1e-4))
    assert float(host(fake.scale)) == pytest.approx((maximum - minimum) / 255)
    made = getattr(api.quantizers, name)(8, per_axis=False, symmetric=True, narrow_range=True)
    *_, fake = fed(made, BATCHES)
    assert float(host(fake.scale)) == pytest.approx(max(maximum, -minimum) / 127)
    assert float(host(fake.zero_point)) == 0


def test_a_growing_range_keeps_growing_after_calibration(rng):
    class AllValues(DenseConfig):
        def get_activations_and_quantizers(self, layer):
            return [(layer.activation, api.quantizers.AllValuesQuantizer(8, False, False, False))]

    q = api.quantize_apply(parts("head", config=AllValues()))
    intact.calibrate(q, rng.normal(size=(16, 6)), verbose=0)
    fake = quantizers(q)["head"]
    before = float(host(fake.minimum)[0]), float(host(fake.maximum)[0])
    fake(np.array([before[0] - 1, 0.0], "float32"), training=True)
    assert float(host(fake.minimum)[0]) == pytest.approx(before[0] - 1)
    assert float(host(fake.maximum)[0]) == before[1]


@pytest.mark.parametrize(
    "name", ["LastValueQuantizer", "MovingAverageQuantizer", "AllValuesQuantizer"]
)
def test_quantizers_go_through_their_configs(name):
    cls = getattr(api.quantizers, name)
    made = cls(num_bits=4, per_axis=True, symmetric=True, narrow_range=False)
    again = cls.from_config(made.get_config())
    assert again == made
    assert hash(again) == hash(made)
    assert made != cls(num_bits=8, per_axis=True, symmetric=True, narrow_range=False)
    assert made != "LastValueQuantizer"
    saved = keras.saving.serialize_keras_object(made)
    assert keras.saving.deserialize_keras_object(saved) == made


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (lambda: layers.Conv1D(5, 3, name="op"), (8, 3), 5),
        (lambda: layers.Conv2D(5, 3, name="op"), (8, 8, 3), 5),
        (lambda: layers.Conv3D(5, 3, name="op"), (6, 6, 6, 3), 5),
        (lambda: layers.DepthwiseConv2D(3, name="op"), (8, 8, 3), 3),
        (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="op"), (8, 8, 3), 6),
        (lambda: layers.Dense(5, name="op"), (8,), 5),
    ],
    ids=["conv1d", "conv2d", "conv3d", "depthwise", "depthwise2", "dense"],
)
def test_a_range_per_output_channel(layer, shape, channels, rng):
    config = DenseConfig(8, per_axis=True)
    model = enliven(keras.Sequential([keras.Input(shape), annotate(layer(), config)]), rng)
    q = api.quantize_apply(model)
    ((_, scale),) = q.get_layer("op").quantized_weights().values()
    kernel = host(model.layers[0].layer.kernel)
    assert len(np.unique(host(scale))) == channels
    assert host(scale).max() == pytest.approx(np.abs(kernel).max() / 127)


@pytest.mark.parametrize("narrow", [False, True], ids=["full", "narrow"])
def test_fixed_ranges_are_exactly_those_of_the_file(narrow, rng):
    model = keras.Sequential(
        [keras.Input((6,), name="x"), layers.Dense(4, name="head"), layers.Reshape((2, 2))]
    )
    q = api.fix_input_output_range(
        intact.quantize_model(enliven(model, rng)),
        input_min=-1.0,
        input_max=3.0,
        output_min=-3.0,
        output_max=5.0,
        narrow_range=narrow,
    )
    data = rng.normal(size=(32, 6)).astype("float32")
    assert intact.calibrate(q, data, verbose=0) is q
    q.compile("sgd", "mse")
    q.fit(data, np.zeros((32, 2, 2)), verbose=0)
    content = intact.export(q, input_dtype="int8", output_dtype="int8")
    details = intact.load_litert(content).interpreter
    (given,), (found,) = details.get_input_details(), details.get_output_details()
    steps = 254 if narrow else 255
    assert given["quantization"] == (pytest.approx(4 / steps), -64 if not narrow else -63)
    assert found["quantization"] == (pytest.approx(8 / steps), -32)
    assert intact.compare(q, intact.export(q), data).different == 0


def test_fixed_ranges_of_16_bits_have_their_middle_at_0():
    q = intact.quantize_model(mlp(), "int16x8")
    q = api.fix_input_output_range(q, num_bits=16, input_min=0.0, input_max=2.0)
    assert quantizers(q)["features"].fixed == (pytest.approx(2 / 32767), 0.0)


def test_a_schedule_goes_on_with_fixed_ranges(rng):
    q = intact.quantize_model(mlp(), schedule=intact.Schedule(quant_delay=5))
    q.compile("sgd", "mse")
    q.fit(rng.normal(size=(8, 6)), rng.normal(size=(8, 3)), batch_size=4, verbose=0)
    assert intact.training_step(q) == 2
    fixed = api.fix_input_output_range(q)
    steps = [fake.clock.get_weights()[0] for fake in quantizers(fixed).values()]
    assert steps == [fake.clock.get_weights()[0] for fake in quantizers(q).values()]
    assert max(steps) == 2


def test_ranges_that_kernels_prescribe_stay():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, activation="softmax")])
    q = intact.quantize_model(model)
    before = [fake.fixed for fake in quantizers(q).values()]
    after = [fake.fixed for fake in quantizers(api.fix_input_output_range(q)).values()]
    assert after[-1] == before[-1] == (1 / 256, -128.0)
    assert after[0] == (pytest.approx(1 / 255), -128.0)


class Fixed(DenseConfig):
    """A fixed range of the output, of any width."""

    def get_activations_and_quantizers(self, layer):
        bits = self.bits
        return [(layer.activation, api.quantizers.FixedQuantizer(bits, 0.0, 3.0))]

    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, api.quantizers.FixedQuantizer(8, -0.5, 0.25))]


@lossy
@pytest.mark.parametrize("bits", [4, 8])
def test_a_fixed_quantizer_has_its_width(bits, rng):
    model = enliven(mlp(), rng)
    q = api.quantize_apply(
        api.quantize_annotate_model(parts("hidden", config=Fixed(bits), model=model))
    )
    data = rng.normal(size=(64, 6)).astype("float32")
    intact.calibrate(q, data, verbose=0)
    fakes = quantizers(q)
    assert fakes["hidden_relu"].fixed[0] == pytest.approx(3 / (2**bits - 1))
    # What the layer reads has a range of its own.
    assert fakes["features"].fixed is None
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, data).different == 0
    kernel = tensors(content)["hidden/kernel"]
    np.testing.assert_allclose(kernel.quantization.scale, [0.5 / 127])
    again = keras.models.clone_model(q)
    assert quantizers(again)["hidden_relu"].fixed == fakes["hidden_relu"].fixed
    assert again.get_layer("hidden").spec == q.get_layer("hidden").spec


def test_a_fixed_range_of_16_bits_is_symmetric():
    spec = api.quantizers.FixedQuantizer(16, -1.0, 3.0).spec(activation=True)
    assert spec.symmetric
    assert spec.rule.fixed(16) == (pytest.approx(3 / 32767), 0.0)


class Scaled(api.quantizers.Quantizer):
    """Three levels of a trained size."""

    def build(self, tensor_shape, name, layer):
        start = keras.initializers.Constant(0.5)
        return {"size": layer.add_weight(f"{name}_size", shape=(), initializer=start)}

    def __call__(self, inputs, training, weights, **kwargs):
        sign = keras.ops.sign(inputs) * keras.ops.cast(keras.ops.abs(inputs) > 0.1, "float32")
        return sign * weights["size"]


def test_an_algorithm_of_ones_own_has_trained_numbers(rng, tmp_path):
    q = api.quantize_apply(
        api.quantize_annotate_model(
            parts("hidden", config=Quantizes(("kernel", Scaled()), output=LAST))
        )
    )
    held = q.get_layer("hidden")
    ((_, scale),) = held.quantized_weights().values()
    assert 127 * host(scale).max() == pytest.approx(0.5)
    x = rng.normal(size=(32, 6)).astype("float32")
    q.compile("sgd", "mse")
    q.fit(x, rng.normal(size=(32, 3)), epochs=2, verbose=0)
    ((values, scale),) = held.quantized_weights().values()
    # What is trained is the change.
    (change,) = (float(host(w)) for w in held.trainable_weights if "size" in w.path)
    assert change != 0
    assert set(np.unique(host(values))) <= {-127, 0, 127}
    assert 127 * host(scale).max() != pytest.approx(0.5, abs=1e-4)
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, x).different == 0
    q.save(tmp_path / "q.keras")
    with api.quantize_scope({"Scaled": Scaled}):
        loaded = keras.models.load_model(tmp_path / "q.keras")
    assert intact.export(loaded) == content


# Schemes ----------------------------------------------------------------------------------


def test_the_toolkits_schemes(rng):
    n_bit = api.experimental.default_n_bit.DefaultNBitQuantizeScheme
    default = api.default_8bit.Default8BitQuantizeScheme
    annotated = api.quantize_annotate_model(enliven(mlp(), rng))
    assert api.quantize_apply(annotated, default()).get_layer("head").spec == Rule().weights
    q = api.quantize_apply(annotated, scheme=n_bit(num_bits_weight=4, disable_per_axis=True))
    assert q.get_layer("head").spec == TensorSpec(4, symmetric=True)
    assert tensors(intact.export(ready(q)))["head/kernel"].type == INT4
    q = api.quantize_apply(annotated, n_bit(num_bits_activation=16))
    data = rng.normal(size=(32, 6)).astype("float32")
    intact.calibrate(q, data, verbose=0)
    assert all(fake.spec.symmetric for fake in quantizers(q).values())
    assert intact.compare(q, intact.export(q, integer_only=True), data).max_lsb <= 2.01


def test_4_bits_where_a_transposed_convolution_stands(rng):
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), layers.Conv2D(3, 1), layers.Conv2DTranspose(2, 3, name="up")]
    )
    scheme = api.experimental.default_n_bit.DefaultNBitQuantizeScheme(num_bits_weight=4)
    q = api.quantize_apply(api.quantize_annotate_model(enliven(model, rng)), scheme)
    kernel = tensors(intact.export(ready(q)))["up/kernel"]
    # There is no kernel of 4 bits: they are stored in 8.
    assert kernel.type == INT8


# Errors -----------------------------------------------------------------------------------


def subclassed():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    return Mine()


class Quantizes(api.QuantizeConfig):
    """Returns the quantizers that it is given, of weights by name and of the output."""

    def __init__(self, *pairs, output=None):
        self.pairs, self.output = pairs, output

    def get_weights_and_quantizers(self, layer):
        return [(getattr(layer, name), quantizer) for name, quantizer in self.pairs]

    def get_output_quantizers(self, layer):
        return [self.output] if self.output else []


LAST = api.quantizers.LastValueQuantizer(8, False, True, False)
OTHER = api.quantizers.LastValueQuantizer(4, False, True, False)
CHANNELS = api.quantizers.LastValueQuantizer(8, True, True, False)


class Remembers(api.quantizers.Quantizer):
    def build(self, tensor_shape, name, layer):
        return {"low": layer.add_weight(name="low", shape=(), trainable=False)}

    def __call__(self, inputs, training, weights, **kwargs):
        return inputs


class Neither(api.quantizers.Quantizer):
    pass


ERRORS = {
    "no model": (lambda: api.quantize_model(None), r"Expected a keras\.Model"),
    "a layer for a model": (
        lambda: api.quantize_annotate_model(layers.Dense(2)),
        "`quantize_annotate_layer`",
    ),
    "a subclassed model": (
        lambda: api.quantize_annotate_model(subclassed()),
        r"subclassed.*`quantize_model`",
    ),
    "not built": (
        lambda: api.quantize_annotate_model(keras.Sequential([layers.Dense(2)])),
        "build it first",
    ),
    "applied to what is not built": (
        lambda: api.quantize_apply(keras.Sequential([annotate(layers.Dense(2))])),
        "not built",
    ),
    "applied to no model": (lambda: api.quantize_apply("model"), r"Expected a keras\.Model"),
    "nothing annotated": (
        lambda: api.quantize_apply(mlp()),
        "No layer of model 'mlp' is annotated",
    ),
    "quantized already": (
        lambda: api.quantize_apply(api.quantize_model(mlp())),
        "quantized already",
    ),
    "a model for a layer": (lambda: annotate(mlp()), "`quantize_annotate_model`"),
    "no layer": (lambda: annotate(None), "Expected a keras layer"),
    "a bad config": (lambda: annotate(layers.Dense(2), "config"), "QuantizeConfig"),
    "an unknown layer": (
        lambda: api.quantize_apply(
            keras.Sequential(
                [
                    keras.Input((5, 4, 2)),
                    annotate(layers.ConvLSTM1D(3, 2, data_format="channels_first", name="memory")),
                ]
            )
        ),
        r"ConvLSTM1D 'memory' is not supported.*register_op",
    ),
    "no quantizer": (
        lambda: api.quantize_apply(parts("head", config=Quantizes(("kernel", 8)))),
        r"Quantizes of Dense 'head' returns 8",
    ),
    "a quantized bias": (
        lambda: api.quantize_apply(
            parts("head", config=Quantizes(("kernel", LAST), ("bias", LAST)))
        ),
        "32 bits",
    ),
    "two quantizers": (
        lambda: api.quantize_apply(
            parts("head", config=Quantizes(("kernel", LAST), ("kernel", OTHER)))
        ),
        "different quantizers",
    ),
    "channels of an activation": (
        lambda: api.quantize_apply(parts("head", config=Quantizes(output=CHANNELS))),
        "per_axis=False",
    ),
    "an algorithm for activations": (
        lambda: api.quantize_apply(parts("head", config=Quantizes(output=Scaled()))),
        "`intact.Quantizer` with a `grid`",
    ),
    "an algorithm with a memory": (
        lambda: api.quantize_apply(
            parts("head", config=Quantizes(("kernel", Remembers()), output=LAST))
        ),
        "Remembers keeps 'low', which does not train",
    ),
    "no algorithm": (
        lambda: api.quantize_apply(parts("head", config=Quantizes(("kernel", Neither())))),
        "neither a range nor a `__call__`",
    ),
    "fixed ranges of a float model": (
        lambda: api.fix_input_output_range(mlp()),
        "Quantize it first",
    ),
    "fixed ranges of another width": (
        lambda: api.fix_input_output_range(intact.quantize_model(mlp()), num_bits=4),
        "has 8 bits",
    ),
    "a range without 0": (
        lambda: api.fix_input_output_range(intact.quantize_model(mlp()), input_min=0.5),
        "has to hold 0",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    make, message = ERRORS[name]
    with pytest.raises(intact.IntactError, match=f"(?s){message}"):
        make()
