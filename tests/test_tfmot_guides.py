"""The toolkit's two guides, retold with `from intact import tfmot`, on Fashion-MNIST.

The first test is its "Quantization aware training in Keras example", the others are the sections
of its "Quantization aware training comprehensive guide".
"""

import keras
import numpy as np
import pytest
from keras import layers
from small import host, op_names, parse, quantizers

import intact
from intact import tfmot
from intact.layers.quantized import Quantized
from intact.layers.quantized_weights import QuantizedWeights

quantize_model = tfmot.quantization.keras.quantize_model
quantize_annotate_layer = tfmot.quantization.keras.quantize_annotate_layer
quantize_annotate_model = tfmot.quantization.keras.quantize_annotate_model
quantize_apply = tfmot.quantization.keras.quantize_apply
quantize_scope = tfmot.quantization.keras.quantize_scope
LastValueQuantizer = tfmot.quantization.keras.quantizers.LastValueQuantizer
MovingAverageQuantizer = tfmot.quantization.keras.quantizers.MovingAverageQuantizer

INT4, INT8 = 17, 9


@pytest.fixture(scope="module")
def fashion(data_dir):
    """Images between 0 and 1, and labels: 6,400 to train on, 2,000 to test."""
    with np.load(data_dir / "fashion_mnist.npz") as held:
        return tuple(
            (
                (held[f"x_{part}"][:count] / 255.0).astype("float32"),
                held[f"y_{part}"][:count].astype("int32"),
            )
            for part, count in (("train", 6400), ("test", 2000))
        )


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    return model


def accuracy(scores, labels):
    return float((scores.argmax(-1) == labels).mean())


def test_training_example(fashion, tmp_path):
    (train_images, train_labels), (test_images, test_labels) = fashion
    model = keras.Sequential(
        [
            keras.layers.InputLayer(shape=(28, 28)),
            keras.layers.Reshape(target_shape=(28, 28, 1)),
            keras.layers.Conv2D(filters=12, kernel_size=(3, 3), activation=keras.ops.relu),
            keras.layers.MaxPooling2D(pool_size=(2, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    compiled(model).fit(train_images, train_labels, batch_size=32, verbose=0)

    # Fine-tune with quantization, on a part of the training data.
    q_aware_model = compiled(quantize_model(model))
    q_aware_model.fit(
        train_images[:1000],
        train_labels[:1000],
        batch_size=100,
        validation_split=0.1,
        verbose=0,
    )
    _, baseline = model.evaluate(test_images, test_labels, batch_size=500, verbose=0)
    _, aware = q_aware_model.evaluate(test_images, test_labels, batch_size=500, verbose=0)
    assert baseline > 0.75
    assert aware > baseline - 0.02

    # The file takes the place of TFLiteConverter's, and has the accuracy seen in Keras.
    content = intact.export(q_aware_model, tmp_path / "quantized.tflite")
    found = intact.load_litert(tmp_path / "quantized.tflite").predict(test_images)
    np.testing.assert_array_equal(
        found, q_aware_model.predict(test_images, batch_size=500, verbose=0)
    )
    assert accuracy(found, test_labels) == pytest.approx(aware, abs=1e-6)
    assert intact.inspect(content).float_ops == ()
    assert len(content) < len(intact.export(model)) / 3.5


# The comprehensive guide ------------------------------------------------------------------


def setup_model():
    """The images as 784 numbers, 20 hidden units, 10 classes."""
    return keras.Sequential(
        [
            keras.Input((784,)),
            layers.Dense(20, activation="relu", name="hidden"),
            layers.Dense(10, name="head"),
            layers.Flatten(),
        ]
    )


@pytest.fixture(scope="module")
def vectors(fashion):
    return tuple((images.reshape(-1, 784), labels) for images, labels in fashion)


@pytest.fixture(scope="module")
def pretrained(vectors, tmp_path_factory):
    """Weights of a model that was trained for 200 steps, in a file."""
    keras.utils.set_random_seed(7)
    (x, y), _ = vectors
    model = compiled(setup_model())
    model.fit(x, y, batch_size=32, verbose=0)
    path = tmp_path_factory.mktemp("guide") / "pretrained.weights.h5"
    model.save_weights(path)
    return path


@pytest.fixture
def base_model(pretrained):
    model = setup_model()
    model.load_weights(pretrained)
    return model


def finetuned(q, vectors):
    """Train for ten steps, export and compare: accuracy, and the file."""
    (x, y), (test_x, test_y) = vectors
    compiled(q).fit(x[:1000], y[:1000], batch_size=100, shuffle=False, verbose=0)
    content = intact.export(q)
    found = intact.load_litert(content).predict(test_x)
    seen = q.predict(test_x, batch_size=500, verbose=0)
    if intact.inspect(content).float_ops:
        # Float kernels add up in another order, which may move a value to the next integer.
        assert (np.abs(found - seen) > 1e-4).mean() < 1e-3
    else:
        np.testing.assert_array_equal(found, seen)
    return accuracy(found, test_y), content


def tensor_types(content):
    graph = parse(content).subgraphs[0]
    return {t.name.decode() if isinstance(t.name, bytes) else t.name: t.type for t in graph.tensors}


def test_quantize_whole_model(base_model, vectors):
    (x, y), (test_x, test_y) = vectors
    found, content = finetuned(quantize_model(base_model), vectors)
    # The same steps in float.
    compiled(base_model).fit(x[:1000], y[:1000], batch_size=100, shuffle=False, verbose=0)
    baseline = accuracy(base_model.predict(test_x, batch_size=500, verbose=0), test_y)
    assert baseline > 0.7
    assert found > baseline - 0.02
    assert op_names(content) == ["QUANTIZE", "FULLY_CONNECTED", "FULLY_CONNECTED", "DEQUANTIZE"]


def test_quantize_some_layers(base_model, vectors):
    def apply_quantization_to_head(layer):
        if layer.name == "head":
            return quantize_annotate_layer(layer)
        return layer

    annotated_model = keras.models.clone_model(
        base_model, clone_function=apply_quantization_to_head
    )
    quant_aware_model = quantize_apply(annotated_model)
    quantized = [layer.name for layer in quant_aware_model.layers if isinstance(layer, Quantized)]
    assert quantized == ["head"]
    found, content = finetuned(quant_aware_model, vectors)
    assert found > 0.7
    types = tensor_types(content)
    assert types["head/kernel"] == INT8
    assert types["hidden/kernel"] == 0  # float32


def test_quantize_some_layers_functional_and_sequential():
    i = keras.Input(shape=(20,))
    x = quantize_annotate_layer(layers.Dense(10))(i)
    o = layers.Flatten()(x)
    functional = keras.Model(inputs=i, outputs=o)
    sequential = keras.Sequential(
        [keras.Input((20,)), quantize_annotate_layer(layers.Dense(10)), layers.Flatten()]
    )
    for annotated_model in (functional, sequential):
        quant_aware_model = quantize_apply(annotated_model)
        assert sum(isinstance(layer, Quantized) for layer in quant_aware_model.layers) == 1
        assert len(quantizers(quant_aware_model)) == 2


@pytest.mark.filterwarnings("ignore:Do not pass an `input_shape`")
def test_an_input_shape_in_the_first_layer():
    annotated_model = keras.Sequential(
        [quantize_annotate_layer(layers.Dense(20, input_shape=(20,))), layers.Flatten()]
    )
    assert quantize_apply(annotated_model).output_shape == (None, 20)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_checkpoint_and_deserialize(suffix, base_model, vectors, tmp_path):
    quant_aware_model = quantize_model(base_model)
    (x, y), _ = vectors
    compiled(quant_aware_model).fit(x[:200], y[:200], verbose=0)
    path = tmp_path / f"model{suffix}"
    quant_aware_model.save(path)
    with quantize_scope():
        loaded_model = keras.models.load_model(path)
    assert intact.export(loaded_model) == intact.export(quant_aware_model)


class DefaultDenseQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """What a Dense layer gets by default, written out."""

    def get_weights_and_quantizers(self, layer):
        quantizer = LastValueQuantizer(
            num_bits=8, symmetric=True, narrow_range=False, per_axis=False
        )
        return [(layer.kernel, quantizer)]

    def get_activations_and_quantizers(self, layer):
        quantizer = MovingAverageQuantizer(
            num_bits=8, symmetric=False, narrow_range=False, per_axis=False
        )
        return [(layer.activation, quantizer)]

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer, quantize_activations):
        layer.activation = quantize_activations[0]

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


def with_config(first, config):
    """A model whose first layer has a config, and the rest the defaults."""
    return quantize_annotate_model(
        keras.Sequential(
            [
                keras.Input((784,)),
                quantize_annotate_layer(first, config),
                layers.Dense(10, name="head"),
                layers.Flatten(),
            ]
        )
    )


def test_quantize_custom_layer(vectors):
    class CustomLayer(layers.Dense):
        pass

    model = with_config(CustomLayer(20, name="mine"), DefaultDenseQuantizeConfig())
    with quantize_scope(
        {
            "DefaultDenseQuantizeConfig": DefaultDenseQuantizeConfig,
            "CustomLayer": CustomLayer,
        }
    ):
        quant_aware_model = quantize_apply(model)
    found, content = finetuned(quant_aware_model, vectors)
    assert found > 0.3
    # The toolkit has no way to deploy this.
    assert intact.inspect(content).float_ops == ()


def test_modify_quantization_parameters(vectors):
    class ModifiedDenseQuantizeConfig(DefaultDenseQuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            quantizer = LastValueQuantizer(
                num_bits=4, symmetric=True, narrow_range=False, per_axis=False
            )
            return [(layer.kernel, quantizer)]

    model = with_config(layers.Dense(20, name="hidden"), ModifiedDenseQuantizeConfig())
    with quantize_scope({"ModifiedDenseQuantizeConfig": ModifiedDenseQuantizeConfig}):
        quant_aware_model = quantize_apply(model)
    found, content = finetuned(quant_aware_model, vectors)
    assert found > 0.3
    types = tensor_types(content)
    assert types["hidden/kernel"] == INT4
    assert types["head/kernel"] == INT8


def test_modify_parts_of_a_layer(vectors):
    class ModifiedDenseQuantizeConfig(DefaultDenseQuantizeConfig):
        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_activations(self, layer, quantize_activations):
            return

    model = with_config(layers.Dense(20, name="hidden"), ModifiedDenseQuantizeConfig())
    quant_aware_model = quantize_apply(model)
    assert isinstance(quant_aware_model.get_layer("hidden"), QuantizedWeights)
    found, content = finetuned(quant_aware_model, vectors)
    assert found > 0.3
    assert tensor_types(content)["hidden/kernel"] == INT8
    assert intact.inspect(content).float_ops == ("FULLY_CONNECTED",)


class FixedRangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Forces the weights to be between -1 and 1."""

    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        return keras.ops.clip(inputs, -1.0, 1.0)

    def get_config(self):
        return {}


def test_use_a_custom_quantization_algorithm(vectors, tmp_path):
    class ModifiedDenseQuantizeConfig(DefaultDenseQuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, FixedRangeQuantizer())]

    model = with_config(layers.Dense(20, name="hidden"), ModifiedDenseQuantizeConfig())
    model.layers[0].layer.kernel.assign(20 * model.layers[0].layer.kernel)
    quant_aware_model = quantize_apply(model)
    _, content = finetuned(quant_aware_model, vectors)
    held = quant_aware_model.get_layer("hidden")
    ((values, scale),) = held.quantized_weights().values()
    assert np.abs(host(held.layer.kernel)).max() > 1.2
    assert np.abs(host(values) * host(scale)).max() == pytest.approx(1.0)
    # It goes into the file, and the model is saved with it.
    assert intact.inspect(content).float_ops == ()
    quant_aware_model.save(tmp_path / "model.keras")
    with quantize_scope({"FixedRangeQuantizer": FixedRangeQuantizer}):
        loaded_model = keras.models.load_model(tmp_path / "model.keras")
    assert intact.export(loaded_model) == content
