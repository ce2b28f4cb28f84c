"""The first layer that loses accuracy."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, mlp, quantizers, weights

import intact
from intact.layers.alignment import find_points


@pytest.fixture
def model(rng):
    return enliven(cnn(), rng)


@pytest.fixture
def data(rng):
    return rng.normal(size=(100, 8, 8, 3)).astype("float32")


@pytest.fixture
def q(model, data):
    return intact.calibrate(intact.quantize_model(model), data, verbose=0)


def test_nothing_is_lost(q, model, data):
    found = intact.bisect(q, model, data, drop=0.1, verbose=0)
    assert found.layer is None
    assert (found.metric, found.float_score) == ("same top-1", 1.0)
    assert found.score >= 0.9
    assert "No layer loses more" in str(found)


@pytest.mark.parametrize("name", ["act", "act_2", "pool"])
def test_the_layer_at_fault_is_found(q, model, data, name):
    broken = quantizers(q)[name]
    broken.set_range(0.0, float(keras.ops.convert_to_numpy(broken.maximum)[0]) / 50)
    expected = model.predict(data, verbose=0)

    def closeness(outputs):
        return 1 - np.linalg.norm(outputs - expected) / np.linalg.norm(expected)

    found = intact.bisect(q, model, data, metric=closeness, drop=0.1, verbose=0)
    assert found.layer == name
    assert found.before >= 0.9 > found.after
    assert found.by_itself
    assert f"Lost at {name!r}" in str(found)
    # By halving: fewer runs than there are layers.
    assert len(found.tried) < len(find_points(q))


def test_scores_are_those_of_the_models(q, model, data):
    expected = model.predict(data, verbose=0)
    y = expected.argmax(1)
    y[:20] = (y[:20] + 1) % 4
    quantizers(q)["act_2"].set_range(0.0, 0.1)
    mine = q.predict(data, verbose=0).argmax(1)
    found = intact.bisect(q, model, data, y, verbose=0)
    assert found.metric == "accuracy"
    assert found.float_score == pytest.approx(0.8)
    assert found.score == pytest.approx((mine == y).mean())


def test_own_metric_and_regression(rng):
    inputs = keras.Input((6, 6, 2), name="x")
    y = layers.Conv2D(3, 3, name="last")(layers.Conv2D(4, 3, activation="relu", name="a")(inputs))
    model = enliven(keras.Model(inputs, y), rng)
    data = rng.normal(size=(20, 6, 6, 2)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert intact.bisect(q, model, data, drop=0.2, verbose=0).layer is None
    quantizers(q)["a_relu"].set_range(0.0, 0.1)
    found = intact.bisect(q, model, data, drop=0.2, verbose=0)
    assert (found.layer, found.metric, found.float_score) == ("a_relu", "closeness", 1.0)

    def spread(outputs):
        return outputs.std()

    found = intact.bisect(q, model, data, metric=spread, drop=0.1, verbose=0)
    assert (found.layer, found.metric) == ("a_relu", "spread")
    assert found.float_score == pytest.approx(model.predict(data, verbose=0).std(), rel=1e-4)


def test_what_came_before_counts(rng):
    # Each layer alone is fine: the score is that of all before.
    found = intact.Bisection("b", "accuracy", 0.9, 0.7, before=0.89, after=0.8, alone=0.9)
    assert not found.by_itself
    assert "By itself it loses little" in str(found)


@pytest.mark.parametrize("scheme", ["weight_only_4", "int4"])
def test_weights_alone(model, data, scheme):
    q = intact.calibrate(intact.quantize_model(model, scheme), data, verbose=0)
    found = intact.bisect(q, model, data, drop=0.0, verbose=0)
    assert found.layer is None or found.after < 1.0
    assert (
        found.score
        == (q.predict(data, verbose=0).argmax(1) == model.predict(data, verbose=0).argmax(1)).mean()
    )


def test_nothing_is_changed(q, model, data):
    config, before = json.dumps(q.get_config()), [weights(q), weights(model)]
    content = intact.export(q)
    quantizers(q)["act"].set_range(0.0, 0.1)
    changed = weights(q)
    intact.bisect(q, model, data, verbose=0)
    assert json.dumps(q.get_config()) == config
    for mine, then in ((weights(q), changed), (weights(model), before[1])):
        assert all(np.array_equal(a, b) for a, b in zip(mine, then, strict=True))
    assert intact.export(q) != content


def test_bad_input(q, model, data):
    with pytest.raises(intact.IntactError, match="quantized model first"):
        intact.bisect(model, q, data)
    with pytest.raises(intact.IntactError, match="made from"):
        intact.bisect(q, mlp(), data)
    with pytest.raises(intact.NotCalibratedError):
        intact.bisect(intact.quantize_model(model), model, data)
    with pytest.raises(intact.InvalidDataError, match="takes shape"):
        intact.bisect(q, model, data[:, :4])
    with pytest.raises(intact.InvalidDataError, match="3 classes"):
        intact.bisect(q, model, data, [1, 2, 3])
