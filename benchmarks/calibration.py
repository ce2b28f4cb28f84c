"""Seconds from a float Keras model to its int8 file, beside the peers', in one run.

    python benchmarks/calibration.py                          two rounds, in turns
    PEER_PYTHON=... python benchmarks/calibration.py          with the AI Edge quantizer, too

`PEER_PYTHON` is the Python of an environment that has `ai-edge-quantizer`. Writes what it
measures to `docs/results.md`.
"""

import contextlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from results import write_section

import intact

HERE = Path(__file__).parent
BACKENDS = ("torch", "tensorflow", "jax")
ROUNDS = 2
CONVERTER, QUANTIZER = "TensorFlow's converter", "AI Edge quantizer, its float file included"


def ours(model_path: str, calibration_path: str, out: str) -> None:
    # Keras imports it, where there is one, when it first asks a layer for its settings.
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorflow")
    model = keras.saving.load_model(model_path, compile=False)
    samples = np.load(calibration_path)
    start, work = time.perf_counter(), time.process_time()
    q = intact.quantize_model(model)
    intact.calibrate(q, samples, verbose=0)
    intact.export(q, out, input_dtype="int8", output_dtype="int8")
    print(f"seconds {time.perf_counter() - start:.2f} {time.process_time() - work:.2f}")


def seconds(command: list[str], **env: str) -> tuple[float, float]:
    """Seconds on the clock, and those of all cores together."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    if done.returncode:
        raise SystemExit(f"{command[:2]} failed:\n{done.stderr[-3000:]}")
    clock, cores = re.search(r"seconds (\S+) (\S+)", done.stdout).groups()
    return float(clock), float(cores)


def main() -> None:
    """MobileNetV2 (224 x 224, random weights), 100 images: quantize, calibrate, write; each in
    a fresh process, imports and loading left out, in turns. The median over the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        model, data, real, out = (
            str(Path(folder) / n) for n in ("m.keras", "x.npy", "m.tflite", "out.tflite")
        )
        float_model = keras.applications.MobileNetV2(weights=None)
        float_model.save(model)
        rng = np.random.default_rng(0)
        np.save(data, rng.uniform(-1, 1, size=(100, 224, 224, 3)).astype("float32"))
        intact.export(float_model, real)
        runs = {
            f"intact, {backend}": ([sys.executable, __file__, model, data, out], backend)
            for backend in BACKENDS
        }
        script = str(HERE / "peer.py")
        runs[CONVERTER] = ([sys.executable, script, model, data, out], "tensorflow")
        runs["its float file"] = ([sys.executable, script, model, "", out], "tensorflow")
        if "PEER_PYTHON" in os.environ:
            script = str(HERE / "peer_litert.py")
            command = [os.environ["PEER_PYTHON"], script, real, data, out]
            runs[QUANTIZER] = (command, "")
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, (command, backend) in runs.items():
                found = seconds(command, KERAS_BACKEND=backend)
                if name == QUANTIZER:
                    found = tuple(np.add(found, times["its float file"][-1]))
                times[name].append(found)
                print(name, times[name][-1], flush=True)
    peers = [name for name in (CONVERTER, QUANTIZER) if name in runs]
    heading = (f"{what} of {name}'s" for name in peers for what in ("time", "core seconds"))
    rows = [["", "seconds", "core seconds", *heading]]
    for name, found in times.items():
        ratios = [np.median(np.divide(found, times[peer]), axis=0) for peer in peers]
        medians = np.median(found, axis=0)
        rows.append([name, *(f"{t:.1f}" for t in medians), *(f"{r:.2f}" for r in np.ravel(ratios))])
    print(*rows, sep="\n")
    write_section(
        "speed_calibration",
        main.__doc__ or "",
        rows,
        "PEER_PYTHON=peer/bin/python python benchmarks/calibration.py",
    )


if __name__ == "__main__":
    ours(*sys.argv[1:]) if sys.argv[1:] else main()
