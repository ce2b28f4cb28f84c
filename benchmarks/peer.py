"""The peer's file for the same network: TensorFlow's own converter, post-training int8.

Run with the TensorFlow backend: `python benchmarks/peer.py model.keras calib.npy out.tflite`.
Writes `out.tflite` and prints the seconds that the conversion took, on the clock and of all cores
together. Without images (an empty name) the file is a float one.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf


def main(model_path: str, calibration_path: str, out: str) -> None:
    model = keras.saving.load_model(model_path, compile=False)
    samples = np.load(calibration_path) if calibration_path else None
    start, work = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if samples is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([x[None]] for x in samples)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        content = converter.convert()
    Path(out).write_bytes(content)
    print(f"seconds {time.perf_counter() - start:.2f} {time.process_time() - work:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
