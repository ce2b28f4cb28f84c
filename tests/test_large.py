"""Models whose weights are large: what a file cannot hold is refused, and memory stays bounded."""

import keras
import pytest
from small import host

import intact
from intact.errors import ExportError
from intact.lowering import lowering


@pytest.fixture
def model():
    return keras.Sequential(
        [keras.Input((64,)), *(keras.layers.Dense(64, activation="relu") for _ in range(3))]
    )


def test_weights_beyond_a_files_size_are_refused_before_any_work(model, monkeypatch):
    count = sum(host(weight).size for weight in model.weights)
    monkeypatch.setattr(lowering, "LARGEST", 2 * count)
    monkeypatch.setattr(lowering.Lowering, "_run", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ExportError, match=r"a LiteRT file holds less than 2 GiB.*weight_only_8"):
        intact.export(model)
    with pytest.raises(ExportError, match="2 GiB"):
        intact.export(intact.quantize_model(model, "float16"))


@pytest.mark.parametrize("scheme", ["weight_only_8", "weight_only_4", "dynamic_range"])
def test_fewer_bits_fit(model, monkeypatch, scheme):
    count = sum(host(weight).size for weight in model.weights)
    monkeypatch.setattr(lowering, "LARGEST", 2 * count)
    assert len(intact.export(intact.quantize_model(model, scheme))) < 2 * count
