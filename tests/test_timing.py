"""Timing of files."""

import keras
import pytest

import intact


@pytest.fixture
def content():
    return intact.export(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


def test_benchmark(content):
    found = intact.benchmark(content, threads=2, seconds=0.02, kernels="reference")
    assert 0 < found.best <= found.median <= found.slow < 1
    assert found.runs > 1
    assert str(found).endswith("2 threads, reference kernels")


def test_bad_input(content):
    for values in ({"threads": 0}, {"seconds": 0.0}):
        with pytest.raises(intact.IntactError, match="at least one thread"):
            intact.benchmark(content, **values)
    with pytest.raises(intact.IntactError, match="not a LiteRT file"):
        intact.benchmark(b"junk, and no file at all")
