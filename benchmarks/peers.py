"""Every peer beside intact: the same models and data, in turns, in one run.

    make peers                                                  all of it, hours on two cores
    make peers ARGS="--models resnet20,gru --parts latency"     some of it
    make peers ARGS="--schemes int8"

The peers are TensorFlow's converter, Google's AI Edge quantizer (from the converter's float file),
TFMOT on Keras 2, and Keras' own `model.quantize`; `make peers` makes their environments. Each file
is made in a process of its own and stays in `build/peers`, so that a part can be measured alone.
The part `files` makes them anew; `--kept` takes those of an earlier run. Writes `docs/peers.md`;
what is not measured keeps its rows.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from applications import BACKENDS
from peer_models import PRETRAINED, SUBJECTS, Arrays, flat, write_folder
from results import section_rows, write_section

import intact

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "peers"
SCHEMES = ("int8", "int16x8", "dynamic_range", "float16", "float")
ROUNDS, TRIES, LIMIT = 25, 5, 60
"""Rounds of a latency, runs in each of which the best counts, and seconds for all of them."""
SLOW_SAMPLES = 50
"""Samples that score an int16x8 file, which runs on kernels that are not made for speed."""
STEP_ROUNDS = 7
IMAGES = (100, 1_000, 10_000)


@dataclass(frozen=True)
class Tool:
    """What makes files.

    Args:
        title: Its name.
        script: Run as `script FOLDER out.tflite scheme`.
        schemes: Those that it has.
        python: The environment variable with its Python; None for ours.
        models: Those that it takes; None for all.
    """

    title: str
    script: str
    schemes: tuple[str, ...] = SCHEMES
    python: str | None = None
    models: tuple[str, ...] | None = None


TOOLS = {
    "intact": Tool("intact", "peer_intact.py"),
    "converter": Tool("TensorFlow's converter", "peer_converter.py"),
    "quantizer": Tool(
        "AI Edge quantizer",
        "peer_litert.py",
        ("int8", "int16x8", "dynamic_range"),
        "QUANTIZER_PYTHON",
    ),
    "tfmot": Tool("TFMOT", "peer_tfmot.py", ("int8",), "TFMOT_PYTHON", PRETRAINED),
    "keras": Tool("Keras' quantize", "peer_keras.py", ("int8",)),
}


@dataclass(frozen=True)
class File:
    """A tool's file of a model, and what it cost; or why there is none."""

    tool: Tool
    content: bytes
    cost: dict[str, float]
    failure: str = ""


def prepare(name: str) -> Path:
    """The folder of a model, which is written once."""
    folder = FOLDER / name
    if not (folder / "expected.npy").exists():
        write_folder(name, folder)
    return folder


def command(tool: Tool, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """What runs a tool's script, and its environment, without paths and settings of ours."""
    env = dict(os.environ)
    env.pop("KERAS_BACKEND", None)
    python = sys.executable
    if tool.python:
        env.pop("PYTHONPATH", None)
        python = os.environ[tool.python]
    return [python, str(HERE / tool.script), *arguments], env


def run(tool: Tool, *arguments: str, **env: str) -> str:
    """Run a tool's script: why it failed, or nothing."""
    arguments_of, clean = command(tool, *arguments)
    done = subprocess.run(arguments_of, capture_output=True, text=True, env=clean | env)
    if not done.returncode:
        return ""
    if done.returncode < 0:
        return f"its process dies (signal {-done.returncode})"
    errors = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", done.stderr, re.MULTILINE)
    error = (errors or [f"it ends with {done.returncode}"])[-1].replace("|", "/")
    # Without the module of the error's class, the place in the converter's graph, and our paths.
    short = re.sub(r"^[\w.]*\.(?=\w+:)|<unknown>.*\): ", "", error)
    return short.replace(f"{FOLDER}/", "")[:100]


def file_of(name: str, key: str, scheme: str, anew: bool = False) -> File:
    """A tool's file; it is made where there is none."""
    tool, folder = TOOLS[key], prepare(name)
    out = folder / f"{key}.{scheme}.tflite"
    cost_path, failure_path = Path(f"{out}.json"), Path(f"{out}.failure")
    if anew:
        for path in (out, cost_path, failure_path):
            path.unlink(missing_ok=True)
    source = {}
    if key == "quantizer":
        source = file_of(name, "converter", "float").cost
    if not cost_path.exists() and not failure_path.exists():
        backend = BACKENDS.get(name, "torch") if key == "intact" else "tensorflow"
        failure = run(tool, str(folder), str(out), scheme, KERAS_BACKEND=backend)
        if failure:
            failure_path.write_text(failure)
    if failure_path.exists():
        return File(tool, b"", {}, failure_path.read_text())
    cost = json.loads(cost_path.read_text())
    if source:
        cost["core_seconds"] += source["core_seconds"]
        cost["mebibytes"] = max(cost["mebibytes"], source["mebibytes"])
    return File(tool, out.read_bytes(), cost)


def files_of(name: str, scheme: str, anew: bool = False) -> list[File]:
    """The files of all tools that have a scheme, ours first."""
    return [
        file_of(name, key, scheme, anew)
        for key, tool in TOOLS.items()
        if scheme in tool.schemes and name in (tool.models or SUBJECTS)
    ]


def inputs(runtime: intact.LiteRTModel, arrays: Arrays) -> Arrays | np.ndarray:
    """Arrays by the names of a file; a tool may change the name of a single input."""
    return arrays if len(arrays) > 1 else {runtime.input_names[0]: next(iter(arrays.values()))}


# The parts -----------------------------------------------------------------------------


def files_rows(name: str, scheme: str, anew: bool = True) -> Iterator[list[str]]:
    """Ops, size, cost and equality of each file."""
    for file in files_of(name, scheme, anew):
        row = [name, scheme, file.tool.title]
        if file.failure:
            yield [*row, f"fails: {file.failure}", *[""] * 5]
            continue
        seen = intact.inspect(file.content)
        in_float = "" if scheme == "float" else str(len(seen.float_ops) + len(seen.hybrid_ops))
        equal = file.cost.get("equal")
        yield [
            *row,
            str(sum(seen.op_counts.values())),
            in_float,
            f"{len(file.content) / 1000:.0f}",
            f"{file.cost['core_seconds']:.1f}",
            f"{file.cost['mebibytes']:.0f}",
            "no such model" if equal is None else f"{100 * equal:.2f} %",
        ]


def accuracy_rows(name: str, scheme: str) -> Iterator[list[str]]:
    """Accuracy, and the signal-to-noise ratio against float, of each file."""
    folder = prepare(name)
    expected = np.load(folder / "expected.npy")
    count = SLOW_SAMPLES if scheme == "int16x8" and name != "resnet20" else len(expected)
    test = {key: array[:count] for key, array in np.load(folder / "test.npz").items()}
    for file in files_of(name, scheme):
        if file.failure:
            continue
        runtime = intact.load_litert(file.content)
        outputs = flat(runtime.predict(inputs(runtime, test), batch_size=25))
        error = np.mean((outputs - expected[:count]) ** 2)
        snr = 10 * np.log10(np.mean(expected[:count] ** 2) / max(error, 1e-30))
        accuracy = ""
        if (folder / "labels.npy").exists():
            labels = np.load(folder / "labels.npy")[:count]
            accuracy = f"{100 * np.mean(outputs.argmax(1) == labels):.2f} %"
        yield [name, scheme, file.tool.title, str(count), accuracy, f"{min(snr, 150):.1f}"]


def latency_rows(name: str, scheme: str) -> Iterator[list[str]]:
    """Milliseconds of each file, and ours as a ratio."""
    files = [file for file in files_of(name, scheme) if not file.failure]
    if not files:
        return
    test = np.load(prepare(name) / "test.npz")
    sample = {key: array[:1] for key, array in test.items()}
    times = latencies([file.content for file in files], sample)
    ours = times[:, 0] if files[0].tool is TOOLS["intact"] else None
    for file, column in zip(files, times.T, strict=True):
        yield [
            name,
            scheme,
            file.tool.title,
            f"{np.median(column):.3f}",
            f"{column.min():.3f}",
            "" if ours is None else spread(ours / column),
            "" if ours is None else f"{ours.min() / column.min():.2f}",
        ]


def latencies(contents: list[bytes], sample: Arrays) -> np.ndarray:
    """Milliseconds of one sample, `(rounds, files)`: files in turns, the best of a few runs."""
    interpreters = []
    for content in contents:
        runtime = intact.load_litert(content)
        for name, stored in runtime.stored(inputs(runtime, sample)).items():
            runtime.interpreter.set_tensor(runtime.input_details[name]["index"], stored)
        runtime.interpreter.invoke()
        interpreters.append(runtime.interpreter)
    rows: list[list[float]] = []
    end = time.perf_counter() + LIMIT
    while len(rows) < 3 or (len(rows) < ROUNDS and time.perf_counter() < end):
        rows.append([1000 * min(seconds(i.invoke) for _ in range(TRIES)) for i in interpreters])
    return np.array(rows)


def seconds(function: Callable[[], object]) -> float:
    """Processor time of a call, which other load changes less than that of the clock."""
    start = time.process_time()
    function()
    return time.process_time() - start


def step_rows(name: str, scheme: str) -> Iterator[list[str]]:
    """A training step of each tool that trains, quantized against float, in turns."""
    if name not in PRETRAINED or scheme != "int8":
        return
    folder = str(prepare(name))
    servers = {("TFMOT", "tensorflow"): Server(TOOLS["tfmot"], folder, "tensorflow")}
    for backend in ("tensorflow", "torch", "jax"):
        servers["intact", backend] = Server(TOOLS["intact"], folder, backend)
    turns = [(server, kind) for server in servers.values() for kind in ("float", "quantized")]
    times = np.array([[s.seconds(kind) for s, kind in turns] for _ in range(STEP_ROUNDS)])
    for i, (title, backend) in enumerate(servers):
        real, quantized = times[:, 2 * i], times[:, 2 * i + 1]
        milliseconds = (f"{1000 * np.median(column):.0f}" for column in (real, quantized))
        ratios = spread(quantized / real), spread(quantized / times[:, 1])
        yield [name, title, backend, *milliseconds, *ratios]
    for server in servers.values():
        server.end()


class Server:
    """A process that makes training steps when it is asked.

    Args:
        tool: Whose script it is.
        folder: Of the model.
        backend: Of Keras.
    """

    def __init__(self, tool: Tool, folder: str, backend: str) -> None:
        arguments, env = command(tool, folder)
        env |= {"KERAS_BACKEND": backend}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(arguments, env=env, stdin=pipe, stdout=pipe, text=True)
        while self._line() != "ready":
            pass

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended.")
        return line.strip()

    def seconds(self, kind: str) -> float:
        """Processor seconds of a step."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind}\n")
        self.process.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        """Close its input, which ends it."""
        self.process.communicate()


def memory_rows(name: str, scheme: str) -> Iterator[list[str]]:
    """Our cost by the number of images, which a generator yields."""
    if name != "MobileNetV2_100" or scheme != "int8":
        return
    folder = prepare(name)
    out = str(folder / "generator.tflite")
    for images in IMAGES:
        failure = run(TOOLS["intact"], str(folder), out, scheme, str(images // 100 or 1))
        if failure:
            raise SystemExit(failure)
        cost = json.loads(Path(f"{out}.json").read_text())
        yield [f"{images:,}", f"{cost['core_seconds']:.1f}", f"{cost['mebibytes']:.0f}"]


def spread(ratios: np.ndarray) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Part:
    """A table.

    Args:
        rows: Measures the rows of a model in a scheme.
        heading: Of the table.
        keys: How many cells tell a row from all others.
        text: What it is.
    """

    rows: Callable[[str, str], Iterator[list[str]]]
    heading: list[str]
    keys: int
    text: str


WHAT = ["model", "scheme", "made by"]
PARTS = {
    "files": Part(
        files_rows,
        [*WHAT, "ops", "in float", "kB", "core s", "MiB", "equal to Keras"],
        3,
        """All ops of all subgraphs count; "in float" are those that compute on floats, dynamic ones
        included. "Core s" and "MiB" are processor seconds and peak memory beyond the model, from
        the float model to the file, in a process of its own; the AI Edge quantizer's have those of
        the float file that it starts from. "Equal to Keras" is the share of output values that are
        the same on LiteRT and in the tool's quantized Keras model; the converter and the AI Edge
        quantizer have no such model.

        100 samples calibrate the pretrained models and `MobileNetV2_100`, 24 the transformers and
        the recurrent layers, 4 the families of `keras.applications`. TFMOT learns its ranges in
        training; here the samples pass five times, with a learning rate of 0, batch norms at rest,
        and averages that decay by 0.9.""",
    ),
    "accuracy": Part(
        accuracy_rows,
        [*WHAT, "samples", "accuracy", "SNR, dB"],
        3,
        """The files' accuracy, and the signal-to-noise ratio against the float model, on samples
        that calibrated nothing: 2,000 test images of CIFAR-10 for ResNet-20, 500 images for the
        MobileNets. The other models have random weights. An int16x8 file runs on slow kernels, so
        50 samples score those of larger models.""",
    ),
    "latency": Part(
        latency_rows,
        [*WHAT, "ms", "best, ms", "ours / its", "best / best"],
        3,
        f"""One sample on one thread, by processor time. {ROUNDS} rounds (fewer for slow files) in
        which all files take turns; in each, the best of {TRIES} runs counts. "ms" is the median of
        the rounds, "ours / its" the ratio in the same round, with quartiles.""",
    ),
    "step": Part(
        step_rows,
        ["model", "by", "backend", "float ms", "quantized ms", "quantized / float", "of TFMOT's"],
        3,
        f"""A training step by processor time, {STEP_ROUNDS} rounds in turns, SGD with momentum;
        batches of 64 for ResNet-20, of 16 for the MobileNets. Medians, ratios with quartiles. "Of
        TFMOT's" is the ratio of the quantized steps.""",
    ),
    "memory": Part(
        memory_rows,
        ["images", "core s", "MiB"],
        1,
        """Our calibration of MobileNetV2 (224 x 224) by the number of images, which a generator
        yields in batches of 25: from the float model to the file.""",
    ),
}


def order(row: list[str]) -> tuple[int, int]:
    """Where a row stands: by model, then by scheme; rows of equal rank stay as they are."""
    known = list(SUBJECTS)
    model = known.index(row[0]) if row[0] in known else 0
    return model, SCHEMES.index(row[1]) if row[1] in SCHEMES else 0


def schemes_of(name: str) -> tuple[str, ...]:
    """All schemes for pretrained models, and for the others those of the most use."""
    if name in PRETRAINED:
        return SCHEMES
    few = ("int8", "dynamic_range", "float") if name in ("bert", "vit", "lstm", "gru") else ()
    return few or ("int8", "float")


def main(names: list[str], parts: list[str], schemes: list[str]) -> None:
    """Measure, and write after each model and scheme."""
    for name in names:
        for scheme in (scheme for scheme in schemes_of(name) if scheme in schemes):
            for part in parts:
                rows = []
                for row in PARTS[part].rows(name, scheme):
                    print(part, *row, sep=" | ", flush=True)
                    rows.append(row)
                write(part, rows)


def write(part: str, rows: list[list[str]]) -> None:
    """Put rows in place of those that a part has, and write its section."""
    count = PARTS[part].keys
    table = {tuple(row[:count]): row for row in [*section_rows(f"peers_{part}"), *rows]}
    ordered = [PARTS[part].heading, *sorted(table.values(), key=order)]
    if rows:
        write_section(f"peers_{part}", PARTS[part].text, ordered, "make peers")


def listed(known: list[str], text: str) -> list[str]:
    """Names in a list with commas; an unknown one ends the script."""
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for option, known in (("models", SUBJECTS), ("parts", PARTS), ("schemes", SCHEMES)):
        parser.add_argument(f"--{option}", type=partial(listed, list(known)), default=list(known))
    parser.add_argument("--kept", action="store_true", help="take files of an earlier run")
    chosen = parser.parse_args()
    if chosen.kept:
        PARTS["files"] = replace(PARTS["files"], rows=partial(files_rows, anew=False))
    main(chosen.models, chosen.parts, chosen.schemes)
