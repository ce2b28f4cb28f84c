"""The file of Keras' own `model.quantize("int8")`, which Keras exports.

    python benchmarks/peer_keras.py FOLDER out.tflite int8

Keras quantizes the weights of dense layers and embeddings, and the layers' inputs while they run.
It leaves other layers in float. `peers.py` writes the folder's model and samples.
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from data import positional, saved
from measuring import measured, write


def run(path: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What the file computes, sample by sample."""
    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    names = sorted(runner.get_input_details())
    outputs = []
    for sample in zip(*(arrays[name] for name in sorted(arrays)), strict=True):
        inputs = {name: value[None] for name, value in zip(names, sample, strict=True)}
        (output,) = runner(**inputs).values()
        outputs.append(output[0])
    return np.stack(outputs)


def main(folder: str, out: str, scheme: str) -> None:
    model = saved(f"{folder}/model.keras")
    test = {name: array[:50] for name, array in np.load(f"{folder}/test.npz").items()}
    with measured() as cost:
        model.quantize(scheme)
        model.export(out, format="litert", verbose=False)
    expected = model.predict(positional(test), verbose=0)
    cost["equal"] = float(np.mean(run(out, test) == expected))
    write(out, Path(out).read_bytes(), cost)


if __name__ == "__main__":
    main(*sys.argv[1:])
