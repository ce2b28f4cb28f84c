"""A training step of two checkouts of intact, in turns.

    KERAS_BACKEND=torch python benchmarks/step_ratio.py OLD NEW

`OLD` and `NEW` are folders with a checkout each. Prints the ratio of processor times, new to old:
the median over the rounds, and its quartiles.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import pretrained
from keras import layers

import intact

ROUNDS = int(os.environ.get("ROUNDS", "15"))
MODELS = ("ResNet-20", "transformer block")


def resnet() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """ResNet-20 and a batch of 64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 32, 32, 3)).astype("float32")
    return pretrained("resnet20_cifar10"), x, rng.integers(0, 10, 64)


def transformer() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A block of 128 channels on 64 tokens, and a batch of 16."""
    x = keras.Input((64, 128))
    y = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(4, 32)(x, x)]))
    z = layers.Dense(128)(layers.Dense(512, "relu")(y))
    y = layers.LayerNormalization()(layers.Add()([y, z]))
    model = keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y)))
    rng = np.random.default_rng(0)
    return model, rng.normal(size=(16, 64, 128)).astype("float32"), rng.integers(0, 10, 16)


def work() -> None:
    """Make steps of a model when it is asked for, until the input ends."""
    models = {}
    for name, build in zip(MODELS, (resnet, transformer), strict=True):
        model, x, y = build()
        q = intact.quantize_model(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        q.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
        for _ in range(3):
            q.train_on_batch(x, y)
        models[name] = q, x, y
    print("ready", flush=True)
    for name in sys.stdin:
        q, x, y = models[name.strip()]
        start = time.process_time()
        for _ in range(3):
            q.train_on_batch(x, y)
        print("took", (time.process_time() - start) / 3, flush=True)


def answer(process: subprocess.Popen, word: str) -> list[str]:
    """The next line of a process that begins with a word."""
    while line := process.stdout.readline():
        if line.startswith(word):
            return line.split()
    raise SystemExit("A process ended.")


def main(folders: list[str]) -> None:
    """Ask both processes in turns."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, str(Path(__file__)), "--work"]
    # One after the other, as both compile.
    processes = []
    for folder in folders:
        env = {**os.environ, "PYTHONPATH": folder}
        processes.append(subprocess.Popen(command, env=env, **pipes))
        answer(processes[-1], "ready")
    for name in MODELS:
        times = []
        for round_ in range(ROUNDS):
            taken = {}
            for process in processes if round_ % 2 else processes[::-1]:
                process.stdin.write(f"{name}\n")
                process.stdin.flush()
                taken[process] = float(answer(process, "took")[1])
            times.append([taken[process] for process in processes])
        ratios = np.array(times)[:, 1] / np.array(times)[:, 0]
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        old, new = 1000 * np.median(times, 0)
        print(
            f"{name}, {keras.backend.backend()}: {old:.0f} ms, {new:.0f} ms, ratio {middle:.3f} "
            f"({low:.3f} to {high:.3f})",
            flush=True,
        )
    for process in processes:
        process.stdin.close()


if __name__ == "__main__":
    work() if sys.argv[1:] == ["--work"] else main(sys.argv[1:])
