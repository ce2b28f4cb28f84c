"""The file of TensorFlow's own converter.

    python benchmarks/peer_converter.py FOLDER out.tflite int8

`peers.py` writes the folder's model and samples.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from data import saved
from measuring import measured, write

OPS = tf.lite.OpsSet
# What it may use in each scheme; it leaves ops in float where it has no integer kernel.
SCHEMES: dict[str, list] = {
    "float": [],
    "float16": [],
    "dynamic_range": [],
    "int8": [OPS.TFLITE_BUILTINS_INT8, OPS.TFLITE_BUILTINS],
    "int16x8": [
        OPS.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        OPS.TFLITE_BUILTINS,
    ],
}


def convert(model: keras.Model, samples: dict[str, np.ndarray], scheme: str) -> bytes:
    """The converter's file, with a batch of 1, which saves it the ops that work out shapes.

    Args:
        model: Any Keras model that TensorFlow can export.
        samples: An array for each input, by its name.
        scheme: One of `SCHEMES`.
    """
    signature = keras.tree.map_structure(
        lambda t: keras.InputSpec(t.dtype, (1, *t.shape[1:]), name=t.name), model.input
    )
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False, input_signature=[signature])
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if scheme != "float":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if scheme == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if SCHEMES[scheme]:
            converter.target_spec.supported_ops = SCHEMES[scheme]
            converter.representative_dataset = lambda: one_by_one(samples)
        return converter.convert()


def one_by_one(samples: dict[str, np.ndarray]) -> Iterator[Any]:
    """Yield each sample by itself; the converter knows a single input by no name of ours."""
    for i in range(len(next(iter(samples.values())))):
        sample = {name: array[i : i + 1] for name, array in samples.items()}
        yield sample if len(sample) > 1 else list(sample.values())


def main(folder: str, out: str, scheme: str) -> None:
    model = saved(f"{folder}/model.keras")
    samples = dict(np.load(f"{folder}/samples.npz"))
    with measured() as cost:
        content = convert(model, samples, scheme)
    write(out, content, cost)


if __name__ == "__main__":
    main(*sys.argv[1:])
