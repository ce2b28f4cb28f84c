"""Weights in blocks that have a scale each, and tables with a scale for each row."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers
from small import enliven, host, op_names

import intact
from intact import IntactError, Rule, Scheme, TensorSpec
from intact.litert.builder import Builder
from intact.litert.quantization import Groups
from intact.litert.reader import read

DYNAMIC = TensorSpec(dynamic=True)


def blocks(block=32, activations=None, **fields):
    """A scheme of weights in blocks."""
    weights = TensorSpec(**{"bits": 4, "symmetric": True, "block": block, **fields})
    return Scheme("blocks", (Rule(weights=weights, activations=activations),))


def mlp(units=6):
    """Layers whose inputs are 64 and 128 values."""
    x = keras.Input((64,), name="x")
    y = layers.Dense(128, use_bias=False, name="hidden")(x)
    y = layers.ReLU(name="act")(layers.BatchNormalization(name="norm")(y))
    return keras.Model(x, layers.Dense(units, activation="relu", name="head")(y))


def reader(dim=64, units=8):
    """A table of 50 words, and a layer behind it."""
    x = keras.Input((5,), dtype="int32", name="words")
    y = layers.Embedding(50, dim, name="table")(x)
    return keras.Model(x, layers.Dense(units, name="head")(layers.LayerNormalization()(y)))


def constants(file):
    """The constants of a file by name."""
    return {t.name: t for t in read(file).graphs[0].tensors if t.data is not None}


def real_values(tensor):
    """What the file's 4-bit integers stand for, in rows."""
    packed = np.frombuffer(tensor.data, "uint8")
    stored = np.stack([packed & 15, packed >> 4], axis=-1).astype("int8").reshape(-1)
    values = ((stored ^ 8) - 8).reshape(len(tensor.scales), -1).astype("float32")
    return (values * tensor.scales[:, None]).reshape(tensor.shape)


def gap(file, q, data, kernels="default"):
    """How far a file is from Keras, as a share of the largest output."""
    expected = q.predict(data, verbose=0)
    outputs = intact.load_litert(file, kernels=kernels).predict(data)
    return np.abs(outputs - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("activations", [None, DYNAMIC], ids=["alone", "dynamic"])
@pytest.mark.parametrize("block", [32, 64])
def test_file_has_the_values_of_keras(block, activations, rng):
    q = intact.quantize_model(enliven(mlp(), rng), blocks(block, activations))
    file = intact.export(q)
    for name in ("hidden", "head"):
        stored = constants(file)[f"{name}/kernel"]
        assert (stored.dtype, stored.groups.block) == ("int4", block)
        kernel = host(q.get_layer(name).real_weights()["kernel"])
        np.testing.assert_array_equal(real_values(stored), kernel.T)
    data = rng.normal(size=(40, 64)).astype("float32")
    for kernels in ("default", "builtin"):
        # A sum in another order may move an input that is halfway between two integers.
        assert gap(file, q, data, kernels) < (2e-3 if activations else 1e-6)
    assert not intact.verify(file).errors


@pytest.mark.parametrize("activations", [None, DYNAMIC], ids=["alone", "dynamic"])
def test_training_saving_and_recovery(activations, rng, tmp_path):
    q = intact.quantize_model(enliven(mlp(), rng), blocks(activations=activations))
    data = rng.normal(size=(64, 64)).astype("float32")
    before = host(q.get_layer("hidden").layer.kernel)
    q.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    q.fit(data, np.ones((64, 6)), epochs=1, verbose=0)
    assert (host(q.get_layer("hidden").layer.kernel) != before).mean() > 0.9
    q = intact.recover(q, data, verbose=0)
    assert gap(intact.export(q), q, data) < 2e-3
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    assert intact.export(loaded) == intact.export(q)


def test_training_has_the_values_of_inference(rng):
    """Straight-through gradients, and the same weights whether the model trains or not."""
    q = intact.quantize_model(enliven(mlp(), rng), blocks())
    hidden = q.get_layer("hidden")
    both = (host(hidden.real_weights(training=training)["kernel"]) for training in (False, True))
    np.testing.assert_array_equal(*both)
    scales = host(hidden.quantized_weights()["kernel"][1])
    assert scales.shape == (2 * 128,)
    # Each kernel of LiteRT reads them alike: float16 and bfloat16 have them exactly.
    np.testing.assert_array_equal(scales.astype("float16").astype("float32"), scales)
    assert not (scales.view("uint32") & 0xFFFF).any()


@pytest.mark.parametrize("quantizer", ["lsq", "twn"])
def test_other_quantizers_take_blocks(quantizer, rng):
    bits = 2 if quantizer == "twn" else 4
    scheme = blocks(quantizer=quantizer, bits=bits, activations=DYNAMIC)
    q = intact.quantize_model(enliven(mlp(), rng), scheme)
    data = rng.normal(size=(40, 64)).astype("float32")
    file = intact.export(q)
    assert constants(file)["head/kernel"].groups.block == 32
    assert gap(file, q, data) < 2e-3


def test_blocks_suit_weights_of_different_sizes(rng):
    """A scale per channel leaves nothing of small weights beside a large one."""
    model = enliven(mlp(), rng)
    kernel = rng.normal(size=(64, 128)).astype("float32")
    kernel[rng.integers(0, 64, 128), np.arange(128)] *= 30
    model.get_layer("hidden").kernel.assign(kernel)
    errors = []
    for block in (None, 32):
        q = intact.quantize_model(model, blocks(block, per_axis=True))
        rounded = host(q.get_layer("hidden").real_weights()["kernel"])
        errors.append(np.square(rounded - kernel).mean())
    assert errors[1] < 0.6 * errors[0]


def test_layers_whose_kernel_takes_no_blocks_have_a_scale_per_channel(rng):
    x = keras.Input((6, 6, 32))
    y = layers.Flatten()(layers.Conv2D(3, 5, name="conv")(x))
    y = layers.Dense(64, name="odd")(y)
    y = layers.Dense(2, name="narrow")(layers.Dense(4, name="wide")(y))
    q = intact.quantize_model(enliven(keras.Model(x, y), rng), blocks(activations=DYNAMIC))
    weights = constants(intact.export(q))
    kinds = {name: weights[f"{name}/kernel"].kind for name in ("conv", "odd", "wide", "narrow")}
    assert kinds == {"conv": "int4", "odd": "int4", "wide": "int4/32", "narrow": "int4"}


@pytest.mark.parametrize("scheme", ["weight_only_8", "weight_only_4", blocks(), "dynamic_range"])
def test_rows_of_a_table_have_scales(scheme, rng):
    model = enliven(reader(), rng)
    model.get_layer("table").embeddings.assign(
        rng.normal(size=(50, 64)) * np.geomspace(1e-2, 1e2, 50)[:, None]
    )
    q = intact.quantize_model(model, scheme)
    file = intact.export(q)
    assert "EMBEDDING_LOOKUP" in op_names(file) and "GATHER" not in op_names(file)
    table = constants(file)["table_table/value"]
    assert len(table.scales) == (100 if table.groups.block else 50)
    words = rng.integers(0, 50, (30, 5)).astype("int32")
    assert gap(file, q, words) < (2e-3 if scheme == "dynamic_range" else 1e-6)
    # Small rows are as good as large ones.
    rows = host(q.get_layer("table_table").real_weights()["value"])
    exact = host(model.get_layer("table").embeddings)
    errors = np.sqrt(np.square(rows - exact).mean(1) / np.square(exact).mean(1))
    assert errors.max() < 3 * errors.min()


@pytest.mark.parametrize("scheme", ["dynamic_range", "dynamic_range_4_blocks"])
def test_ranges_at_run_time_decide_ties_alike(scheme, rng):
    """Rows whose ends are opposite have a zero point between two integers."""
    x = keras.Input((64,))
    model = keras.Model(x, layers.Dense(64, use_bias=False)(x))
    model.layers[-1].kernel.assign(np.eye(64))
    q = intact.quantize_model(model, scheme)
    data = rng.integers(-7, 8, (2000, 64)) * rng.uniform(0.01, 0.2, (2000, 1))
    assert gap(intact.export(q), q, data.astype("float32")) < 1e-6


def test_a_table_of_odd_rows_is_made_real(rng):
    """Rows of half bytes are no places in the file."""
    q = intact.quantize_model(enliven(reader(dim=7), rng), "weight_only_4")
    file = intact.export(q)
    assert "GATHER" in op_names(file)
    words = rng.integers(0, 50, (30, 5)).astype("int32")
    assert gap(file, q, words) < 1e-6


def test_refusals():
    with pytest.raises(IntactError, match="no kernel for integer activations and weights in blo"):
        Rule(weights=TensorSpec(4, symmetric=True, block=32))
    for fields in ({"block": 48}, {"bits": 8}, {"symmetric": False}):
        with pytest.raises(IntactError, match="Blocks have 32, 64, 128, 256 weights"):
            blocks(**fields)


def test_they_are_shown(rng):
    model = enliven(mlp(), rng)
    explanation = intact.explain(model, "dynamic_range_4_blocks")
    assert [e.type for e in explanation.layers if e.rounded] == ["w4/32 dynamic"] * 2
    assert "2 compute in float with rounded weights." in str(explanation)
    file = intact.export(intact.quantize_model(model, "dynamic_range_4_blocks"))
    inspection = intact.inspect(file)
    assert "int4/32" in str(inspection)
    assert max(t["block"] for t in inspection.to_dict()["graphs"][0]["tensors"]) == 32


def test_verify_knows_that_integer_kernels_take_no_blocks():
    builder = Builder("a test")
    x = builder.tensor((1, 64), "int8", "x", scale=np.float32(0.1))
    y = builder.tensor((1, 8), "int8", "y", scale=np.float32(0.1))
    fields = {"scale": np.ones((8, 2), "float32"), "groups": Groups(0, 32)}
    w = builder.constant(np.ones((8, 64), "int8"), "w", dtype="int4", **fields)
    builder.add("FULLY_CONNECTED", [x, w, None], [y])
    findings = intact.verify(builder.finish([("x", x)], [("y", y)])).errors
    assert any("no kernel for int4/32 weights" in str(finding) for finding in findings)


def test_damaged_files_are_refused(rng):
    """Whatever the bytes are, the reader follows no offset out of the file."""
    content = intact.export(intact.quantize_model(enliven(mlp(), rng), blocks(activations=DYNAMIC)))
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(8, len(content), 8):
            damaged[place] = rng.integers(0, 256)
        with contextlib.suppress(IntactError):
            intact.inspect(bytes(damaged)).to_dict()
