"""How ranges follow the data."""

import dataclasses
import json
from functools import reduce

import keras
import numpy as np
import pytest
from small import cnn, enliven, host, lossy, mlp, quantizers

import intact
from intact import TensorSpec
from intact.layers.fake_quantize import FakeQuantize
from intact.numerics.numpy_ops import numpy_ops
from intact.quantizers.observers import (
    BINS,
    MSE,
    OBSERVERS,
    Entropy,
    MinMax,
    MovingAverage,
    Percentile,
    Range,
    get_observer,
)

EMPTY = Range(np.float32(0), np.float32(0), np.float32(0))
HISTOGRAMS = [Percentile(99.0), Entropy(), MSE()]


def feed(observer, batches):
    state = EMPTY
    for low, high in batches:
        state = observer.update(state, Range(np.float32(low), np.float32(high), np.float32(1)))
    return tuple(float(host(part)) for part in state)


def look(observer, *parts):
    """The state after some batches, on the host."""
    states = [observer.look(np.asarray(x, "float32"), numpy_ops) for x in parts]
    return reduce(lambda a, b: observer.update(a, b, numpy_ops), states)


def chosen(observer, x, **spec):
    low, high = observer.bounds([look(observer, x)], FakeQuantize(TensorSpec(**spec)).grid_of)
    return float(low[0]), float(high[0])


def test_min_max_keeps_the_extremes():
    assert feed(MinMax(), [(-1, 3), (-2, 1), (0, 2)]) == (-2.0, 3.0, 3.0)


@pytest.mark.parametrize("observer", [MinMax(), MovingAverage(), MovingAverage(0.5)])
@pytest.mark.parametrize("batch", [(-1.0, 3.0), (0.5, 3.0), (-7.0, -2.0), (0.0, 0.0)])
def test_the_first_batch_is_the_range(observer, batch):
    # No magic constant that the range has to forget first.
    np.testing.assert_allclose(feed(observer, [batch]), [*batch, 1.0], rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99, 0.999])
def test_moving_average_is_debiased(momentum, rng):
    batches = np.sort(rng.normal(size=(30, 2)) * 5, axis=1)
    weights = momentum ** np.arange(29, -1, -1)
    expected = (weights[:, None] * batches).sum(0) / weights.sum()
    low, high, count = feed(MovingAverage(momentum), batches)
    np.testing.assert_allclose((low, high), expected, rtol=1e-4)
    assert count == 30


def test_a_constant_maximum_is_tracked_exactly():
    assert feed(MovingAverage(0.999), [(0, 3)] * 100)[:2] == pytest.approx((0.0, 3.0), abs=1e-5)


def test_observers_have_names():
    assert {name: cls.name for name, cls in OBSERVERS.items()} == {n: n for n in OBSERVERS}
    assert [get_observer(name).name for name in OBSERVERS] == list(OBSERVERS)


@pytest.mark.parametrize("observer", [MovingAverage(0.5), *HISTOGRAMS])
def test_a_spec_is_saved_with_its_observer(observer):
    spec = TensorSpec(observer=observer)
    assert TensorSpec(**json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_what_there_is_not_is_refused_early():
    with pytest.raises(intact.IntactError, match=r"'mean'.*entropy, min_max"):
        TensorSpec(observer="mean")
    with pytest.raises(intact.IntactError, match=r"above 50 and at most 100\. Received: 0\.99"):
        Percentile(0.99)


# Histograms ---------------------------------------------------------------------------


def lognormal(rng, n=50_000):
    return rng.lognormal(sigma=1.5, size=n)


def outliers(rng, n=50_000):
    return np.concatenate([rng.normal(size=n), [60.0, -35.0, 58.0]])


def relu(rng, n=50_000):
    return np.maximum(rng.normal(size=n) + rng.laplace(size=n), 0)


def swish(rng, n=50_000):
    x = 4 * rng.laplace(size=n)
    return x / (1 + np.exp(-x))


DISTRIBUTIONS = [lognormal, outliers, relu, swish]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_counts_are_those_of_the_whole_whatever_the_order(distribution, rng):
    x = distribution(rng).astype("float32")
    # From small values to large ones: bins are merged many times.
    parts = np.array_split(x[np.argsort(np.abs(x))], 13)
    whole = look(MSE(), x)
    for order in (parts, parts[::-1]):
        found = look(MSE(), *order)
        np.testing.assert_array_equal(found.counts, whole.counts)
        assert (found.minimum, found.maximum) == (x.min(), x.max())
    assert whole.counts.shape == (BINS,)
    assert whole.counts.sum() == len(x)
    # What numpy counts, in bins of a power of two.
    width = 2.0 ** np.ceil(np.log2(np.abs(x).max())) / (BINS // 2)
    edges = width * np.arange(-BINS // 2, BINS // 2 + 1)
    np.testing.assert_array_equal(whole.counts, np.histogram(x, edges)[0])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1.0, 2.0**20, 3e38])
def test_backends_count_as_the_host_does(scale, rng):
    x = (scale * rng.uniform(-1, 1, size=(40, 50))).astype("float32")
    seen, expected = MSE().look(keras.ops.convert_to_tensor(x)), look(MSE(), x)
    for a, b in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(host(a), b)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("percentile", [75.0, 99.0, 99.9, 100.0])
def test_percentile_is_that_of_the_values(distribution, percentile, rng):
    x = distribution(rng).astype("float32")
    low, high = chosen(Percentile(percentile), x)
    bin_ = 2.0 ** np.ceil(np.log2(np.abs(x).max())) / (BINS // 2)
    expected = np.percentile(x, [100 - percentile, percentile], method="inverted_cdf")
    np.testing.assert_allclose([low, high], expected, atol=bin_)


def grid_of(low, high, bits, symmetric):
    """Scale and integers of a range, written down again."""
    low, high = min(low, 0.0), max(high, 0.0)
    top = 2 ** (bits - 1) - 1
    if symmetric:
        return max(-low, high) / top or 1.0, -top - 1, top
    scale = (high - low) / (2 * top + 1) or 1.0
    zero_point = np.clip(np.rint(-top - 1 - low / scale), -top - 1, top)
    return scale, -top - 1 - zero_point, top - zero_point


def squared_error(x, low, high, bits=8, symmetric=False):
    scale, first, last = grid_of(low, high, bits, symmetric)
    return np.mean((x - scale * np.clip(np.rint(x / scale), first, last)) ** 2)


SPECS = [{}, {"symmetric": True}, {"bits": 4}, {"kind": "uint"}]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mse_is_the_smallest_of_all(distribution, spec, rng):
    x = distribution(rng, 20_000)
    grid = {"bits": spec.get("bits", 8), "symmetric": spec.get("symmetric", False)}
    ends = 2.0 ** (-np.arange(40) / 4)
    lows = x.min() * ends if x.min() < 0 and not grid["symmetric"] else [x.min()]
    best = min(squared_error(x, low, high, **grid) for low in lows for high in x.max() * ends)
    found = squared_error(x, *chosen(MSE(), x, **spec), **grid)
    assert found <= 1.02 * best
    assert found <= squared_error(x, x.min(), x.max(), **grid)


def divergence(counts, middles, low, high, bits=8, symmetric=False):
    """The formula of TensorRT's calibration, bin by bin, with the integers of a range."""
    scale, first, last = grid_of(low, high, bits, symmetric)
    low, high = min(low, scale * first), max(high, scale * last)
    inside = [i for i, m in enumerate(middles) if low <= m <= high and counts[i]]
    p = {i: float(counts[i]) for i in inside}
    p[inside[0]] += sum(c for c, m in zip(counts, middles, strict=True) if m < low)
    p[inside[-1]] += sum(c for c, m in zip(counts, middles, strict=True) if m > high)
    groups = {}
    for i in inside:
        groups.setdefault(np.clip(np.rint(middles[i] / scale), first, last), []).append(i)
    q = {i: sum(counts[j] for j in group) / len(group) for group in groups.values() for i in group}
    total_p, total_q = sum(p.values()), sum(q.values())
    return sum(p[i] / total_p * np.log(p[i] / total_p / (q[i] / total_q)) for i in inside)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("distribution", [lognormal, relu, outliers])
def test_entropy_is_the_smallest_divergence(distribution, symmetric, rng):
    x = distribution(rng, 20_000)
    state = look(Entropy(), x)
    width = 2.0 ** np.ceil(np.log2(np.abs(x).max())) / (BINS // 2)
    middles = width * (np.arange(BINS) - BINS // 2 + 0.5)
    # Zeros are exact: their bin counts no more than the next.
    state.counts[BINS // 2] = min(state.counts[BINS // 2 : BINS // 2 + 2])
    kept = np.flatnonzero(state.counts)
    data = state.counts[kept], np.clip(middles[kept], x.min(), x.max())
    levels = 128 if symmetric else 256
    # Clipped at one size, with at least a bin for each integer.
    sizes = np.linspace(levels * width, np.abs(x).max(), 40)
    best = min(
        divergence(*data, max(x.min(), -s), min(x.max(), s), symmetric=symmetric) for s in sizes
    )
    found = divergence(*data, *chosen(Entropy(), x, symmetric=symmetric), symmetric=symmetric)
    assert found <= 1.02 * best


def tensor_rt(x, bins=2048, levels=128):
    """The threshold of TensorRT's slides, as they say it: |x| <= 127 integers, edges alone."""
    counts, edges = np.histogram(np.abs(x), bins, (0, np.abs(x).max()))
    found = {}
    for i in range(levels, bins + 1, 8):
        p = counts[:i].astype(float)
        p[-1] += counts[i:].sum()
        group = np.minimum(np.arange(i) * levels // i, levels - 1)
        filled = counts[:i] > 0
        sums, sizes = np.bincount(group, counts[:i]), np.bincount(group, filled)
        q = np.where(filled, (sums / np.maximum(sizes, 1))[group], 0)
        used = p > 0
        if (q[used] == 0).any():
            continue
        p, q = p[used] / p.sum(), q[used] / q.sum()
        found[i] = (p * np.log(p / q)).sum()
    return edges[min(found, key=found.get)]


@pytest.mark.parametrize("distribution", [outliers, np.random.Generator.laplace])
def test_entropy_is_near_what_tensor_rt_chooses(distribution, rng):
    x = distribution(rng, size=200_000) if distribution not in DISTRIBUTIONS else distribution(rng)
    _, high = chosen(Entropy(), x, symmetric=True)
    expected = tensor_rt(x)
    assert 0.7 * expected < max(high, 0.0) < 1.4 * expected


@pytest.mark.parametrize("observer", HISTOGRAMS)
@pytest.mark.parametrize("spec", [*SPECS, {"bits": 16, "symmetric": True}], ids=str)
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-25])
def test_constants_have_their_own_range(observer, spec, value):
    low, high = chosen(observer, np.full((4, 5), value), **spec)
    assert low == pytest.approx(value, rel=1e-3)
    assert high == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("observer", HISTOGRAMS)
def test_few_samples_keep_their_range(observer):
    assert chosen(observer, np.array([-1.0, 0.5, 2.0])) == pytest.approx((-1.0, 2.0), rel=2e-3)


@pytest.mark.parametrize("observer", [Entropy(), MSE()])
def test_sixteen_bits_have_room_for_all(observer, rng):
    x = lognormal(rng)
    high = chosen(observer, x, bits=16, symmetric=True)[1]
    assert high > 0.9 * x.max()


def test_tensors_that_share_a_range_are_looked_at_as_one(rng):
    a, b = relu(rng), -3 * relu(rng)
    grid = FakeQuantize().grid_of
    for observer in HISTOGRAMS:
        lows, highs = observer.bounds([look(observer, a), look(observer, b)], grid)
        expected = chosen(observer, np.concatenate([a, b]))
        np.testing.assert_allclose(lows, expected[0], rtol=1e-6)
        np.testing.assert_allclose(highs, expected[1], rtol=1e-6)


# In a model ---------------------------------------------------------------------------


@lossy
@pytest.mark.parametrize("observer", ["percentile", "entropy", "mse"])
def test_calibration_with_a_histogram(observer, rng):
    model = enliven(mlp(), rng)
    x = rng.normal(size=(400, 6)).astype("float32")
    x[7, 2] = 90.0
    q = intact.calibrate(intact.quantize_model(model), x, observer=observer, verbose=0)
    features = quantizers(q)["features"]
    low, high = chosen(get_observer(observer), x)
    np.testing.assert_allclose(host(features.minimum), [low], rtol=1e-5)
    np.testing.assert_allclose(host(features.maximum), [high], rtol=1e-5)
    assert intact.compare(q, intact.export(q), x, per_layer=False).max_lsb == 0


def test_a_fused_clamp_bounds_what_is_seen(rng):
    x = 4 * rng.normal(size=(40, 8, 8, 3)).astype("float32")
    q = intact.quantize_model(enliven(cnn(), rng))
    intact.calibrate(q, x, observer=Percentile(99.0), verbose=0)
    found = quantizers(q)["act_2"]
    assert 0 <= float(host(found.minimum)[0]) < 1e-3
    assert 0 < float(host(found.maximum)[0]) <= 6


@lossy
def test_a_spec_chooses_its_own_observer(rng):
    spec = TensorSpec(observer=Percentile(90.0))
    scheme = intact.Scheme("own", (intact.Rule("hidden*", activations=spec), intact.Rule()))
    x = rng.normal(size=(400, 6)).astype("float32")
    model = enliven(mlp(), rng)
    plain = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    q = intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0)
    scales = [{n: float(host(f.scale)) for n, f in quantizers(m).items()} for m in (plain, q)]
    assert scales[1]["hidden_relu"] < 0.9 * scales[0]["hidden_relu"]
    assert scales[1]["head"] == pytest.approx(scales[0]["head"], rel=1e-5)
    again = keras.Model.from_config(q.get_config())
    assert quantizers(again)["hidden_relu"].spec == spec


@dataclasses.dataclass(frozen=True)
class Narrow(intact.Observer):
    """A user's observer: a share of the smallest and largest value."""

    share: float = 0.5

    def bounds(self, states, grid_of):
        low, high = super().bounds(states, grid_of)
        return self.share * low, self.share * high


@lossy
def test_a_users_observer_is_saved(tmp_path, rng):
    rule = intact.Rule(
        weights=intact.TensorSpec(symmetric=True, per_axis=True),
        activations=intact.TensorSpec(observer=Narrow(0.25)),
    )
    q = intact.quantize_model(mlp(), intact.Scheme("narrow", (rule,)))
    q.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    data = rng.normal(size=(32, 6)).astype("float32")
    again.set_weights(q.get_weights())
    for model in (q, again):
        intact.calibrate(model, data, bias_correction=False, verbose=0)
    assert intact.export(q) == intact.export(again)
    assert quantizers(again)["features"].spec.observer == Narrow(0.25)


def test_a_users_observer_replaces_no_other():
    with pytest.raises(intact.IntactError, match=r"'percentile'.*Percentile"):

        class Other(intact.Observer):
            name = "percentile"
