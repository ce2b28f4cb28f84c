"""How many ops our int8 files have beside those of TensorFlow's own converter.

    KERAS_BACKEND=tensorflow python benchmarks/op_counts.py              all models, 10 minutes
    KERAS_BACKEND=tensorflow python benchmarks/op_counts.py gru nerf     some, which are printed

Small models with random weights, calibrated on the same samples. All ops of all subgraphs count,
also those that quantize and dequantize; both files have float inputs and outputs. The peer may
leave ops in float (`TFLITE_BUILTINS_INT8, TFLITE_BUILTINS`), and its batch is fixed to 1, which
saves it the ops that work out shapes. Of loops it makes no integers: its process dies while it
calibrates. Those rows have its dynamic-range files, which compute in float. The seconds are
processor time from the float Keras model to the file.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers, ops
from results import write_section

import intact

HEADING = ["model", "ops", "peer's ops", "its float ops", "ratio", "s", "peer's s"]


def block(layer: Callable[[], Any], *shape: int) -> Callable[[], keras.Model]:
    """A model of one function between two dense layers of the same width."""

    def build() -> keras.Model:
        inputs = keras.Input(shape)
        x = layer()(layers.Dense(shape[-1])(inputs))
        return keras.Model(inputs, layers.Dense(8)(x))

    return build


def image(layer: Callable[[], Any]) -> Callable[[], keras.Model]:
    """A model of one function between two convolutions."""

    def build() -> keras.Model:
        inputs = keras.Input((16, 16, 3))
        x = layer()(layers.Conv2D(16, 3, padding="same")(inputs))
        return keras.Model(inputs, layers.Conv2D(8, 1)(x))

    return build


def words(layer: Callable[[Any], Any], length: int = 32) -> Callable[[], keras.Model]:
    """A classifier of texts of words."""

    def build() -> keras.Model:
        inputs = keras.Input((length,), dtype="int32")
        x = layer(layers.Embedding(200, 32)(inputs))
        return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))

    return build


def attention() -> Callable:
    """Attention of a sequence to itself."""
    layer = layers.MultiHeadAttention(4, 8)
    return lambda x: layer(x, x)


def transformer(x: Any, first: bool) -> Any:
    """One block, with its normalizations before (ViT) or behind its parts (BERT)."""
    norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
    parts = [
        attention(),
        keras.Sequential([layers.Dense(64, activation="gelu"), layers.Dense(32)]),
    ]
    for norm, part in zip(norms, parts, strict=True):
        x = x + part(norm(x)) if first else norm(x + part(x))
    return x


def bert(x: Any) -> Any:
    """Two blocks on embeddings with positions, and the first token."""
    places = layers.Embedding(x.shape[1], x.shape[2])(ops.arange(x.shape[1]))
    x = layers.LayerNormalization(epsilon=1e-6)(x + places)
    for _ in range(2):
        x = transformer(x, first=False)
    return layers.Dense(32, activation="tanh")(x[:, 0])


def vit() -> keras.Model:
    """Patches, two blocks and their mean."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Reshape((64, 32))(layers.Conv2D(32, 4, strides=4)(inputs))
    x = x + layers.Embedding(64, 32)(ops.arange(64))
    for _ in range(2):
        x = transformer(x, first=True)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def nerf() -> keras.Model:
    """A radiance field: sines and cosines of places in six octaves, and an MLP."""
    inputs = keras.Input((3,))
    octaves = [f(2.0**n * inputs) for n in range(6) for f in (ops.sin, ops.cos)]
    x = start = ops.concatenate([inputs, *octaves], axis=-1)
    for i in range(6):
        x = layers.Dense(64, activation="relu")(x)
        x = ops.concatenate([x, start], axis=-1) if i == 3 else x
    density = ops.relu(layers.Dense(1)(x))
    color = layers.Dense(3, activation="sigmoid")(layers.Dense(32, activation="relu")(x))
    return keras.Model(inputs, ops.concatenate([color, density], axis=-1))


def excited() -> Callable:
    """Squeeze and excitation."""
    squeeze = layers.GlobalAveragePooling2D(keepdims=True)
    narrow, wide = layers.Conv2D(4, 1, activation="relu"), layers.Conv2D(16, 1)
    return lambda x: x * ops.sigmoid(wide(narrow(squeeze(x))))


def features(cell: Callable[[], Any]) -> Callable[[], keras.Model]:
    """A recurrent layer on 32 frames."""

    def build() -> keras.Model:
        inputs = keras.Input((32, 10))
        return keras.Model(inputs, layers.Dense(4)(cell()(inputs)))

    return build


def conv_lstm() -> keras.Model:
    """A convolutional LSTM on eight small images."""
    inputs = keras.Input((8, 12, 12, 2))
    x = layers.ConvLSTM2D(6, 3, padding="same")(inputs)
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def bilstm(x: Any) -> Any:
    """A BiLSTM."""
    return layers.Bidirectional(layers.LSTM(16))(x)


def root(x: Any) -> Any:
    """A normalization by the root of the mean square, written out."""
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)


MODELS: dict[str, Callable[[], keras.Model]] = {
    "layer_norm": block(layers.LayerNormalization, 16, 32),
    "rms_norm": block(lambda: root, 16, 32),
    "group_norm": image(lambda: layers.GroupNormalization(4)),
    "unit_norm": block(layers.UnitNormalization, 16, 32),
    "attention": block(attention, 16, 32),
    "bert_2": words(bert),
    "vit_2": vit,
    "resizing_bilinear": image(lambda: layers.Resizing(32, 32)),
    "resizing_nearest": image(lambda: layers.Resizing(24, 24, "nearest")),
    "upsampling_nearest": image(lambda: layers.UpSampling2D(2)),
    "upsampling_bilinear": image(lambda: layers.UpSampling2D(2, interpolation="bilinear")),
    "sigmoid_chain": block(lambda: lambda x: ops.sigmoid(x) * 2 - 1, 16, 32),
    "tanh_chain": block(lambda: lambda x: ops.tanh(x / 30.0) * 30.0, 16, 32),
    "square": block(lambda: ops.square, 16, 32),
    "nerf": nerf,
    "gelu": block(lambda: ops.gelu, 16, 32),
    "gelu_exact": block(lambda: lambda x: ops.gelu(x, approximate=False), 16, 32),
    "silu": block(lambda: ops.silu, 16, 32),
    "hard_swish": block(lambda: ops.hard_silu, 16, 32),
    "mish": block(lambda: layers.Activation("mish"), 16, 32),
    "squeeze_excite": image(excited),
    "simple_rnn": features(lambda: layers.SimpleRNN(16)),
    "lstm": features(lambda: layers.LSTM(16)),
    "lstm_sequences": features(
        lambda: keras.Sequential([layers.LSTM(16, return_sequences=True), layers.LSTM(16)])
    ),
    "gru": features(lambda: layers.GRU(16)),
    "bilstm_text": words(bilstm),
    "conv_lstm": conv_lstm,
}
LOOPS = ("simple_rnn", "lstm", "lstm_sequences", "gru", "bilstm_text", "conv_lstm")
"""The models of which the peer makes loops."""


def samples(model: keras.Model, count: int = 32) -> np.ndarray:
    """Random inputs of a model."""
    rng = np.random.default_rng(0)
    (tensor,) = model.inputs
    shape = (count, *tensor.shape[1:])
    whole = tensor.dtype == "int32"
    return (rng.integers(0, 200, shape) if whole else rng.normal(size=shape)).astype(tensor.dtype)


def our_file(model: keras.Model, x: np.ndarray) -> bytes:
    """Our file."""
    return intact.export(intact.calibrate(intact.quantize_model(model), x, verbose=0))


def peer_file(model: keras.Model, x: np.ndarray | None) -> bytes:
    """The file of TensorFlow's converter; without samples, its ranges are left to run time."""
    import tensorflow as tf

    (tensor,) = model.inputs
    signature = [keras.InputSpec(tensor.dtype, (1, *tensor.shape[1:]))]
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False, input_signature=signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if x is not None:
            converter.representative_dataset = lambda: ([sample[None]] for sample in x)
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
                tf.lite.OpsSet.TFLITE_BUILTINS,
            ]
        return converter.convert()


def timed(convert: Callable[..., bytes], *args: Any) -> tuple[Any, str]:
    """What a file holds, and the seconds of processor time that it took."""
    start = time.process_time()
    content = convert(*args)
    return intact.inspect(content), f"{time.process_time() - start:.1f}"


def measure(name: str) -> list[str]:
    """A line of the table."""
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    x = samples(model)
    ours, seconds = timed(our_file, model, x)
    peer, its_seconds = timed(peer_file, model, None if name in LOOPS else x)
    count, its_count = (sum(seen.op_counts.values()) for seen in (ours, peer))
    in_float = len(peer.float_ops) + len(peer.hybrid_ops)
    ratio = f"{count / its_count:.2f}"
    return [name, f"{count}", f"{its_count}", f"{in_float}", ratio, seconds, its_seconds]


def main(names: list[str]) -> None:
    """Measure, print and write the table."""
    rows = [HEADING]
    for name in names or MODELS:
        rows.append(measure(name))
        print(" | ".join(rows[-1]), flush=True)
    if not names:
        command = f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/op_counts.py"
        write_section("op_counts", (__doc__ or "").split("\n\n")[2], rows, command)


if __name__ == "__main__":
    main(sys.argv[1:])
