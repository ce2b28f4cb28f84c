"""Fixed-point multiplication against 64-bit integers."""

import numpy as np
import pytest
from keras import ops
from small import host

from intact.numerics.fixed_point import Multiplier, multiplier, multiply


def expected_multiplier(a, b, c):
    mantissa, exponent = np.frexp(float(a) * float(b) / float(c))
    return int(np.floor(mantissa * 2.0**31 + 0.5)), int(exponent)


def expected_product(values, mantissa, exponent):
    product = (values.astype("int64") << max(exponent, 0)) * mantissa
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.sign(nudged) * (np.abs(nudged) >> 31)
    right = max(-exponent, 0)
    mask = (1 << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def test_multipliers_are_those_of_doubles():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b, c = np.exp(rng.uniform(-8, 3, 3)).astype("float32")
        made = multiplier(a, b, c)
        assert (int(made.mantissa), int(made.exponent)) == expected_multiplier(a, b, c)


@pytest.mark.parametrize("largest", [2**22, 2**22 - 1])
@pytest.mark.parametrize("exponent", [-30, -20, -7, -1, 0, 1])
def test_products_are_those_of_64_bits(exponent, largest):
    rng = np.random.default_rng(1)
    values = rng.integers(-largest, largest, 20_000).astype("int32")
    values[:9] = [0, 1, -1, 2, -2, 3, -3, largest, -largest]
    for mantissa in (2**30, 2**31 - 1, *rng.integers(2**30, 2**31, 5)):
        by = Multiplier(*(ops.convert_to_tensor(int(x), "int32") for x in (mantissa, exponent)))
        found = host(multiply(ops.convert_to_tensor(values), by))
        np.testing.assert_array_equal(found, expected_product(values, int(mantissa), exponent))


@pytest.mark.parametrize("last", [1, -4])
def test_channels_have_multipliers_of_their_own(rng, last):
    values = rng.integers(1 - 2**22, 2**22, (500, 4)).astype("int32")
    mantissa, exponent = rng.integers(2**30, 2**31, 4), np.array([-9, -1, 0, last])
    by = Multiplier(*(ops.convert_to_tensor(x, "int32") for x in (mantissa, exponent)))
    half_up = np.array([True, False, False, True])
    seen = host(multiply(ops.convert_to_tensor(values), by, ops.convert_to_tensor(half_up)))
    for channel in range(4):
        expected = expected_product(values[:, channel], mantissa[channel], exponent[channel])
        if half_up[channel]:
            once = (
                (values[:, channel].astype("int64") << max(exponent[channel], 0))
                * mantissa[channel]
                + 2**30
            ) >> 31
            right = max(-exponent[channel], 0)
            expected = (once + (1 << right >> 1)) >> right
        np.testing.assert_array_equal(seen[:, channel], expected)


def test_large_products_stay_large():
    by = multiplier(8.0, 8.0, 0.25)
    found = host(multiply(ops.convert_to_tensor([2**20, -(2**20), 5], "int32"), by))
    assert found[0] > 2**20
    assert found[1] < -(2**20)
    assert found[2] == 5 * 256
