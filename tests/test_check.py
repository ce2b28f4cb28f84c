"""Models and files on their targets."""

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, mlp, op_names, ready

import intact
from intact import IntactError, NotCalibratedError, TargetError
from intact.litert.reader import read

NPUS = ("ethos-u55", "ethos-u65", "ethos-u85")


def curves():
    """A model whose functions have kernels on some targets, and tables on the others."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 2), name="image"),
            layers.Conv2D(4, 3, activation="gelu", name="conv"),
            layers.Conv2D(3, 1, name="head"),
        ]
    )


@pytest.mark.parametrize("target", ["edgetpu", "xnnpack"])
def test_float_models_are_checked_before_anything(target, rng):
    model = enliven(cnn(), rng)
    weights = [np.array(w) for w in model.get_weights()]
    found = intact.check(model, target)
    assert {op.op for op in found.ops} == {
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "MEAN",
        "FULLY_CONNECTED",
    }
    assert found.share == 1
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))


def test_schemes_of_few_bits_are_checked(rng):
    """Activations of 4 bits are stored in int8."""
    spec = intact.TensorSpec(4)
    scheme = intact.Scheme("few", (intact.Rule(activations=spec),))
    assert intact.check(enliven(mlp(), rng), "edgetpu", scheme=scheme).ok


def test_stand_in_ranges_do_not_stay(rng):
    q = intact.quantize_model(enliven(mlp(), rng))
    intact.check(q, "edgetpu")
    with pytest.raises(NotCalibratedError):
        intact.export(q)


def test_ranges_that_there_are_stay(rng):
    q = ready(intact.quantize_model(enliven(mlp(), rng)), -3.0, 3.0)
    before = intact.export(q)
    intact.check(q, "edgetpu")
    assert intact.export(q) == before


def test_micro_agrees_with_the_reference_kernels(rng):
    pytest.importorskip("tflite_micro")
    model = enliven(cnn(), rng)
    q = intact.calibrate(intact.quantize_model(model), rng.normal(size=(16, 8, 8, 3)), verbose=0)
    found = intact.check(q, "tflite-micro", rng.normal(size=(4, 8, 8, 3)))
    assert found.figures["values_unlike_reference_kernels"] == 0
    assert found.figures["values_compared"] == 16
    assert found.share == 1


def test_scales_of_dense_layers_that_cost_memory_are_named(rng):
    pytest.importorskip("tflite_micro")
    arenas = []
    for scheme in ("int8", "int8_dense_per_tensor"):
        q = ready(intact.quantize_model(enliven(mlp(), rng), scheme))
        found = intact.check(q, "tflite-micro")
        arenas.append(found.figures["arena_bytes"])
        assert ("int8_dense_per_tensor" in str(found)) == (scheme == "int8")
    channels = sum(layer.units for layer in mlp().layers if isinstance(layer, layers.Dense))
    assert (
        f"take {8 * channels} bytes" in intact.check(enliven(mlp(), rng), "tflite-micro").notes[0]
    )
    assert arenas[0] - arenas[1] == pytest.approx(8 * channels, abs=64)


def test_npus_take_all_of_a_cnn(rng):
    pytest.importorskip("ethosu")
    model = enliven(cnn(), rng)
    assert [intact.check(model, npu).share for npu in NPUS] == [1, 1, 1]


def test_files_have_the_kernels_of_their_target(rng):
    q = ready(intact.quantize_model(enliven(curves(), rng)))
    io = {"input_dtype": "int8", "output_dtype": "int8"}
    assert "GELU" in op_names(intact.export(q, target="ethos-u55", **io))
    micro = intact.export(q, target="tflite-micro", **io)
    assert op_names(micro) == ["CONV_2D", "CAST", "ADD", "GATHER", "CONV_2D"]
    x = rng.normal(size=(1, 6, 6, 2)).astype("float32")
    files = (intact.load_litert(file) for file in (micro, intact.export(q, **io)))
    one, other = (file.predict(x, raw=True) for file in files)
    np.testing.assert_array_equal(one, other)


def test_files_for_microcontrollers_have_fixed_sizes(rng):
    model = enliven(cnn(), rng)
    q = ready(intact.quantize_model(model))
    fixed = read(intact.export(q, target="tflite-micro")).graphs[0]
    assert all(None not in t.shape for t in fixed.tensors)
    assert fixed.inputs[0].shape == (1, 8, 8, 3)
    assert read(intact.export(q, target="xnnpack")).graphs[0].inputs[0].shape[0] is None


def test_what_a_target_cannot_run_is_refused_before_training(rng):
    model = enliven(mlp(), rng)
    with pytest.raises(TargetError, match=r"TFLite Micro has no kernel.*\n  hidden"):
        intact.quantize_model(model, "uint8", target="tflite-micro")
    with pytest.raises(TargetError, match="Edge TPU would run none"):
        intact.quantize_model(model, "int16x8", target="edgetpu")
    with pytest.raises(TargetError, match=r"Ethos-U55 has no kernel.*\n.*int4"):
        intact.quantize_model(model, "int4", target="ethos-u55")
    with pytest.raises(IntactError, match="no target 'esp32'"):
        intact.quantize_model(model, target="esp32")
    q = intact.quantize_model(model, "int16x8", target="tflite-micro")
    with pytest.raises(NotCalibratedError):
        intact.export(q)


def test_float_files_have_targets_too(rng):
    model = enliven(mlp(), rng)
    assert intact.export(model, target="tflite-micro")
    with pytest.raises(TargetError, match="Ethos-U55 would run none"):
        intact.export(model, target="ethos-u55")
    with pytest.raises(TargetError, match="hybrid"):
        intact.export(intact.quantize_model(model, "dynamic_range"), target="tflite-micro")


@pytest.mark.parametrize("target", ["edgetpu", "xnnpack", "tflite-micro"])
def test_the_ops_inside_loops_count(target, rng):
    """A recurrent layer is a loop in the file, whose body is a graph of its own."""
    model = keras.Sequential([keras.Input((12, 4)), layers.LSTM(3), layers.Dense(2)])
    x = rng.normal(size=(20, 12, 4)).astype("float32")
    file = intact.export(intact.calibrate(intact.quantize_model(model), x, verbose=0))
    graphs = read(file).graphs
    assert len(graphs) > 1
    placed = intact.check(file, target)
    assert len(placed.ops) == sum(len(graph.ops) for graph in graphs)
    assert {op.graph for op in placed.ops} == set(range(len(graphs)))
    assert f"of {len(placed.ops)} ops" in str(placed)
    if target == "edgetpu":
        assert not any(op.on_target for op in placed.ops if op.graph)


def test_bad_input():
    with pytest.raises(IntactError, match=r"no file 'missing\.tflite'"):
        intact.check("missing.tflite", "xnnpack")
    with pytest.raises(IntactError, match="not a LiteRT file"):
        intact.check(b"nonsense" * 9, "edgetpu")
    with pytest.raises(IntactError, match="no target"):
        intact.check(mlp(), "gpu")
