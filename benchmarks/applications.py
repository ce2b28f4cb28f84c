"""Every family of `keras.applications`, the whole way: integer-only files that equal Keras.

    python benchmarks/applications.py              all of it, about half an hour on two cores
    python benchmarks/applications.py VGG16        some of it
    python benchmarks/applications.py --backends   each family on each backend, 96 x 96

Random weights and random images, default sizes; each model in a process of its own. Writes
the section of `docs/results.md`. With `--backends`, all three backends get the same weights
and images, and rows of families that are not measured stay as they are.
"""

import argparse
import hashlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from results import section_rows, write_section

FAMILIES = (
    "Xception",
    "VGG16",
    "ResNet50",
    "ResNet50V2",
    "InceptionV3",
    "InceptionResNetV2",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "MobileNetV3Large",
    "DenseNet121",
    "NASNetMobile",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "ConvNeXtTiny",
)
# Keras does not build it on torch.
BACKENDS = {"NASNetMobile": "tensorflow"}
HEADING = [
    "model",
    "quantize, s",
    "export, s",
    "ops",
    "float ops",
    "top-1 as in Keras",
    "outputs equal",
    "max LSB",
    "tensors within 1 LSB",
    "peak memory, GiB",
]


EVERY_BACKEND = ("torch", "jax", "tensorflow")
SMALL = (96, 96, 3)
BACKENDS_HEADING = [
    "model",
    "ops",
    "bytes",
    *(f"{backend}: outputs, tensors equal" for backend in EVERY_BACKEND),
    "same file",
]


def measure(name: str) -> list[str]:
    """One row of the table."""
    import keras
    import numpy as np

    import intact

    sizes = {"input_shape": (224, 224, 3)} if "V3" in name and "Mobile" in name else {}
    model, x = random_model(name, **sizes)
    start = time.perf_counter()
    q = intact.quantize_model(model)
    quantize = time.perf_counter() - start
    intact.calibrate(q, x, verbose=0, batch_size=4)
    start = time.perf_counter()
    content = intact.export(q, input_dtype="int8", output_dtype="int8", integer_only=True)
    export = time.perf_counter() - start
    runtime = intact.load_litert(content).interpreter
    tensors = runtime.get_tensor_details()
    floats = sum(np.dtype(d["dtype"]) == np.float32 for d in tensors)
    seen = intact.compare(q, content, x, batch_size=4)
    near = np.mean([a.max_lsb <= 1.001 for a in seen.layers])
    equal = 1 - seen.different / seen.outputs[0].values
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # And it trains.
    q = intact.quantize_model(model)
    before = keras.ops.convert_to_numpy(q.trainable_variables[0]).copy()
    q.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy", run_eagerly=True)
    loss = q.train_on_batch(x[:2], np.array([1, 2]))
    after = keras.ops.convert_to_numpy(q.trainable_variables[0])
    if not np.isfinite(loss) or np.array_equal(before, after):
        raise SystemExit(f"{name} does not train: loss {loss}")
    return [
        name,
        f"{quantize:.1f}",
        f"{export:.1f}",
        str(len(runtime._get_ops_details())),
        str(floats),
        f"{100 * (seen.top1 or 0):.0f} %",
        f"{100 * equal:.2f} %",
        f"{seen.max_lsb:g}",
        f"{100 * near:.1f} %",
        f"{memory:.1f}",
    ]


def random_model(name: str, **settings: Any) -> tuple[Any, Any]:
    """A family's model with random weights and statistics of random images, and the images."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, **settings)
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, size=(8, *model.input_shape[1:])).astype("float32")
    # Statistics of the images, or the values would fade away from layer to layer.
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(x, training=True)
    return model, x


def write_weights(name: str, folder: str) -> list[str]:
    """Write weights and images for `measure_backend`."""
    import numpy as np

    model, x = random_model(name, input_shape=SMALL)
    np.savez(Path(folder, "model.npz"), x, *model.get_weights())
    return [name]


def measure_backend(name: str, folder: str) -> list[str]:
    """Ops, bytes, shares of equal outputs and tensors, and the file's hash, on this backend."""
    import keras
    import numpy as np

    import intact

    model = getattr(keras.applications, name)(weights=None, input_shape=SMALL)
    x, *weights = np.load(Path(folder, "model.npz")).values()
    model.set_weights(weights)
    q = intact.quantize_model(model)
    intact.calibrate(q, x, verbose=0, batch_size=4)
    content = intact.export(q, input_dtype="int8", output_dtype="int8", integer_only=True)
    seen = intact.compare(q, content, x, batch_size=4)
    equal = 1 - seen.different / seen.outputs[0].values
    tensors = np.mean([a.different == 0 for a in seen.layers])
    ops = len(intact.load_litert(content).interpreter._get_ops_details())
    shares = f"{100 * equal:.2f} %, {100 * tensors:.2f} %"
    return [str(ops), f"{len(content):,}", shares, hashlib.sha256(content).hexdigest()]


def run_apart(backend: str, *arguments: str) -> list[str]:
    """What a process of its own measures; nothing where it fails."""
    env = os.environ | {"KERAS_BACKEND": backend}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    result = re.search(r"RESULT (.*)", done.stdout)
    if not result:
        print(done.stderr[-2000:], flush=True)
    return result[1].split("|") if result else []


def backends_row(name: str) -> list[str]:
    """A family on each backend that Keras builds it on."""
    only = BACKENDS.get(name)
    with tempfile.TemporaryDirectory() as folder:
        run_apart(only or "torch", "_write", name, folder)
        results = {}
        for backend in EVERY_BACKEND:
            if not (only and backend == "torch"):
                results[backend] = run_apart(backend, "_backend", name, folder)
                print(name, backend, *results[backend], flush=True)
    measured = [result for result in results.values() if result]
    shares = [
        (results[backend] or ["", "", "failed"])[2] if backend in results else "not in Keras"
        for backend in EVERY_BACKEND
    ]
    same = "yes" if len({result[3] for result in measured}) == 1 else "no"
    return [name, *(measured[0][:2] if measured else ["", ""]), *shares, same]


def main_backends(names: list[str]) -> None:
    """Measure the families on each backend; write the table after each of them."""
    rows = {row[0]: row for row in section_rows("applications_backends")}
    for name in names or FAMILIES:
        rows[name] = backends_row(name)
        text = (
            "Every family of `keras.applications` on each backend, 96 x 96: the same random "
            "weights and 8 random images; int8 in and out, integers only. Outputs, and tensors on "
            "the way, that equal LiteRT's. Keras does not build NASNet on PyTorch."
        )
        table = [BACKENDS_HEADING, *(rows[family] for family in FAMILIES if family in rows)]
        command = "python benchmarks/applications.py --backends"
        write_section("applications_backends", text, table, command)


def main(names: list[str]) -> None:
    """Measure, print and write the table."""
    rows = [HEADING]
    for name in names or FAMILIES:
        row = run_apart(BACKENDS.get(name, os.environ["KERAS_BACKEND"]), "_one", name)
        rows.append(row or [name, "failed", *[""] * 8])
        print(" | ".join(rows[-1]), flush=True)
    if not names:
        text = (
            "Every family of `keras.applications`: random weights, batch norms with the statistics "
            "of 8 random images, calibrated on them; int8 in and out, integers only. Each also "
            "took a training step."
        )
        write_section("applications", text, rows, "python benchmarks/applications.py")


if __name__ == "__main__":
    APART = {"_one": measure, "_write": write_weights, "_backend": measure_backend}
    if sys.argv[1:2] and sys.argv[1] in APART:
        print("RESULT", "|".join(APART[sys.argv[1]](*sys.argv[2:])))
    else:
        parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
        parser.add_argument("families", nargs="*", metavar="family", help="all by default")
        parser.add_argument("--backends", action="store_true", help="each on each backend")
        arguments = parser.parse_args()
        (main_backends if arguments.backends else main)(arguments.families)
