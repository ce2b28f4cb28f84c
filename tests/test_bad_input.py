"""Bad input: an error that names the place and the remedy, early, with nothing left behind."""

import keras
import numpy as np
import pytest
from keras import layers

import intact


def small(name="net"):
    return keras.Sequential(
        [keras.Input((6, 6, 2), name="image"), layers.Conv2D(3, 3, name="conv"), layers.Flatten()],
        name=name,
    )


@pytest.fixture
def data(rng):
    return rng.normal(size=(20, 6, 6, 2)).astype("float32")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(bad):
    model = small()
    kernel = np.ones((3, 3, 2, 3), "float32")
    kernel[0, 0, 0, 0] = bad
    model.get_layer("conv").kernel.assign(kernel)
    with pytest.raises(intact.InvalidModelError, match=r"conv.*1 of 54.*Retrain"):
        intact.quantize_model(model)


def test_model_that_is_not_built():
    with pytest.raises(intact.InvalidModelError, match=r"not built.*keras.Input"):
        intact.quantize_model(keras.Sequential([layers.Dense(2)], name="net"))


def test_no_model_at_all():
    with pytest.raises(intact.InvalidModelError, match=r"keras\.Model"):
        intact.quantize_model("net.keras")


def test_quantized_already():
    with pytest.raises(intact.IntactError, match="already"):
        intact.quantize_model(intact.quantize_model(small()))


def test_unknown_layer_is_named_with_its_path():
    odd = layers.ConvLSTM1D(3, 2, data_format="channels_first", name="memory")
    inner = keras.Sequential([keras.Input((5, 4, 2)), odd], name="inner")
    model = keras.Sequential([keras.Input((5, 4, 2)), inner])
    with pytest.raises(intact.UnsupportedLayerError, match=r"LSTM1D 'inner/memory'.*register_op"):
        intact.quantize_model(model)


def test_kernel_that_does_not_exist_is_said_before_training():
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2DTranspose(2, 3, dilation_rate=2)]
    )
    for scheme in ("int8", "weight_only_8", "float16"):
        with pytest.raises(intact.UnsupportedLayerError, match="no dilation_rate"):
            intact.quantize_model(model, scheme)
    with pytest.raises(intact.UnsupportedLayerError, match="no dilation_rate"):
        intact.export(model)


def test_unknown_scheme():
    with pytest.raises(intact.IntactError, match=r"int7.*int8"):
        intact.quantize_model(small(), scheme="int7")


def test_export_without_calibration(tmp_path):
    with pytest.raises(intact.NotCalibratedError, match=r"(?s)image_quantizer.*calibrate"):
        intact.export(intact.quantize_model(small()), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_float_ops_are_listed_where_only_integers_may_be(data, tmp_path):
    scheme = intact.Scheme("islands", (intact.Rule("conv", None, None), intact.Rule()))
    q = intact.calibrate(intact.quantize_model(small(), scheme), data, verbose=0)
    with pytest.raises(intact.NotIntegerError, match=r"conv \(Conv2D\)"):
        intact.export(q, tmp_path / "m.tflite", integer_only=True)
    assert not list(tmp_path.iterdir())


def test_path_that_is_a_folder(data, tmp_path):
    q = intact.calibrate(intact.quantize_model(small()), data, verbose=0)
    with pytest.raises(intact.ExportError, match="it is a folder"):
        intact.export(q, tmp_path)
    with pytest.raises(intact.ExportError, match="missing"):
        intact.export(q, tmp_path / "no" / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_unknown_dtype(data):
    q = intact.calibrate(intact.quantize_model(small()), data, verbose=0)
    with pytest.raises(intact.IntactError, match=r"input_dtype.*int4"):
        intact.export(q, input_dtype="int4")


@pytest.mark.parametrize("length", [0, 3, 7, 8, 100, 1000])
def test_files_that_are_no_litert_files(data, tmp_path, length):
    q = intact.calibrate(intact.quantize_model(small()), data, verbose=0)
    path = tmp_path / "m.tflite"
    path.write_bytes(intact.export(q)[:length])
    with pytest.raises(intact.IntactError):
        intact.load_litert(path)
    with pytest.raises(intact.IntactError, match="no file"):
        intact.load_litert(tmp_path / "other.tflite")


def test_wrong_data_for_a_file(data):
    model = intact.load_litert(intact.export(small()))
    with pytest.raises(intact.InvalidDataError, match="takes shape"):
        model.predict(data[..., :1])
    with pytest.raises(intact.InvalidDataError, match="at least one"):
        model.predict(data[:0])
    with pytest.raises(intact.InvalidDataError, match="image"):
        model.predict({"picture": data})


def test_a_training_step_without_samples(data):
    q = intact.quantize_model(small())
    with pytest.raises(intact.IntactError, match=r"'image' got a batch without samples.*\(0, 6"):
        q(data[:0], training=True)
