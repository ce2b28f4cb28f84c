"""How ranges follow the data."""

import numpy as np
import pytest
from small import host

from intact.observers import OBSERVERS, MinMax, MovingAverage, Range

EMPTY = Range(np.float32(0), np.float32(0), np.float32(0))


def feed(observer, batches):
    state = EMPTY
    for low, high in batches:
        state = observer.update(state, np.float32(low), np.float32(high))
    return tuple(float(host(part)) for part in state)


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
