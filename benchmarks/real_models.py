"""Real models, the whole way: accuracy of the LiteRT file, and its equality with Keras.

    python benchmarks/real_models.py            all of it, about half an hour on two cores
    python benchmarks/real_models.py resnet kws speed_step

Writes what it measures to `docs/results.md`, section by section.
"""

import os
import re
import subprocess
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import CIFAR_BLACK, Augmented, augmented, cifar10, imagenet, pretrained, scaled_keywords
from keras import layers
from results import mean_row, write_section

import intact


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def accuracy(file: bytes, x: np.ndarray, y: np.ndarray) -> float:
    return float((intact.load_litert(file).predict(x, batch_size=100).argmax(1) == y).mean())


def row(name: str, kind: str, q: keras.Model, x: np.ndarray, y: np.ndarray) -> list[str]:
    """A line of the table: accuracy on LiteRT, and how Keras agrees."""
    seen = intact.compare(q, intact.export(q, output_dtype="int8"), x, 100, per_layer=False)
    equal = 1 - seen.different / seen.outputs[0].values
    score = percent(accuracy(intact.export(q), x, y))
    return [name, kind, score, percent(seen.top1), f"{seen.max_lsb:g}", f"{100 * equal:.4f} %"]


HEADING = ["model", "", "accuracy on LiteRT", "top-1 as in Keras", "max LSB", "values equal"]


def floating(name: str, model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[str]:
    return [name, "float", percent(accuracy(intact.export(model), x, y)), "", "", ""]


def resnet() -> list[list[str]]:
    """ResNet-20 on CIFAR-10: calibrated on 100 images; trained for 2 epochs of the 20,000."""
    x, y, x_test, y_test = cifar10()
    model = pretrained("resnet20_cifar10")
    q = intact.calibrate(intact.quantize_model(model), x[:100], verbose=0)
    rows = [floating("ResNet-20", model, x_test, y_test)]
    rows.append(row("ResNet-20", "post-training", q, x_test, y_test))
    epochs, batch = 2, 64
    steps = epochs * len(x) // batch
    rate = keras.optimizers.schedules.CosineDecay(5e-4, steps)
    q.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        q.fit(augmented(x, rng, fill=CIFAR_BLACK), y, batch_size=batch, verbose=2)
    return [*rows, row("ResNet-20", f"trained, {epochs} epochs", q, x_test, y_test)]


def mobilenet_25() -> list[list[str]]:
    """MobileNetV1 0.25 on the 600 images; distilled on 300 without labels, scored on the rest.

    The 300 are mirrored and moved by up to 12 pixels at random; three orders of them, for 1 of the
    300 that score is 0.33 points.
    """
    x, y = imagenet()
    model = pretrained("mobilenet_v1_0.25_224")
    name = "MobileNetV1 0.25"
    rows = [floating(f"{name}, 600", model, x, y)]
    q = intact.calibrate(intact.quantize_model(model), x[:100], verbose=0)
    rows.append(row(f"{name}, 600", "post-training", q, x, y))
    rows.append(floating(f"{name}, 300", model, x[300:], y[300:]))
    rows.append(row(f"{name}, 300", "post-training", q, x[300:], y[300:]))
    distilled = []
    for seed in range(3):
        q = intact.calibrate(intact.quantize_model(model), x[:100], verbose=0)
        data = Augmented(x[:300], batch=20, seed=seed, margin=(12, 12))
        intact.distill(q, teacher=model, data=data, epochs=16, temperature=2.0, verbose=2)
        distilled.append(row(f"{name}, 300", "distilled", q, x[300:], y[300:]))
    return [*rows, means(distilled)]


def mobilenet_75() -> list[list[str]]:
    """MobileNetV1 0.75 on the 600 images, calibrated on 100 of them."""
    x, y = imagenet()
    model = pretrained("mobilenet_v1_0.75_224")
    q = intact.calibrate(intact.quantize_model(model), x[:100], verbose=0)
    name = "MobileNetV1 0.75, 600"
    return [floating(name, model, x, y), row(name, "post-training", q, x, y)]


def ds_cnn(classes: int) -> keras.Model:
    """The depthwise-separable keyword network of Zhang et al., arXiv:1711.07128 (small)."""
    x = inputs = keras.Input((49, 10, 1))
    x = layers.Conv2D(64, (10, 4), strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for _ in range(4):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(64, 1, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(classes)(x), name="ds_cnn")


def train_keywords(
    model: keras.Model, x: np.ndarray, y: np.ndarray, rate: float, epochs: int, seed: int
) -> None:
    """Train by Adam with a cosine, on samples moved by up to 4 of their 49 frames at random."""
    data = Augmented(x, y, seed=seed, margin=(4, 0), mirror=False)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * len(data))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, jit_compile=False)
    model.fit(data, epochs=epochs, verbose=0)


def kws() -> list[list[str]]:
    """A DS-CNN for keywords, split by speaker; trained here for 30 epochs, mean of 3 seeds.

    Training moves samples by up to 4 of their 49 frames at random.
    """
    x, y, x_test, y_test = scaled_keywords()
    found: list[list[list[str]]] = [[], [], []]
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        model = ds_cnn(int(y.max()) + 1)
        train_keywords(model, x, y, 2e-3, epochs=30, seed=seed)
        found[0].append(floating("DS-CNN", model, x_test, y_test))
        q = intact.calibrate(intact.quantize_model(model), x[:100], verbose=0)
        found[1].append(row("DS-CNN", "post-training", q, x_test, y_test))
        train_keywords(q, x, y, 2e-4, epochs=5, seed=seed)
        found[2].append(row("DS-CNN", "trained, 5 epochs", q, x_test, y_test))
    return [means(rows) for rows in found]


def kws_delay() -> list[list[str]]:
    """The same network from scratch: a float twin, and one that computes on integers in the last
    third of its training (`Schedule(quant_delay=...)`); same data, rate and epochs."""
    x, y, x_test, y_test = scaled_keywords()
    epochs, switch = 30, 20
    found: list[list[list[str]]] = [[], []]
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        twin = ds_cnn(int(y.max()) + 1)
        delay = intact.Schedule(quant_delay=switch * (len(x) // 64))
        q = intact.quantize_model(twin, schedule=delay)
        for model in (twin, q):
            keras.utils.set_random_seed(seed)
            train_keywords(model, x, y, 2e-3, epochs, seed)
        found[0].append(floating("DS-CNN", twin, x_test, y_test))
        kind = f"quantized from epoch {switch} on"
        found[1].append(row("DS-CNN", kind, q, x_test, y_test))
        print(*(rows[-1] for rows in found), sep="\n", flush=True)
    return [means(rows) for rows in found]


def means(rows: list[list[str]]) -> list[str]:
    """One row for several seeds: the mean of their scores, and the worst agreement."""
    name, kind, *cells = mean_row(rows, 4)
    return [f"{name}, {len(rows)} seeds", kind, *cells]


def speed_conversion() -> list[list[str]]:
    """Seconds and memory from the quantized model to the file, random weights, 224 x 224."""
    rows = [["model", "seconds", "peak memory beyond the model", "of the float weights", "bytes"]]
    for name in ("MobileNetV2", "ResNet50"):
        code = (
            "import sys, time, resource, threading, psutil; sys.path.insert(0, 'benchmarks')\n"
            "import keras, numpy as np, intact\n"
            f"m = keras.applications.{name}(weights=None); q = intact.quantize_model(m)\n"
            "x = np.random.default_rng(0).normal(size=(8, 224, 224, 3)).astype('float32')\n"
            "intact.calibrate(q, x, verbose=0, batch_size=8)\n"
            "process, peak, done = psutil.Process(), [0], []\n"
            "base = process.memory_info().rss\n"
            "def watch():\n"
            "    while not done:\n"
            "        peak[0] = max(peak[0], process.memory_info().rss - base); time.sleep(0.001)\n"
            "t = threading.Thread(target=watch); t.start()\n"
            "s = time.perf_counter(); b = intact.export(q); e = time.perf_counter() - s\n"
            "done.append(1); t.join()\n"
            "print('RESULT', e, peak[0], 4 * m.count_params(), len(b))\n"
        )
        text = run([sys.executable, "-c", code], one_core=True)
        seconds, peak, weights, size = map(float, re.search(r"RESULT (.*)", text)[1].split())
        share = f"{peak / weights:.2f}"
        rows.append([name, f"{seconds:.2f}", f"{peak / 2**20:.0f} MiB", share, f"{size:.0f}"])
    return rows


def run(command: list[str], one_core: bool = False, **env: str) -> str:
    """A command's output; its errors end the benchmark."""
    command = ["taskset", "-c", "0", *command] if one_core else command
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    if done.returncode:
        raise SystemExit(f"{command[:2]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


SCHEDULES = {
    "plain": None,
    "scheduled": intact.Schedule(),
    "delayed": intact.Schedule(quant_delay=10**6),
}


def speed_step() -> list[list[str]]:
    """A training step, compiled: ResNet-20 with a batch of 64, MobileNetV2 (224 x 224) with one
    of 8; quantized against float, in turns.

    "Scheduled" has a `Schedule`, "delayed" one whose `quant_delay` is not over.
    """
    rows = [["model", "", "backend", "float ms", "quantized ms", "ratio (median)"]]
    kinds = [("ResNet-20", kind) for kind in SCHEDULES] + [("MobileNetV2", "plain")]
    for name, kind in kinds:
        for backend in ("jax", "torch", "tensorflow"):
            text = run([sys.executable, __file__, "_step", name, kind], KERAS_BACKEND=backend)
            rows.append([name, kind, backend, *re.search(r"RESULT (.*)", text)[1].split()])
            print(rows[-1], flush=True)
    return rows


def _step(name: str, kind: str) -> None:
    small = name == "ResNet-20"
    model = (
        pretrained("resnet20_cifar10") if small else keras.applications.MobileNetV2(weights=None)
    )
    q = intact.quantize_model(model, schedule=SCHEDULES[kind])
    pair = (keras.models.clone_model(model), q)
    rng = np.random.default_rng(0)
    shape = (64 if small else 8, *model.input_shape[1:])
    x, y = rng.normal(size=shape).astype("float32"), rng.integers(0, 10, shape[0])
    for m in pair:
        compile_step(m, logits=small)
    times = np.array([[step_seconds(m, x, y) for m in pair] for _ in range(9)])[2:]
    ratio = np.median(times[:, 1] / times[:, 0])
    print("RESULT", *(f"{1000 * t:.0f}" for t in np.median(times, 0)), f"{ratio:.2f}")


def compile_step(model: keras.Model, logits: bool = True) -> None:
    """Make a model ready for steps that are timed."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)


def step_seconds(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Seconds of a training step, the mean of five."""
    start = time.perf_counter()
    for _ in range(5):
        model.train_on_batch(x, y)
    return (time.perf_counter() - start) / 5


def latency(files: list[bytes], x: np.ndarray, rounds: int = 25) -> np.ndarray:
    """Seconds of one run of each file, taken in turns, best of several."""
    interpreters = []
    for file in files:
        interpreter = intact.load_litert(file).interpreter
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreters.append(interpreter)
    times = np.zeros((rounds, len(files)))
    for i in range(rounds):
        for j, interpreter in enumerate(interpreters):
            tries = []
            for _ in range(6):
                start = time.perf_counter()
                interpreter.invoke()
                tries.append(time.perf_counter() - start)
            times[i, j] = min(tries)
    return times[1:]


SECTIONS = {
    "resnet": resnet,
    "mobilenet_25": mobilenet_25,
    "mobilenet_75": mobilenet_75,
    "kws": kws,
    "kws_delay": kws_delay,
    "speed_conversion": speed_conversion,
    "speed_step": speed_step,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["_step"]:
        _step(*sys.argv[2:])
        sys.exit()
    for chosen in sys.argv[1:] or SECTIONS:
        began = time.perf_counter()
        rows = SECTIONS[chosen]()
        rows = rows if chosen.startswith("speed") else [HEADING, *rows]
        print(*rows, f"({time.perf_counter() - began:.0f} s)", sep="\n", flush=True)
        command = f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/real_models.py"
        write_section(chosen, SECTIONS[chosen].__doc__ or "", rows, f"{command} {chosen}")
