"""Pruned and clustered models stay pruned and clustered."""

import keras
import numpy as np
import pytest
from keras import layers
from small import enliven, host, mlp, parse

import intact
from intact import Rule, Scheme, TensorSpec

ONE_SCALE = Scheme("one scale", (Rule(weights=TensorSpec(symmetric=True)),))


def network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(),
            layers.Dense(4, name="head"),
        ]
    )


KERNELS = ("conv", "depthwise", "head")


def kernels(model):
    return [layer.kernel for layer in model.layers if layer.name in KERNELS]


def pruned(rng):
    """A model of which a part of the weights is 0."""
    model = enliven(network(), rng)
    for kernel in kernels(model):
        kernel.assign(host(kernel) * (rng.random(kernel.shape) < 0.4))
    return model


def clustered(rng):
    """A model with six values per layer, one of them 0."""
    model = enliven(network(), rng)
    for kernel in kernels(model):
        values = np.array([-0.4, -0.25, -0.1, 0.0, 0.2, 0.5])
        kernel.assign(rng.choice(values, size=kernel.shape))
    return model


def trained(q, rng, optimizer=None):
    x, y = rng.normal(size=(32, 8, 8, 3)).astype("float32"), rng.normal(size=(32, 4))
    # Momentum, weight decay and averages would move weights that have no gradient but a past.
    made = optimizer or keras.optimizers.AdamW(0.01, weight_decay=0.01, use_ema=True)
    q.compile(made, "mse")
    q.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return q


def stored(file, bits=8):
    """The weights of a file, each with its channels last and as rows."""
    model = parse(file)
    found = []
    for op in model.subgraphs[0].operators:
        tensor = model.subgraphs[0].tensors[op.inputs[1]] if len(op.inputs) > 2 else None
        if tensor is not None and model.buffers[tensor.buffer].data is not None:
            values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), "int8")
            axis = tensor.quantization.quantizedDimension
            found.append(np.moveaxis(values.reshape(tensor.shape), axis, 0))
    return found


def test_zeros_stay(rng):
    model = pruned(rng)
    zeros = [host(kernel) == 0 for kernel in kernels(model)]
    q = intact.quantize_model(model)
    intact.keep_sparsity(q)
    trained(q, rng)
    for name, was in zip(KERNELS, zeros, strict=True):
        now = host(q.get_layer(name).layer.kernel)
        assert (now[was] == 0).all()
        assert (now != host(model.get_layer(name).kernel))[~was].any()
    found = stored(intact.export(q))
    assert len(found) == 3
    for values, was in zip(found, zeros, strict=True):
        assert (values == 0).mean() >= was.mean()


def test_zeros_go_where_nobody_keeps_them(rng):
    model = pruned(rng)
    q = trained(intact.quantize_model(model), rng)
    assert (host(q.get_layer("head").layer.kernel) != 0).all()


@pytest.mark.parametrize("scheme", ["int8", "float16", "weight_only_8", "uint8"])
def test_zeros_stay_in_every_scheme(scheme, rng):
    model = enliven(mlp(), rng)
    kernel = model.get_layer("head").kernel
    was = rng.random(kernel.shape) < 0.5
    kernel.assign(host(kernel) * ~was)
    q = intact.quantize_model(model, scheme)
    intact.keep_sparsity(q)
    q.compile(keras.optimizers.Adam(0.01), "mse")
    q.fit(rng.normal(size=(16, 6)), rng.normal(size=(16, 3)), verbose=0)
    assert (host(q.get_layer("head").layer.kernel)[was] == 0).all()


def test_equal_weights_stay_equal(rng):
    model = clustered(rng)
    q = intact.quantize_model(model, ONE_SCALE)
    intact.keep_clusters(q)
    trained(q, rng)
    for name in ("depthwise", "head"):
        values = np.unique(host(q.get_layer(name).weight("kernel")))
        assert len(values) == 6
        assert not np.isin(values, host(model.get_layer(name).kernel)).any()
    assert len(np.unique(stored(intact.export(q))[-1])) <= 6


def test_channels_with_scales_of_their_own_keep_their_number_of_values(rng):
    model = clustered(rng)
    q = intact.quantize_model(model)
    intact.keep_clusters(q)
    trained(q, rng)
    for values in stored(intact.export(q)):
        assert max(len(np.unique(channel)) for channel in values) <= 6
    x = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    assert intact.compare(q, intact.export(q), x).max_lsb <= 1


def test_pruned_and_clustered_after_saving_in_the_middle(rng, tmp_path):
    model = clustered(rng)
    was = host(model.get_layer("head").kernel) == 0
    q = intact.quantize_model(model)
    intact.keep_sparsity(q)
    intact.keep_clusters(q)
    trained(q, rng).save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    trained(loaded, rng, keras.optimizers.SGD(0.05, momentum=0.9))
    found = host(loaded.get_layer("head").weight("kernel"))
    assert (found[was] == 0).all()
    assert len(np.unique(found)) == 6


def test_the_gradient_of_a_cluster_is_the_mean(rng):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, use_bias=False, name="head")])
    model.layers[0].kernel.assign([[0.5], [0.5], [-1.0], [0.5]])
    q = intact.quantize_model(model, "weight_only_8")
    intact.keep_clusters(q)
    q.compile(keras.optimizers.SGD(0.1), loss=lambda y, p: p)
    q.fit(np.array([[1.0, 2.0, 7.0, 3.0]], "float32"), np.zeros((1, 1)), verbose=0)
    expected = [[0.3], [0.3], [-1.7], [0.3]]
    np.testing.assert_allclose(host(q.get_layer("head").weight("kernel")), expected, rtol=1e-5)


@pytest.mark.parametrize("keep", [intact.keep_sparsity, intact.keep_clusters])
def test_a_float_model_is_refused(keep):
    with pytest.raises(intact.IntactError, match="no quantized weights"):
        keep(mlp())
