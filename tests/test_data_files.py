"""Samples on disk."""

import numpy as np
import pytest

import intact
from intact.calibration.data_files import load_data

ONE = {"x": (None, 4)}
TWO = {"a": (None, 2), "b": (None, 3)}
IMAGE = {"image": (None, 6, 8, 3)}


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (10, 4), dtype="uint8")


def test_npy(tmp_path, pixels):
    np.save(tmp_path / "x.npy", pixels)
    assert np.array_equal(load_data(tmp_path / "x.npy", ONE), pixels)
    found = load_data(tmp_path / "x.npy", ONE, mean=(10.0,), std=(2.0,))
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, (pixels - 10.0) / 2)
    found = load_data(tmp_path / "x.npy", ONE, std=(1.0, 2.0, 4.0, 8.0))
    np.testing.assert_allclose(found, pixels / [1.0, 2.0, 4.0, 8.0])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64", "bool"])
def test_mean_and_std_are_for_all_numbers(tmp_path, pixels, dtype):
    values = pixels.astype(dtype)
    np.save(tmp_path / "x.npy", values)
    assert np.array_equal(load_data(tmp_path / "x.npy", ONE), values)
    found = load_data(tmp_path / "x.npy", ONE, mean=(1.0,), std=(2.0,))
    np.testing.assert_allclose(found, (values.astype("float32") - 1) / 2)


def test_samples_are_taken_evenly(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(100)[:, None])
    found = load_data(tmp_path / "x.npy", ONE, samples=4)
    assert found[:, 0].tolist() == [0, 25, 50, 75]
    assert len(load_data(tmp_path / "x.npy", ONE, samples=1000)) == 100


def test_npz(tmp_path, pixels):
    path = tmp_path / "x.npz"
    np.savez(path, only=pixels)
    assert np.array_equal(load_data(path, ONE), pixels)
    np.savez(path, x=pixels, labels=np.arange(10))
    assert np.array_equal(load_data(path, ONE), pixels)
    np.savez(path, x_train=pixels, x_test=pixels[:3])
    assert len(load_data(path, ONE, array="x_test")) == 3
    np.savez(path, a=pixels[:, :2], b=pixels[:, :3])
    found = load_data(path, TWO, mean=(1.0,))
    assert set(found) == {"a", "b"}
    np.testing.assert_allclose(found["b"], pixels[:, :3] - 1.0)


def test_images(tmp_path, rng):
    image = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, (6, 8, 3), dtype="uint8")
    (tmp_path / "deep").mkdir()
    image.fromarray(pixels).save(tmp_path / "deep" / "a.png")
    image.fromarray(np.full((30, 20), 7, "uint8")).save(tmp_path / "b.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    found = load_data(tmp_path, IMAGE)
    assert found.shape == (2, 6, 8, 3)
    assert (found[0] == 7).all()
    assert np.array_equal(found[1], pixels)
    assert load_data(tmp_path, {"x": (None, 6, 8, 1)}).shape == (2, 6, 8, 1)
    assert np.array_equal(load_data(tmp_path, {"x": (None, 3, 6, 8)})[1], pixels.transpose(2, 0, 1))
    with pytest.raises(intact.InvalidDataError, match="images of one size"):
        load_data(tmp_path, {"x": (None, None, None, 3)})
    assert load_data(tmp_path, {"x": (None, None, None, 3)}, samples=1).shape == (1, 30, 20, 3)
    (tmp_path / "broken.jpg").write_bytes(b"no")
    with pytest.raises(intact.InvalidDataError, match=r"broken.jpg' is not an image"):
        load_data(tmp_path, IMAGE)


def test_bad_input(tmp_path, pixels):
    def fails(words, name="x.npz", inputs=ONE, **options):
        with pytest.raises(intact.InvalidDataError, match=words):
            load_data(tmp_path / name, inputs, **options)

    fails("no file or folder")
    fails("has no images", ".", IMAGE)
    fails("with an array for each input", ".", TWO)
    np.savez(tmp_path / "x.npz", c=pixels, d=pixels)
    fails("has the arrays c, d, and the model the inputs x")
    fails("has no array 'e', but c, d", array="e")
    np.savez(tmp_path / "x.npz", a=pixels)
    fails("--array NAME", inputs=TWO, array="a")
    content = (tmp_path / "x.npz").read_bytes()
    for broken in (b"", b"junk", content[: len(content) // 2]):
        (tmp_path / "x.npz").write_bytes(broken)
        fails(r"not a .npy or .npz")
    np.savez(tmp_path / "x.npz", x=np.array([{}, 1], dtype=object))
    fails(r"not a .npy or .npz")
    for values, words in (
        (np.zeros((0, 4)), "empty"),
        (np.float32(3), "empty"),
        (np.array(["a"]), "Expected numbers"),
        (np.array([[np.nan, 1.0]]), "NaN or infinite"),
    ):
        np.savez(tmp_path / "x.npz", x=values)
        fails(words)
    np.savez(tmp_path / "x.npz", x=pixels)
    fails("one for each of the 4 channels", mean=(1.0, 2.0))
