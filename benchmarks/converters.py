"""Which models our converter and TensorFlow's own take, and what becomes of them.

    KERAS_BACKEND=tensorflow python benchmarks/converters.py             writes docs/converters.md
    KERAS_BACKEND=tensorflow python benchmarks/converters.py Bert own_   names that begin so
    ... --json FILE     keeps the results, and measures only what FILE does not have
    ... --page          puts the rows of these results in the place of the page's
    ... --new           measures the models that the page does not have

The models are those of KerasHub (`hub_models.py`) and the architectures in `../shared/zoo`, with
random weights. The peer may leave ops in float (`TFLITE_BUILTINS_INT8, TFLITE_BUILTINS`). Each
model is converted by each in a process of its own.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hub
import hub_models
import keras
import numpy as np

import intact

sys.path.append(str(Path(__file__).parent.parent.parent / "shared" / "zoo"))
harness = importlib.import_module("harness")
importlib.import_module("z_own")

PAGE = Path(__file__).parent.parent / "docs" / "converters.md"
LIMIT = 300
"""Seconds of processor time for a model and a converter."""
CALIBRATION, TEST, BATCH = 16, 8, 4

Data = Callable[[int, int], Any]
"""Random inputs: for a number of samples, and a seed."""


ARCHITECTURES = dict(harness.REG)
"""Those of `../shared/zoo`, by name: functions that build them, and options."""
REWRITTEN = ["keras_io_vit", "perceiver", "mlp_mixer", "fnet", "gmlp", "mobilevit"]
"""Architectures that `z_own2` builds in another way."""
NAMES = [*ARCHITECTURES, *(f"own2_{name}" for name in REWRITTEN), *hub_models.NAMES]


def architecture(name: str) -> Any:
    """An architecture of the zoo."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    # It changes the architectures of the other module.
    importlib.import_module("z_own2")
    return harness.REG[name]


def build(name: str) -> tuple[keras.Model, Data]:
    """A model with random weights, and its data."""
    keras.utils.set_random_seed(1)
    if name in hub_models.NAMES:
        model = hub_models.fixed_sizes(hub_models.build(name), name)
        hub.enliven(model)
        return model, lambda samples, seed: hub.random_data(model, samples, seed)
    make, options = architecture(name)
    model = make()
    model, options = (
        (model[0], options | model[1]) if isinstance(model, tuple) else (model, options)
    )

    def data(samples: int, seed: int) -> Any:
        return harness.gen(model, samples, seed, options)

    model(data(2, 0))
    harness.enliven(model, data, options)
    return model, data


def outputs_of(model: keras.Model, x: Any) -> list[np.ndarray]:
    """The float model's outputs."""
    return [np.asarray(y) for y in keras.tree.flatten(model.predict(x, BATCH, verbose=0))]


def ours(model: keras.Model, data: Data) -> tuple[bytes, float, dict[str, Any]]:
    """Our file, the seconds of processor time that it took, and what else is known of it."""
    facts: dict[str, Any] = {}
    x = data(CALIBRATION, 1)
    start = time.process_time()
    try:
        q = intact.quantize_model(model)
    except (intact.UnsupportedLayerError, intact.NotIntegerError) as error:
        facts["refused"] = str(error)
        q = intact.quantize_model(model, allow_float=True)
    intact.calibrate(q, x, batch_size=BATCH, verbose=0)
    content = intact.export(q)
    seconds = time.process_time() - start
    seen = intact.compare(q, content, data(TEST, 2), batch_size=BATCH, per_layer=False)
    facts["equal"] = 1 - seen.different / max(sum(output.values for output in seen.outputs), 1)
    return content, seconds, facts


def peers(model: keras.Model, data: Data) -> tuple[bytes, float, dict[str, Any]]:
    """The file of TensorFlow's converter, and the seconds of processor time that it took."""
    import tensorflow as tf

    samples = [np.asarray(x) for x in keras.tree.flatten(data(CALIBRATION, 1))]
    start = time.process_time()
    old = model.inputs if getattr(model, "inputs", None) else samples
    inputs = [
        keras.Input(batch_shape=(1, *x.shape[1:]), dtype=str(t.dtype), name=f"i{i}")
        for i, (t, x) in enumerate(zip(old, samples, strict=True))
    ]
    nested = keras.tree.pack_sequence_as(data(1, 1), inputs)
    flat = keras.Model(inputs, keras.tree.flatten(model(nested)))
    with tempfile.TemporaryDirectory() as folder:
        signature = [[keras.InputSpec(t.dtype, t.shape, name=t.name) for t in inputs]]
        flat.export(folder, verbose=False, input_signature=signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            {f"i{i}": x[n : n + 1] for i, x in enumerate(samples)} for n in range(CALIBRATION)
        )
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
        content = converter.convert()
    return content, time.process_time() - start, {}


def run_peer(content: bytes, x: Any) -> list[np.ndarray]:
    """The outputs of the peer's file, a sample at a time."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner()
    samples = [np.asarray(part) for part in keras.tree.flatten(x)]
    rows = []
    for n in range(TEST):
        outputs = runner(**{f"i{i}": part[n : n + 1] for i, part in enumerate(samples)})
        rows.append([outputs[key] for key in sorted(outputs, key=lambda k: int(k.split("_")[1]))])
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def measure(name: str, convert: Callable[..., Any]) -> dict[str, Any]:
    """What becomes of a model by one converter."""
    result: dict[str, Any] = {"stage": "build"}
    try:
        model, data = build(name)
        x = data(TEST, 2)
        expected = outputs_of(model, x)
        result["stage"] = "convert"
        content, seconds, facts = convert(model, data)
        result["stage"] = "run"
        inspected = intact.inspect(content)
        result |= facts | {
            "seconds": seconds,
            "ops": sum(inspected.op_counts.values()),
            "counts": inspected.op_counts,
            "float": len(inspected.float_ops) + len(inspected.hybrid_ops),
            "bytes": len(content),
        }
        if convert is peers:
            outputs = run_peer(content, x)
        else:
            outputs = keras.tree.flatten(intact.load_litert(content).predict(x, batch_size=BATCH))
        result["snr"] = harness.match_snr(expected, [np.asarray(y) for y in outputs])
        result["stage"] = "done"
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"[:2000]
    return result


def apart(name: str, convert: Callable[..., Any]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        there.send(measure(name, convert))

    process = context.Process(target=run)
    process.start()
    there.close()
    result: dict[str, Any] = {"stage": "convert"}
    try:
        result = here.recv()
    except EOFError:
        result["error"] = f"the process died, or took more than {LIMIT} s"
    process.join()
    return result


TEXT = """# Beside TensorFlow's converter

Models of KerasHub {version} and architectures of our own (`own_...`), built small, with random
weights. Both converters calibrate on the same {calibration} samples. The peer is
`tf.lite.TFLiteConverter` of TensorFlow {tensorflow} with `TFLITE_BUILTINS_INT8, TFLITE_BUILTINS`:
int8, and float where there is no integer kernel; its batch is fixed to 1. All ops of all subgraphs
of a file count. "Float" says how many of them compute in float. The signal-to-noise ratio is that
of the worst output against the float model, on samples that were not calibrated on. Seconds are
processor time from the float model to the file.

{models} of {known} models were measured. Ours takes {ours} of them and the peer {peers};
{only_peer} are taken by the peer alone. In {equal} of our files every output equals that of Keras'
quantized model. Where both have a file, ours has more than 1.3 times the peer's ops in {larger}.
A conversion took more than 5 s for {slow} of ours and {peer_slow} of the peer's.

{table}

`KERAS_BACKEND=tensorflow python benchmarks/converters.py` (AMD EPYC with AVX2, on machines that
others used; rows are measured anew when a converter or a model changes)
"""
HEADING = [
    *("model", "ops", "peer's", "ratio", "equal", "float", "peer's", "SNR dB", "peer's"),
    *("s", "peer's"),
]


def least(result: dict[str, Any]) -> str:
    """The SNR of the worst output, as a cell."""
    known = [n for n in result.get("snr", ()) if isinstance(n, float | int)]
    if not known:
        return ""
    return "exact" if min(known) >= 200 else f"{min(known):.0f}"


def reason(result: dict[str, Any]) -> str:
    """Why there is no file, as a cell."""
    text = result["error"]
    for part in ("(", "loc"):
        text = text.split(f"\n{part}")[0]
    return text.split("\n")[0].replace("|", "\\|")[:110]


PLACES = {"ours": (1, 5, 7, 9), "peers": (2, 6, 8, 10)}
"""Where the cells of a converter are in a row."""


def row(name: str, of: dict[str, dict[str, Any]], kept: list[str] | None = None) -> list[str]:
    """A row of the table; what was not measured is taken from the row that the page has."""
    cells = [*(kept or [name, *[""] * (len(HEADING) - 1)])]
    for kind, result in of.items():
        found = [f"none: {reason(result)}", "", "", ""] if "error" in result else []
        if "ops" in result:
            found = [str(result["ops"]), str(result["float"]), least(result)]
            found.append(f"{result['seconds']:.1f}")
        for place, cell in zip(PLACES[kind], found, strict=True):
            cells[place] = cell
    if "ours" in of:
        cells[4] = f"{100 * of['ours']['equal']:.6g} %" if "equal" in of["ours"] else ""
    both = cells[1].isdigit() and cells[2].isdigit()
    cells[3] = f"{int(cells[1]) / int(cells[2]):.2f}" if both else ""
    return cells


def kept_rows() -> dict[str, list[str]]:
    """The rows that the page has, by the model."""
    lines = [line for line in PAGE.read_text().split("\n") if line.startswith("| ")]
    rows = [line[2:].removesuffix(" |").split(" | ") for line in lines]
    return {row[0]: row for row in rows if row[0] in NAMES}


def page(rows: list[list[str]]) -> str:
    """The page with the table."""
    import tensorflow as tf

    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADING, *rows)]
    lines.insert(1, "|" + " --- |" * len(HEADING))
    files, peer_files = ([row for row in rows if row[n].isdigit()] for n in (1, 2))
    return TEXT.format(
        version=hub_models.keras_hub.__version__,
        tensorflow=tf.__version__,
        calibration=CALIBRATION,
        models=len(rows),
        known=len(NAMES),
        ours=len(files),
        peers=len(peer_files),
        only_peer=sum(not row[1].isdigit() for row in peer_files),
        equal=sum(row[4] == "100 %" for row in files),
        larger=sum(int(row[1]) > 1.3 * int(row[2]) for row in files if row[2].isdigit()),
        slow=sum(float(row[9]) > 5 for row in files),
        peer_slow=sum(float(row[10]) > 5 for row in peer_files),
        table="\n".join(lines),
    )


def main() -> None:
    """Measure, print, and write the page if nothing was left out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("starts", nargs="*", metavar="start", help="of a name; all by default")
    parser.add_argument("--json", type=Path, help="results to go on from, and where they go")
    parser.add_argument("--page", action="store_true", help="write these rows into the page")
    parser.add_argument("--new", action="store_true", help="models that the page does not have")
    parser.add_argument("--of", choices=["ours", "peers"], help="one converter alone")
    arguments = parser.parse_args()
    starts, file = tuple(arguments.starts), arguments.json
    results = json.loads(file.read_text()) if file and file.exists() else {}
    rows = kept_rows()
    chosen = [n for n in NAMES if not starts or n.startswith(starts)]
    for name in chosen if not arguments.page else []:
        if arguments.new and name in rows:
            continue
        of = results.setdefault(name, {})
        for convert in (ours, peers):
            wanted = arguments.of in (None, convert.__name__)
            if wanted and convert.__name__ not in of:
                of[convert.__name__] = apart(name, convert)
        print(" | ".join(row(name, of, rows.get(name))), flush=True)
        if file:
            file.write_text(json.dumps(results, indent=1, default=str))
    if arguments.page or (not starts and arguments.of is None):
        known = {n: of for n, of in results.items() if n in rows or len(of) == 2}
        rows |= {n: row(n, of, rows.get(n)) for n, of in known.items()}
        PAGE.write_text(page([rows[name] for name in NAMES if name in rows]))


if __name__ == "__main__":
    main()
