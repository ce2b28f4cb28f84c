"""A BERT of KerasHub's layers and a Vision Transformer of Keras' own, of any size."""

from typing import Any

import keras
import keras_hub
import numpy as np
from keras import layers, ops

LENGTH = 128
VOCABULARY = 8192


def bert(
    classes: int,
    depth: int = 4,
    width: int = 256,
    heads: int = 4,
    length: int = LENGTH,
    vocabulary: int = VOCABULARY,
    dropout: float = 0.1,
) -> keras.Model:
    """A BERT that classifies texts; token 0 is padding, which a mask hides.

    Args:
        classes: How many.
        depth: Encoder layers.
        width: Channels; the feed-forward layers have four times as many.
        heads: Attention heads.
        length: Tokens of a text, padding included.
        vocabulary: How many tokens there are.
        dropout: Share of the values that training leaves out.
    """
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=vocabulary,
        num_layers=depth,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=length,
        dropout=dropout,
    )
    names = ("token_ids", "segment_ids", "padding_mask")
    inputs = {name: keras.Input((length,), dtype="int32", name=name) for name in names}
    pooled = backbone(inputs)["pooled_output"]
    return keras.Model(inputs, layers.Dense(classes, name="classes")(pooled), name="bert")


def texts(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What `bert` takes.

    Args:
        tokens: Of each text, 0 behind its end.
    """
    tokens = tokens.astype("int32")
    padding = (tokens > 0).astype("int32")
    return {"token_ids": tokens, "segment_ids": 0 * tokens, "padding_mask": padding}


def random_texts(count: int, length: int = LENGTH) -> dict[str, np.ndarray]:
    """Random tokens in texts of a quarter of the length to all of it."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, size=(count, length))
    ends = rng.integers(length // 4, length + 1, size=(count, 1))
    return texts(np.where(np.arange(length) < ends, tokens, 0))


@keras.saving.register_keras_serializable("benchmarks")
class Positions(layers.Layer):
    """Adds a trained vector for each place."""

    def build(self, shape: Any) -> None:
        self.vectors = self.add_weight(shape=shape[1:], initializer="random_normal", name="vectors")

    def call(self, x: Any) -> Any:
        return x + self.vectors


def vit(
    classes: int,
    size: int = 32,
    patch: int = 4,
    depth: int = 4,
    width: int = 128,
    heads: int = 4,
    channels: int = 3,
    dropout: float = 0.1,
) -> keras.Model:
    """A Vision Transformer with norms before each part, and the mean of all patches.

    Args:
        classes: How many.
        size: Height and width of the images.
        patch: Height and width of a patch.
        depth: Encoder layers.
        width: Channels; the feed-forward layers have twice as many.
        heads: Attention heads.
        channels: Of the images.
        dropout: Share of the values that training leaves out.
    """
    image = keras.Input((size, size, channels))
    x = layers.Conv2D(width, patch, strides=patch, name="patches")(image)
    x = Positions(name="positions")(layers.Reshape((-1, width))(x))
    for _ in range(depth):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.MultiHeadAttention(heads, width // heads, dropout=dropout)(y, y)
        x = layers.Add()([x, layers.Dropout(dropout)(y)])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(width)(layers.Dense(2 * width, activation="gelu")(y))
        x = layers.Add()([x, layers.Dropout(dropout)(y)])
    x = ops.mean(layers.LayerNormalization(epsilon=1e-6)(x), axis=1)
    return keras.Model(image, layers.Dense(classes, name="classes")(x), name="vit")
