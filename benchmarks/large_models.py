"""What quantizing, calibrating and exporting a large model take: memory and time of each stage.

    python benchmarks/large_models.py [SCHEME ...] [--layers 24] [--width 3000] [--release] [--run]

Makes a model of dense layers with random weights, in a fresh process for each scheme. Prints the
peak of a stage as the process' resident memory, in multiples of the float weights: of everything,
and less the imports. Linux tells the peak of each stage by itself.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np
from measuring import measured

import intact

SCHEMES = ("int8", "weight_only_8", "dynamic_range")


def float_model(count: int, width: int) -> keras.Model:
    """Dense layers with random weights, in which values keep their size."""
    starts = [keras.initializers.HeNormal(seed) for seed in range(count)]
    dense = [keras.layers.Dense(width, "relu", kernel_initializer=start) for start in starts]
    return keras.Sequential([keras.Input((width,)), *dense])


class Stages:
    """Prints a row for each stage of a process.

    Args:
        weights: The bytes of the float weights.
    """

    def __init__(self, weights: int) -> None:
        self.weights = weights / 2**20
        self.imports = 0.0

    def run(self, name: str, stage: Callable[[], Any]) -> Any:
        """Run a stage, print its row, and return its result."""
        with measured() as cost:
            result = stage()
        gc.collect()
        peak = cost["before"] + cost["mebibytes"]
        self.imports = self.imports or cost["before"]
        ratios = [f"{x / self.weights:6.2f}" for x in (peak, peak - self.imports)]
        times = f"{cost['seconds']:7.1f} s {cost['core_seconds']:7.1f} s"
        print(f"{name:12} {times} {peak:8.0f} MiB", *ratios, flush=True)
        return result


def measure(scheme: str, count: int, width: int, release: bool, run: bool) -> None:
    """Measure the stages of one scheme.

    Args:
        scheme: The name of a preset.
        count: How many layers the model has.
        width: Their inputs and outputs.
        release: Whether the float model is let go once it is quantized.
        run: Whether LiteRT runs the file.
    """
    small = float_model(1, 8)
    # What these import belongs to the imports: Keras loads TensorFlow, where it is installed.
    intact.export(intact.calibrate(intact.quantize_model(small), np.eye(8), verbose=0))
    stages = Stages(4 * count * width * (width + 1))
    x = np.random.default_rng(0).normal(size=(64, width)).astype("float32")
    model = stages.run("float", lambda: float_model(count, width))
    q = stages.run("quantize", lambda: intact.quantize_model(model, scheme))
    if release:
        del model
        gc.collect()
    if scheme == "int8":
        stages.run("calibrate", lambda: intact.calibrate(q, x, verbose=0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        size = stages.run("export", lambda: len(intact.export(q, path)))
        print(f"{'file':12} {size / 2**20:29.0f} MiB")
        if run:
            del q
            gc.collect()
            y = stages.run("run", lambda: intact.load_litert(path).predict(x[:1]))
            assert np.isfinite(y).all()


def main() -> None:
    """Start a process for each scheme."""
    parser = argparse.ArgumentParser()
    parser.add_argument("schemes", nargs="*", default=SCHEMES)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=3000)
    parser.add_argument("--release", action="store_true")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        (scheme,) = options.schemes
        measure(scheme, options.layers, options.width, options.release, options.run)
        return
    for scheme in options.schemes:
        heads = f"{'time':>9} {'processor':>9} {'peak':>12}"
        print(f"\n{scheme:12} {heads}  x weights, less imports", flush=True)
        rest = [argument for argument in sys.argv[1:] if argument not in options.schemes]
        subprocess.run([sys.executable, __file__, scheme, "--here", *rest], check=True)


if __name__ == "__main__":
    main()
