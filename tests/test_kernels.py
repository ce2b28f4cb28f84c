"""Native kernels give the numbers of the formulas."""

import numpy as np
from keras import ops
from small import gradient, host

from intact.kernels import moments, round_clip


def test_round_clip_passes_the_gradient_inside_only():
    start = [-200.0, -127.6, -0.3, 0.0, 12.5, 126.4, 500.0]
    found = gradient(lambda w: round_clip(w, -128.0, 127.0), start)
    np.testing.assert_allclose(found, [0, 2, 3, 4, 5, 6, 0], rtol=1e-4)
    rounded = host(round_clip(np.array(start, "float32"), -128.0, 127.0))
    assert rounded.tolist() == [-128, -128, 0, 0, 12, 126, 127]


def test_round_clip_scales_values_and_gradient():
    start = [-3.0, -0.26, 0.0, 0.25, 0.74, 0.76, 9.0]
    found = gradient(lambda w: round_clip(w, -1.0, 3.0, 4.0), start)
    np.testing.assert_allclose(found, [0, 0, 12, 16, 20, 0, 0], rtol=1e-4, atol=1e-4)
    rounded = host(round_clip(np.array(start, "float32"), -1.0, 3.0, 4.0))
    assert rounded.tolist() == [-1, -1, 0, 1, 3, 3, 3]


def test_moments_are_those_of_the_channels():
    x = np.random.default_rng(0).normal(300.0, 40.0, size=(8, 5, 6, 3)).astype("float32")
    mean, variance = (host(part) for part in moments(x, np.array([290.0, 300.0, 320.0], "float32")))
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, x.var((0, 1, 2)), rtol=1e-4)


def test_moments_have_the_gradients_of_their_formulas():
    x = np.random.default_rng(0).normal(size=12).astype("float32")

    def weighed(w):
        mean, variance = moments(ops.reshape(w, (2, 3, 2)), np.zeros(2, "float32"))
        return ops.concatenate([mean, variance, ops.zeros(8)])

    found = gradient(weighed, x).reshape(6, 2)
    centred = x.reshape(6, 2) - x.reshape(6, 2).mean(0)
    np.testing.assert_allclose(
        found, np.array([1, 2]) / 6 + np.array([3, 4]) * centred * 2 / 6, rtol=1e-3, atol=1e-4
    )
