"""Models of KerasHub as integer files: a table of all that Keras can build small.

    python benchmarks/hub.py                 all of it, about half an hour; writes docs/keras_hub.md
    python benchmarks/hub.py Bert Whisper    those whose names begin so, with the whole errors
    python benchmarks/hub.py --free Llama    with inputs of unknown length
    ... --json FILE     keeps the results, and measures only what FILE does not have
    ... --page          puts the rows of these results in the place of the page's

Random weights and random data; each model in a process of its own. `hub_models.py` has the models.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hub_models as models
import keras
import numpy as np
from results import version

import intact

PAGE = Path(__file__).parent.parent / "docs" / "keras_hub.md"
LIMIT = 300
"""Seconds of processor time for a model."""
BATCH = 4
# Whole inputs by a part of their name: one more than the largest value.
BOUNDS = {"segment": 2, "positions": models.LENGTH, "label": 2}


def random_data(model: Any, samples: int, seed: int) -> Any:
    """Random data for a model whose sizes are known, or become `LENGTH`."""
    rng = np.random.default_rng(seed)

    def values(name: str, tensor: Any) -> np.ndarray:
        shape = (samples, *(models.LENGTH if size is None else size for size in tensor.shape[1:]))
        if "padding_mask" in name:
            lengths = rng.integers(shape[1] // 2, shape[1] + 1, size=(samples, 1))
            return (np.arange(shape[1]) < lengths).astype(tensor.dtype)
        if "float" in tensor.dtype:
            return rng.uniform(size=shape).astype("float32")
        bound = next((n for part, n in BOUNDS.items() if part in name), models.VOCABULARY)
        return rng.integers(0, bound, size=shape).astype(tensor.dtype)

    return keras.tree.map_structure(lambda tensor: values(tensor.name, tensor), model.input)


def enliven(model: Any) -> None:
    """Random values instead of the zeros and ones that weights begin with."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        value = keras.ops.convert_to_numpy(variable)
        if value.dtype.kind == "f" and np.ptp(value) == 0:
            noise = rng.normal(size=value.shape) / 20
            variable.assign(value * (1 + noise) if value.any() else noise)


def measure(name: str, free: bool = False) -> dict[str, Any]:
    """What becomes of a model.

    Args:
        name: Its name in `hub_models`.
        free: With inputs of unknown length.
    """
    keras.utils.set_random_seed(0)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    result: dict[str, Any] = {"name": name, "stage": "build", "version": version()}
    try:
        model = models.build(name)
        model = model if free else models.fixed_sizes(model, name)
        enliven(model)
        batch = model.inputs[0].shape[0] or BATCH
        result["stage"] = "quantize"
        start = time.process_time()
        try:
            q = intact.quantize_model(model)
        except (intact.UnsupportedLayerError, intact.NotIntegerError) as error:
            result["refused"] = str(error)
            q = intact.quantize_model(model, allow_float=True)
        result["stage"] = "calibrate"
        intact.calibrate(q, random_data(model, 4 * BATCH, 1), batch_size=batch, verbose=0)
        result["stage"] = "export"
        content = intact.export(q)
        result["seconds"] = time.process_time() - start
        result["stage"] = "compare"
        x = random_data(model, 2 * BATCH, 2)
        seen = intact.compare(q, content, x, batch_size=batch, per_layer=False)
        lost = intact.compare(model, content, x, batch_size=batch, per_layer=False)
        values = sum(output.values for output in seen.outputs)
        nodes = [node for node in seen.nodes if node.kind != "INPUT"]
        result |= {
            "equal": 1 - seen.different / values,
            "snr": [output.snr for output in lost.outputs if output.snr is not None],
            "ops": len(nodes),
            "float": dict(Counter(node.kind for node in nodes if node.float)),
            "stage": "done",
        }
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
        result["traceback"] = traceback.format_exc()
    return result


def apart(name: str, free: bool) -> dict[str, Any]:
    """`measure` in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        warnings.simplefilter("ignore")
        there.send(measure(name, free))

    process = context.Process(target=run)
    process.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        error = f"more than {LIMIT} s, or the process died"
        result = {"name": name, "error": error, "version": version()}
    process.join()
    return result


TEXT = """# KerasHub

Backbones and tasks of KerasHub {version}, built small: two layers, a width of 16 to 32, random
weights, inputs of one length. `quantize_model` takes the model of a task; its preprocessing stays
outside (`preprocessor=None`).

{files} of {models} become a file, {integer} of them with integer kernels alone. In {equal} of the
files every output equals that of Keras' quantized model, on random data that was not calibrated on.
The signal-to-noise ratio is that of the file against the float model, of its worst output. Weights
are random, so it says little about a trained model. "In float" lists the kernels that
`allow_float=True` leaves in float, where a model is refused without. Seconds are processor time
from the float model to the file, on a machine that others used. "Made by" is the version and commit
of a row; rows without one are older. {single} is built for a batch of 1, because its `call` mixes
the samples of a batch.

{table}

`python benchmarks/hub.py`
"""
HEADING = ["model", "file", "ops", "outputs equal", "SNR, dB", "seconds", "made by"]


def row(result: dict[str, Any]) -> list[str]:
    """A row of the table."""
    seconds = f"{result['seconds']:.1f}" if "seconds" in result else ""
    if "error" in result:
        reason = f"none: {first_line(result['error'])}"
        return [result["name"], reason, "", "", "", seconds, result["version"]]
    floats = ", ".join(f"{n} {kind}" for kind, n in result["float"].items())
    snr = f"{min(result['snr']):.0f}" if result["snr"] else "whole numbers"
    equal = f"{100 * result['equal']:.2f} %"
    kind = f"in float: {floats}" if floats else "integers only"
    return [result["name"], kind, str(result["ops"]), equal, snr, seconds, result["version"]]


def first_line(text: str) -> str:
    """The beginning of an error, for a cell."""
    return text.split("\n")[0].replace("|", "\\|")[:160]


def kept_rows() -> dict[str, list[str]]:
    """The rows that the page has, by the model."""
    lines = [line for line in PAGE.read_text().split("\n") if line.startswith("| ")]
    rows = [line[2:].removesuffix(" |").split(" | ") for line in lines]
    return {row[0]: row for row in rows if row[0] in models.NAMES}


def page(rows: list[list[str]]) -> str:
    """The page with the table."""
    files = [row for row in rows if row[2]]
    integer = sum(row[1] == "integers only" for row in files)
    equal = sum(row[3] == "100.00 %" for row in files)
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADING, *rows)]
    lines.insert(1, "|" + " --- |" * len(HEADING))
    return TEXT.format(
        version=models.keras_hub.__version__,
        models=len(rows),
        single=", ".join(models.SINGLE),
        files=len(files),
        integer=integer,
        equal=equal,
        table="\n".join(lines),
    )


def main() -> None:
    """Measure, print, and write the page if nothing was left out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("starts", nargs="*", metavar="start", help="of a name; all by default")
    parser.add_argument("--free", action="store_true", help="inputs of unknown length")
    parser.add_argument("--page", action="store_true", help="write these rows into the page")
    parser.add_argument("--json", type=Path, help="keeps all results, with errors")
    arguments = parser.parse_args()
    starts = tuple(arguments.starts)
    kept = arguments.json is not None and arguments.json.exists()
    results = json.loads(arguments.json.read_text()) if kept else []
    done = {result["name"] for result in results}
    for name in models.NAMES:
        if name not in done and (not starts or name.startswith(starts)):
            results.append(apart(name, arguments.free))
            print(" | ".join(row(results[-1])), flush=True)
            if starts:
                for key in ("refused", "error", "traceback"):
                    print(results[-1].get(key, ""), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1, default=str))
    if arguments.page or not (starts or arguments.free):
        rows = kept_rows() | {result["name"]: row(result) for result in results}
        PAGE.write_text(page([rows[name] for name in models.NAMES if name in rows]))


if __name__ == "__main__":
    sys.exit(main())
