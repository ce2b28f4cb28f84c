"""Our file for a model, made as the peers' files are made, and our training step.

    python benchmarks/peer_intact.py FOLDER out.tflite int8        writes the file, and its cost
    python benchmarks/peer_intact.py FOLDER out.tflite int8 100    with the samples 100 times
    python benchmarks/peer_intact.py FOLDER                        serves steps, as `serve` says

`peers.py` writes the folder's model and samples.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from data import positional, saved
from measuring import measured, serve, write
from real_models import compile_step

import intact


def batches(samples: dict[str, np.ndarray], times: int) -> Iterator[Any]:
    """Yield batches of 25 samples."""
    count = len(next(iter(samples.values())))
    for _ in range(times):
        for i in range(0, count, 25):
            yield positional({name: array[i : i + 25] for name, array in samples.items()})


def main(folder: str, out: str, scheme: str, times: str = "1") -> None:
    model = saved(f"{folder}/model.keras")
    samples = dict(np.load(f"{folder}/samples.npz"))
    with measured() as cost:
        q = model if scheme == "float" else intact.quantize_model(model, scheme)
        if scheme in ("int8", "int16x8"):
            data = positional(samples)
            if times != "1":
                data = partial(batches, samples, int(times))
            intact.calibrate(q, data, verbose=0)
        content = intact.export(q)
    if times == "1":
        test = {name: array[:50] for name, array in np.load(f"{folder}/test.npz").items()}
        seen = intact.compare(q, content, positional(test), 25, per_layer=False)
        cost["equal"] = 1 - seen.different / sum(output.values for output in seen.outputs)
    write(out, content, cost)


def steps(folder: str) -> None:
    """Serve steps of the float and the quantized model, with a batch of random images."""
    models = {"float": saved(f"{folder}/model.keras")}
    models["quantized"] = intact.quantize_model(models["float"])
    x, y = np.load(Path(folder, "batch.npz")).values()
    for model in models.values():
        compile_step(model)
    serve({kind: lambda m=m: m.train_on_batch(x, y) for kind, m in models.items()})


if __name__ == "__main__":
    (main if sys.argv[2:] else steps)(*sys.argv[1:])
