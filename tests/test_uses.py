"""Ranges of factors reach as far as their products need."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import host, lossy, quantizers

import intact
from intact.numerics.numpy_ops import numpy_ops
from intact.quantizers import uses
from intact.quantizers.uses import UseObserver, limits, look, reach

STEPS, WIDTH = 12, 16
RNG = np.random.default_rng(0)
FULL = RNG.normal(size=(48, STEPS, WIDTH)).astype("float32")


def with_rows(rows, size=0.0, shift=0.0):
    """The data with some rows made smaller, about a constant."""
    x = FULL.copy()
    x[rows] = FULL[rows] * np.float32(size) + np.float32(shift)
    return x


DATA = {
    "padded": with_rows(np.s_[:, 8:]),
    "one sample": with_rows(np.s_[:1]),
    "nearly blank": with_rows(np.s_[::8, 3:], 1e-3),
    "quiet": with_rows(np.s_[::8], 0.02),
    "constant": with_rows(np.s_[::8], 0.0, 0.37),
}
ALL = np.concatenate([x[:16] for x in DATA.values()])


def total(x):
    return ops.sum(x * x, axis=-1, keepdims=True)


def masked_softmax(x):
    powers = ops.exp(x) * ops.cast(x != 0.0, "float32")
    return powers / (ops.sum(powers, axis=-1, keepdims=True) + 1e-9)


def squeezed(x):
    return x * ops.expand_dims(1.0 / ops.sqrt(ops.mean(x * x, axis=-1) + 1e-6), -1)


def standardized(x):
    deviation = ops.std(x, axis=-1, keepdims=True)
    return (x - ops.mean(x, axis=-1, keepdims=True)) / (deviation + 1e-6)


def cosine(x):
    a, b = x[:, :, :8], x[:, :, 8:]
    return a * b * (ops.rsqrt(total(a) + 1e-8) * ops.rsqrt(total(b) + 1e-8))


FORMULAS = {
    "LayerNormalization": lambda x: layers.LayerNormalization(epsilon=1e-6)(x),
    "RMSNormalization": lambda x: layers.RMSNormalization()(x),
    "GroupNormalization": lambda x: layers.GroupNormalization(4, epsilon=1e-8)(x),
    "UnitNormalization": lambda x: layers.UnitNormalization()(layers.ReLU()(x)),
    "standardized": standardized,
    "squeezed": squeezed,
    "scaled": lambda x: x * (0.5 * ops.rsqrt(total(x) + 1e-6)),
    "by logarithm": lambda x: x * ops.exp(-0.5 * ops.log(total(x) + 1e-6)),
    "by largest": lambda x: x / (ops.max(ops.abs(x), axis=-1, keepdims=True) + 1e-2),
    "masked softmax": masked_softmax,
    "cosine": cosine,
}


def model_of(formula, shape=(STEPS, WIDTH)):
    keras.utils.set_random_seed(0)
    x = keras.Input(shape)
    return keras.Model(x, formula(x))


def snr(model, file, x):
    expected, found = model.predict(x, verbose=0), file.predict(x)
    return 10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2))


def calibrated(model, x):
    return intact.calibrate(intact.quantize_model(model), x, verbose=0)


@lossy
@pytest.mark.parametrize("formula", FORMULAS)
def test_blank_rows_cost_the_others_nothing(formula):
    model = model_of(FORMULAS[formula])
    plain = snr(model, intact.load_litert(intact.export(calibrated(model, FULL))), FULL)
    q = calibrated(model, ALL)
    file = intact.load_litert(intact.export(q))
    assert snr(model, file, FULL) > plain - 3
    np.testing.assert_allclose(q.predict(ALL, verbose=0), file.predict(ALL), atol=1e-6)


@lossy
@pytest.mark.parametrize("name", DATA)
def test_each_kind_of_blank_rows(name):
    model = model_of(FORMULAS["LayerNormalization"])
    file = intact.load_litert(intact.export(calibrated(model, DATA[name])))
    assert snr(model, file, FULL) > 33


def test_a_dead_channel_costs_the_others_nothing():
    shift = np.array([0, 0, 0, 9], "float32")
    model = model_of(lambda x: layers.GroupNormalization(4)(layers.ReLU()(x - shift)), (8, 8, 4))
    x = RNG.normal(size=(64, 8, 8, 4)).astype("float32")
    file = intact.load_litert(intact.export(calibrated(model, x)))
    assert snr(model, file, x) > 32


@lossy
@pytest.mark.parametrize("ready", [False, True])
def test_training_on_blank_rows(ready):
    model = model_of(FORMULAS["LayerNormalization"])
    q = intact.quantize_model(model)
    if ready:
        intact.calibrate(q, ALL, verbose=0)
    q.compile(keras.optimizers.SGD(1e-3), "mse")
    q.fit(ALL, model.predict(ALL, verbose=0), 16, verbose=0)
    file = intact.load_litert(intact.export(q))
    assert snr(model, file, FULL) > 30
    np.testing.assert_allclose(q.predict(FULL, verbose=0), file.predict(FULL), atol=1e-6)


def test_training_on_blank_rows_with_a_delay():
    model = model_of(FORMULAS["RMSNormalization"])
    q = intact.quantize_model(model, schedule=intact.Schedule(quant_delay=2))
    q.compile(keras.optimizers.SGD(1e-3), "mse")
    q.fit(ALL, model.predict(ALL, verbose=0), 16, verbose=0)
    assert snr(model, intact.load_litert(intact.export(q)), FULL) > 30


def test_a_batch_of_blank_rows_moves_no_range():
    model = model_of(FORMULAS["RMSNormalization"])
    q = calibrated(model, FULL)
    factor = quantizers(q)["rms_normalization_inverse_root"]
    before = host(factor.maximum)
    q.compile(keras.optimizers.SGD(0.0), "mse")
    q.fit(0 * FULL, 0 * FULL, 16, verbose=0)
    np.testing.assert_array_equal(host(factor.maximum), before)


def test_without_blank_rows_the_range_is_what_was_seen():
    q = calibrated(model_of(FORMULAS["RMSNormalization"]), FULL)
    largest = 1 / np.sqrt(np.mean(FULL**2, axis=-1) + 1e-6).min()
    factor = quantizers(q)["rms_normalization_inverse_root"]
    np.testing.assert_allclose(host(factor.maximum), largest, rtol=1e-3)


@pytest.mark.parametrize("observer", ["mse", "moving_average"])
def test_whatever_the_observer(observer):
    model = model_of(FORMULAS["LayerNormalization"])
    q = intact.quantize_model(model)
    intact.calibrate(q, DATA["padded"], observer=observer, verbose=0)
    assert snr(model, intact.load_litert(intact.export(q)), FULL) > 25


def test_files_and_other_models_of_it(tmp_path):
    model = model_of(FORMULAS["squeezed"])
    q = calibrated(model, DATA["padded"])
    content = intact.export(q, output_dtype="int8")
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    assert intact.export(loaded, output_dtype="int8") == content
    again = intact.calibrate(loaded, DATA["padded"], verbose=0)
    assert intact.export(again, output_dtype="int8") == content
    frozen = intact.freeze(q)
    np.testing.assert_array_equal(frozen.predict(FULL, verbose=0), q.predict(FULL, verbose=0))
    assert intact.compare(q, content, FULL).different == 0
    assert intact.bisect(q, model, FULL[:8])


def products(formula):
    """How many products say how far the range of each layer's output reaches."""
    q = intact.quantize_model(model_of(formula))
    calls = [node for layer in quantizers(q).values() for node in layer._inbound_nodes]
    return sorted(len(node.arguments.kwargs.get("shapes", ())) for node in calls)[::-1]


def test_what_is_a_factor():
    assert products(lambda x: x * ops.rsqrt(total(x)))[:2] == [1, 0]
    # Layers that compute the same are one, with two partners.
    twice = products(lambda x: x * ops.rsqrt(total(x)) + total(x) * ops.rsqrt(total(x)))
    assert twice[:2] == [2, 0]
    others = products(lambda x: x * ops.rsqrt(total(x)) + x * ops.sqrt(total(x)))
    assert others[:2] == [1, 1]
    # The output of the model needs all of its values; so does a sum.
    assert products(lambda x: [x * (y := ops.rsqrt(total(x))), y])[0] == 0
    assert products(lambda x: x * (y := ops.rsqrt(total(x))) + y)[0] == 0
    # A partner that is computed from the factor, and the factor itself.
    assert products(lambda x: (y := ops.rsqrt(total(x))) * (ops.mean(y * x, -1, True) + x))[0] < 2
    assert products(lambda x: (y := ops.rsqrt(total(x))) * y)[0] == 0


def looked_at(factor, partner, shape=None):
    return look(np.float32(factor), np.float32(partner), shape, numpy_ops)


def test_large_values_count_where_products_are_large():
    factor, partner = np.ones((100, 1)), np.ones((100, 4))
    factor[0] = 50
    assert limits([looked_at(factor, partner)], 255) == (0, 50)
    partner[0] = 1e-3
    assert limits([looked_at(factor, partner)], 255) == (0, 1)
    # Beside another partner, it is large.
    assert limits([looked_at(factor, partner), looked_at(factor, 1 + 0 * partner)], 255) == (0, 50)


def test_a_sample_tells_the_same():
    factor = RNG.uniform(1, 2, size=(4000, 8, 1))
    partner = RNG.normal(size=(4000, 8, 4))
    factor[::7], partner[::7] = 500, 0
    factor, partner = (ops.convert_to_tensor(a, "float32") for a in (factor, partner))
    use = look(factor, partner, None, most=1024)
    assert 1000 < float(ops.sum(use.count)) < 3000
    assert 1.9 < float(reach(use, 255)[1]) < 2


def test_most_rows_decide():
    factor, partner = np.ones((100, 1)), np.ones((100, 4))
    factor[:90], partner[:90] = 50, 0.01
    assert limits([looked_at(factor, partner)], 255) == (0, 50)
    factor[10:], partner[10:] = 1, 1
    assert limits([looked_at(factor, partner)], 255) == (0, 1)


def test_shapes_of_factor_and_partner():
    values = RNG.uniform(1, 2, size=(6, 5))
    flat = looked_at(values, RNG.normal(size=(6, 5, 3)), (5, 1))
    wide = looked_at(values, RNG.normal(size=(1, 5)))
    assert flat.count.sum() == wide.count.sum() == 30
    assert flat.maximum.max() == wide.maximum.max() == np.float32(values.max())
    both = UseObserver().join(flat, wide, numpy_ops)
    assert both.count.sum() == 60


def test_nothing_is_told_by_blank_rows_alone():
    use = looked_at(np.full((10, 1), 1000.0), np.zeros((10, 4)))
    assert limits([use], 255) == (-np.inf, np.inf)
    assert [float(abs(part)) for part in reach(use, 255, numpy_ops)] == [0, 0, 0]


def test_backend_and_host_agree():
    factor, partner = RNG.uniform(0.5, 40, size=(64, 3, 1)), RNG.normal(size=(64, 3, 8))
    partner *= np.where(factor > 4, 1e-3, 1)
    there = look(*(ops.convert_to_tensor(a, "float32") for a in (factor, partner)), None)
    here = looked_at(factor, partner)
    for a, b in zip(there, here, strict=True):
        np.testing.assert_allclose(host(a), b, rtol=1e-4)
    for a, b in zip(reach(there, 255), reach(here, 255, numpy_ops), strict=True):
        np.testing.assert_allclose(host(a), b, rtol=1e-6)


@pytest.mark.parametrize("row", [(), (5,), (3, 4)], ids=str)
def test_uneven_parts_of_a_batch_are_sampled_as_the_whole(row, monkeypatch):
    """Each replica samples the values that one process would."""
    x = np.arange(1, 700 * np.prod(row, dtype=int) + 1, dtype="float32").reshape(700, *row)
    parts = np.split(x, [1, 2, 90, 300, 420, 421])
    sampled = []
    monkeypatch.setattr(numpy_ops, "abs", lambda x: sampled.append(x) or np.abs(x))
    monkeypatch.setattr(uses, "replicas", lambda: len(parts))
    seen = []
    for place in [(0, x.size), *((part.flat[0] - 1, x.size) for part in parts)]:
        monkeypatch.setattr(uses, "place", lambda count, place=place: map(int, place))
        part = x if len(seen) == 0 else parts[len(seen) - 1]
        look(part, np.ones_like(part), None, numpy_ops, most=64)
        seen.append(sampled[-1])
    assert 40 < seen[0].size < 200
    np.testing.assert_array_equal(np.concatenate(seen[1:]), seen[0])


def test_a_smaller_last_batch(rng):
    """A graph of TensorFlow does not know the size of a batch, then."""
    q = intact.quantize_model(model_of(FORMULAS["RMSNormalization"], (4,)))
    q.compile("sgd", "mse")
    x = rng.normal(size=(5, 4)).astype("float32")
    q.fit(x, x, batch_size=2, verbose=0)
    assert all(layer.calibrated for layer in quantizers(q).values())
