"""What a training step and `predict` cost, compiled: quantized against float, in turns.

    python benchmarks/training_step.py [BACKEND | MODEL ...]

Writes a section of `docs/results.md`; a run of some backends or models (the beginnings of their
names) leaves the other rows.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import pretrained
from keras import layers
from real_models import compile_step
from results import section_rows, write_section
from transformer_models import bert, random_texts, vit

import intact

SECTION = "training_step"
BACKENDS = ("torch", "jax", "tensorflow")
ROUNDS = 9
HEADING = ["model", "backend", "float ms", "quantized ms", "ratio"]
HEADING += ["float predict ms", "quantized predict ms", "predict ratio"]
HEADING += ["float first step, s", "quantized first step, s"]


def images(*shape: int) -> np.ndarray:
    """Images of normal noise."""
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def recurrent(steps: int, *cells: keras.Layer) -> keras.Model:
    """Recurrent layers of 16 features, and four classes."""
    return keras.Sequential([keras.Input((steps, 16)), *cells, layers.Dense(4)])


MODELS: dict[str, tuple[Callable, Callable]] = {
    "BERT, 4 x 256, 128 tokens, batch 16": (lambda: bert(4), lambda: random_texts(16)),
    "ViT, 4 x 128, 64 patches, batch 64": (lambda: vit(10), lambda: images(64, 32, 32, 3)),
    "ResNet-20, batch 64": (
        lambda: pretrained("resnet20_cifar10"),
        lambda: images(64, 32, 32, 3),
    ),
    "MobileNetV1 0.25, 160 x 160, batch 16": (
        lambda: keras.applications.MobileNet((160, 160, 3), 0.25, weights=None),
        lambda: images(16, 160, 160, 3),
    ),
    "MobileNetV2, 160 x 160, batch 8": (
        lambda: keras.applications.MobileNetV2((160, 160, 3), weights=None),
        lambda: images(8, 160, 160, 3),
    ),
    "GRU 32, 150 steps, batch 32": (
        lambda: recurrent(150, layers.GRU(32)),
        lambda: images(32, 150, 16),
    ),
    "LSTM 32, 150 steps, batch 32": (
        lambda: recurrent(150, layers.LSTM(32)),
        lambda: images(32, 150, 16),
    ),
    "2 LSTMs 32, 32 steps, batch 32": (
        lambda: recurrent(32, layers.LSTM(32, return_sequences=True), layers.LSTM(32)),
        lambda: images(32, 32, 16),
    ),
}


def seconds(step: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    step()
    return time.process_time() - start


def in_turns(steps: list[Callable[[], object]]) -> list[str]:
    """Cells of two functions, float's first: medians, and the median of the rounds' ratios."""
    times = np.array([[seconds(step) for step in steps] for _ in range(ROUNDS + 2)])[2:]
    cells = [f"{1000 * t:.0f}" for t in np.median(times, 0)]
    return [*cells, f"{np.median(times[:, 1] / times[:, 0]):.2f}"]


def measure(name: str) -> list[str]:
    """Cells of a row."""
    make, inputs = MODELS[name]
    model, x = make(), inputs()
    pair = (model, intact.quantize_model(model))
    batch = len(keras.tree.flatten(x)[0])
    y = np.random.default_rng(0).integers(0, 4, batch)
    steps, predictions = [], []
    for m in pair:
        compile_step(m)
        steps.append(lambda m=m: m.train_on_batch(x, y))
        predictions.append(lambda m=m: m.predict(x, batch, verbose=0))
    first = [seconds(step) for step in steps]
    return [*in_turns(steps), *in_turns(predictions), *(f"{s:.1f}" for s in first)]


def measured_apart(name: str, backend: str) -> list[str]:
    """A row, measured in a process of its own."""
    env = os.environ | {"KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "_measure", name]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{name} on {backend} failed:\n{done.stderr[-3000:]}")
    found = re.search(r"RESULT (.*)", done.stdout)
    assert found is not None
    return [name, backend, *found[1].split()]


def processor() -> str:
    """The name of this machine's processor."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown"


def main(chosen: list[str]) -> None:
    """Measure, and write the section."""
    rows = {tuple(row[:2]): row for row in section_rows(SECTION)}
    backends = [backend for backend in BACKENDS if backend in chosen] or BACKENDS
    starts = tuple(name for name in chosen if name not in BACKENDS) or ("",)
    for name in (name for name in MODELS if name.startswith(starts)):
        for backend in backends:
            rows[name, backend] = measured_apart(name, backend)
            print(rows[name, backend], flush=True)
    text = f"""
        A training step and `predict` of one batch by processor time, compiled where the backend
        compiles: quantized against float, in turns, SGD with momentum. Medians of {ROUNDS} rounds;
        the ratio is the median of the rounds' ratios. The first step traces and compiles.
        Processor: {processor()}.
    """
    order = [(name, backend) for name in MODELS for backend in BACKENDS]
    table = [rows[key] for key in order if key in rows]
    write_section(SECTION, text, [HEADING, *table], "python benchmarks/training_step.py")


if __name__ == "__main__":
    if sys.argv[1:2] == ["_measure"]:
        print("RESULT", *measure(sys.argv[2]))
    else:
        main(sys.argv[1:])
