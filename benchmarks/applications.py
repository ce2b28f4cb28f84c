"""Every family of `keras.applications`, the whole way: integer-only files that equal Keras.

    python benchmarks/applications.py              all of it, about half an hour on two cores
    python benchmarks/applications.py VGG16        some of it

Random weights and random images, default sizes; each model in a process of its own. Writes
the section of `docs/results.md`.
"""

import os
import re
import resource
import subprocess
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from results import write_section

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


def measure(name: str) -> list[str]:
    """One row of the table."""
    import keras
    import numpy as np

    import intact

    keras.utils.set_random_seed(0)
    sizes = {"input_shape": (224, 224, 3)} if "V3" in name and "Mobile" in name else {}
    model = getattr(keras.applications, name)(weights=None, **sizes)
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, size=(8, *model.input_shape[1:])).astype("float32")
    # Statistics of the images, or the values would fade away from layer to layer.
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(x, training=True)
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


def main(names: list[str]) -> None:
    """Measure, print and write the table."""
    rows = [HEADING]
    for name in names or FAMILIES:
        env = os.environ | {"KERAS_BACKEND": BACKENDS.get(name, os.environ["KERAS_BACKEND"])}
        command = [sys.executable, __file__, "_one", name]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        found = re.search(r"RESULT (.*)", done.stdout)
        rows.append(found[1].split("|") if found else [name, "failed", *[""] * 8])
        print(" | ".join(rows[-1]), flush=True)
        if not found:
            print(done.stderr[-2000:], flush=True)
    if not names:
        text = (
            "Every family of `keras.applications`: random weights, batch norms with the statistics "
            "of 8 random images, calibrated on them; int8 in and out, integers only. Each also "
            "took a training step."
        )
        write_section("applications", text, rows, "python benchmarks/applications.py")


if __name__ == "__main__":
    if sys.argv[1:2] == ["_one"]:
        print("RESULT", "|".join(measure(sys.argv[2])))
    else:
        main(sys.argv[1:])
