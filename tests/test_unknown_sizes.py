"""Axes of unknown size: one file, resized by the runtime, equal to Keras at each size."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import layers, ops

import intact


class Sized(NamedTuple):
    """A function of symbolic tensors, the shape of its input, and sizes to run it at."""

    function: Callable[[Any], Any]
    shape: tuple[int | None, ...]
    sizes: tuple[tuple[int, ...], ...]


IMAGE = (None, None, 3)
IMAGES = ((16, 16, 3), (24, 37, 3))
EVEN = ((16, 16, 3), (24, 32, 3))
STEPS = ((12, 16), (31, 16))


def features(x: Any) -> Any:
    """What a small convolution makes of images."""
    return layers.Conv2D(8, 3, padding="same", activation="relu")(x)


def unet(x: Any) -> Any:
    """One level of a U-Net."""
    above = features(x)
    below = features(layers.MaxPooling2D()(above))
    joined = layers.Concatenate()([above, layers.Conv2DTranspose(8, 2, 2)(below)])
    return layers.Conv2D(2, 1, activation="softmax")(joined)


def boxes(x: Any) -> Any:
    """Boxes of two levels of a pyramid, in one list."""
    fine = features(x)
    coarse = layers.Conv2D(8, 3, 2, padding="same")(fine)
    fine = layers.UpSampling2D()(coarse) + layers.Conv2D(8, 1)(fine)
    head = layers.Conv2D(12, 3, padding="same")
    return layers.Concatenate(axis=1)([layers.Reshape((-1, 4))(head(t)) for t in (coarse, fine)])


def encoder(x: Any) -> Any:
    """A layer of a transformer."""
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    return layers.GlobalAveragePooling1D()(x + layers.Dense(16, activation="gelu")(x))


class PixelShuffle(layers.Layer):
    """Blocks of pixels by the sizes that a tensor has."""

    def call(self, x: Any) -> Any:
        samples, height, width, channels = ops.shape(x)
        x = ops.reshape(x, (samples, height, width, 2, 2, channels // 4))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (samples, height * 2, width * 2, channels // 4))


class Tokens(layers.Layer):
    """Pixels as the tokens of a transformer."""

    def call(self, x: Any) -> Any:
        samples, height, width, channels = ops.shape(x)
        return ops.reshape(x, (samples, height * width, channels))


class Positions(layers.Layer):
    """A weight for each position, and a constant that is computed from the number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.table = layers.Embedding(40, 16)

    def call(self, x: Any) -> Any:
        steps = ops.shape(x)[1]
        phase = (
            ops.arange(steps, dtype="float32")[:, None] * ops.arange(1, 17, dtype="float32") / 16
        )
        return x + self.table(ops.arange(0, steps, 1)) + ops.sin(phase)


class FewPositions(layers.Layer):
    """A copy of a small table's first rows for each sample."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=(31, shape[-1]))

    def call(self, x: Any) -> Any:
        rows = ops.slice(ops.convert_to_tensor(self.table), (0, 0), ops.shape(x)[1:])
        return ops.concatenate([x, ops.broadcast_to(rows, ops.shape(x))], axis=-1)

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], 2 * shape[-1])


class Causal(layers.Layer):
    """Attention under a mask that is computed from the number of steps, for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 8)

    def call(self, x: Any) -> Any:
        samples, steps, _ = ops.shape(x)
        mask = ops.arange(steps)[:, None] >= ops.arange(steps)
        mask = ops.tile(ops.reshape(mask, (1, steps, steps)), (samples, 1, 1))
        return x + self.attention(x, x, attention_mask=mask)


class GroupedHeads(layers.Layer):
    """Attention of groups of heads, by products of five axes."""

    def call(self, x: Any) -> Any:
        samples, steps, _ = ops.shape(x)
        q = ops.reshape(x, (samples, steps, 2, 2, 4))
        k = ops.reshape(x[:, :, :8], (samples, steps, 2, 4))
        shares = ops.softmax(ops.einsum("btkgh,bskh->bkgts", q, k))
        return ops.reshape(ops.einsum("bkgts,bskh->btkgh", shares, k), (samples, steps, 16))


CASES = {
    "strided convolutions": Sized(
        lambda x: layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3, 2)(features(x))),
        IMAGE,
        IMAGES,
    ),
    "nearest": Sized(lambda x: layers.UpSampling2D((3, 2))(features(x)), IMAGE, IMAGES),
    "bilinear": Sized(
        lambda x: layers.UpSampling2D((3, 2), interpolation="bilinear")(features(x)),
        IMAGE,
        IMAGES,
    ),
    "resizing": Sized(lambda x: features(layers.Resizing(20, 24)(x)), IMAGE, IMAGES),
    "transposed convolution": Sized(
        lambda x: layers.ReLU()(
            layers.BatchNormalization()(layers.Conv2DTranspose(9, 3, 2)(features(x)))
        ),
        IMAGE,
        IMAGES,
    ),
    "transposed convolution with padding": Sized(
        lambda x: layers.Conv2DTranspose(9, 3, 2, padding="same", activation="relu")(x),
        IMAGE,
        IMAGES,
    ),
    "U-Net": Sized(unet, IMAGE, EVEN),
    "boxes": Sized(boxes, IMAGE, EVEN),
    "blocks of pixels": Sized(lambda x: ops.nn.depth_to_space(features(x), 2), IMAGE, IMAGES),
    "group normalization": Sized(
        lambda x: layers.GroupNormalization(4)(features(x)), IMAGE, IMAGES
    ),
    "instance normalization": Sized(
        lambda x: layers.GroupNormalization(-1)(features(x)), IMAGE, IMAGES
    ),
    "one axis": Sized(
        lambda x: layers.UpSampling1D(2)(layers.Conv1DTranspose(8, 3, 2)(x)), (None, 16), STEPS
    ),
    "code for blocks of pixels": Sized(lambda x: PixelShuffle()(features(x)), IMAGE, IMAGES),
    "pixels as tokens": Sized(lambda x: layers.Dense(4)(Tokens()(features(x))), IMAGE, IMAGES),
    "positions": Sized(lambda x: Positions()(x), (None, 16), STEPS),
    "a small table for each sample": Sized(lambda x: FewPositions()(x), (None, 16), STEPS),
    "mask": Sized(lambda x: Causal()(x), (None, 16), STEPS),
    "causal attention": Sized(
        lambda x: layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True), (None, 16), STEPS
    ),
    "grouped heads": Sized(lambda x: GroupedHeads()(x), (None, 16), STEPS),
    "attention": Sized(encoder, (None, 16), STEPS),
    "recurrent": Sized(lambda x: layers.LSTM(4)(x), (None, 16), (*STEPS, (1, 16))),
    "recurrent, both ways": Sized(
        lambda x: layers.Bidirectional(layers.GRU(3, return_sequences=True))(x), (None, 16), STEPS
    ),
    "recurrent, with a mask": Sized(
        lambda x: layers.SimpleRNN(4)(layers.Masking()(ops.relu(x - 2.0))),
        (None, 16),
        STEPS,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_equals_keras_at_each_size(name: str) -> None:
    function, shape, sizes = CASES[name]
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = keras.Input(shape)
    quantized = intact.quantize_model(keras.Model(inputs, function(inputs)))
    intact.calibrate(quantized, rng.normal(size=(16, *sizes[0])).astype("float32"), verbose=0)
    file = intact.load_litert(intact.export(quantized, integer_only=True))
    for size in sizes:
        x = rng.normal(size=(3, *size)).astype("float32")
        found, expected = file.predict(x), quantized.predict(x, verbose=0)
        np.testing.assert_array_equal(found, expected)
