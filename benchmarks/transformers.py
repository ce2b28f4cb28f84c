"""Transformers on real data, the whole way: float, calibrated, trained on integers; all on LiteRT.

    KERAS_BACKEND=torch python benchmarks/transformers.py [bert] [vit]

Writes sections of `docs/results.md`. A few minutes each on an idle machine.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from data import fashion_mnist
from docstrings import LIBRARIES, by_library
from real_models import percent
from results import write_section
from transformer_models import bert, texts, vit

import intact

HEADING = ["model", "", "accuracy on LiteRT", "against float", "top-1 as in Keras", "values equal"]
BATCH = 64


def accuracy(file: bytes, x: Any, y: np.ndarray) -> float:
    """The share of samples whose largest output of a file is the right one."""
    return float((intact.load_litert(file).predict(x, batch_size=100).argmax(1) == y).mean())


def train(model: keras.Model, x: Any, y: np.ndarray, rate: float, epochs: int) -> None:
    """Train by Adam with a cosine."""
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * (len(y) // BATCH))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=2)


def rows(
    name: str, model: keras.Model, data: tuple[Any, ...], epochs: int, quantized_epochs: int
) -> list[list[str]]:
    """Train a model in float, calibrate and train it on integers; a row for each."""
    x, y, x_test, y_test = data
    train(model, x, y, 1e-3, epochs)
    base = accuracy(intact.export(model), x_test, y_test)
    found = [[name, f"float, {epochs} epochs", percent(base), "", "", ""]]
    print(found[-1], flush=True)

    def row(kind: str) -> None:
        score = accuracy(intact.export(q), x_test, y_test)
        seen = intact.compare(
            q, intact.export(q, output_dtype="int8"), x_test, 100, per_layer=False
        )
        equal = 1 - seen.different / seen.outputs[0].values
        cells = [percent(score), f"{100 * (score - base):+.2f}", percent(seen.top1)]
        found.append([name, kind, *cells, f"{100 * equal:.4f} %"])
        print(found[-1], flush=True)

    few = keras.tree.map_structure(lambda array: array[:200], x)
    q = intact.calibrate(intact.quantize_model(model), few, verbose=0)
    row("int8, calibrated on 200")
    train(q, x, y, 1e-4, quantized_epochs)
    row(f"int8, trained for {quantized_epochs}")
    return found


def bert_rows() -> list[list[str]]:
    """A BERT of KerasHub's layers (2 x 64, 4 heads) tells by its text which of seven Python
    libraries a docstring is from. Texts of 12 tokens and more, padded to 48 or cut; no file is in
    both parts, and the libraries' names are left out."""
    vocabulary, length = 4096, 48
    x, y, x_test, y_test = by_library(vocabulary, length)
    keras.utils.set_random_seed(0)
    model = bert(len(LIBRARIES), 2, 64, 4, length, vocabulary)
    name = f"BERT, {len(y):,} and {len(y_test):,} texts"
    return rows(name, model, (texts(x), y, texts(x_test), y_test), 4, 2)


def vit_rows() -> list[list[str]]:
    """A Vision Transformer (3 x 64, 4 heads, patches of 7 x 7) on Fashion-MNIST: 12,000 of the
    images, and all 10,000 for testing."""
    x, y, x_test, y_test = fashion_mnist()
    x, x_test = (images[..., None] / 127.5 - 1 for images in (x, x_test))
    x, y = x[:12_000], y[:12_000]
    keras.utils.set_random_seed(0)
    model = vit(10, 28, 7, 3, 64, 4, 1)
    return rows("ViT, Fashion-MNIST", model, (x, y, x_test, y_test), 6, 2)


SECTIONS: dict[str, Callable[[], list[list[str]]]] = {"bert": bert_rows, "vit": vit_rows}


if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        function = SECTIONS[section]
        command = f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/transformers.py"
        table = [HEADING, *function()]
        write_section(f"trained_{section}", function.__doc__ or "", table, f"{command} {section}")
