"""Where files run: the real networks on TFLite Micro and the Ethos-U NPUs, and kernel by kernel.

    python benchmarks/targets.py targets        a few minutes
    python benchmarks/targets.py kernels int8   about ten minutes; other schemes, too

`targets` writes its section of `docs/results.md`. `kernels` runs the cases of all ops through the
tools, and prints what it finds other than `intact.litert.kernels.targets` has it. Needs
`pip install 'keras-intact[targets]'`.
"""

import os
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import keras
import numpy as np
from data import cifar10, imagenet, pretrained, scaled_keywords
from real_models import ds_cnn
from results import write_section

import intact
from intact.litert.kernels.targets import TARGETS, runs
from intact.litert.reader import read
from intact.litert.runtime import delegated, fix_sizes
from intact.ops import REGISTRY
from intact.targets import vela
from intact.targets.fitting import working_type
from intact.targets.micro_trial import micro_faults
from intact.targets.placement import place
from intact.testing import build_model, make_data

NPUS = ("ethos-u55", "ethos-u65", "ethos-u85")
IO = {"int16x8": "int16", "uint8": "uint8", "float32": "float32"}


def networks() -> dict[str, tuple[keras.Model, np.ndarray, int]]:
    """Each network with its data, of which the first 100 calibrate, and so many more run."""
    x, y, x_test, _ = scaled_keywords()
    keras.utils.set_random_seed(0)
    kws = ds_cnn(int(y.max()) + 1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    kws.compile(keras.optimizers.Adam(2e-3), loss)
    kws.fit(x, y, 64, epochs=3, verbose=0)
    images = imagenet()[0]
    small = np.concatenate([cifar10()[0][:100], cifar10()[2][:100]])
    return {
        "ResNet-20": (pretrained("resnet20_cifar10"), small, 100),
        "MobileNetV1 0.25": (pretrained("mobilenet_v1_0.25_224"), images, 20),
        "MobileNetV1 0.75": (pretrained("mobilenet_v1_0.75_224"), images, 20),
        "DS-CNN": (kws, np.concatenate([x[:100], x_test[:100]]), 100),
    }


def targets() -> list[list[str]]:
    """int8 files (int8 in and out) on their targets.

    Calibrated on 100 samples; the DS-CNN is trained for 3 epochs. TFLite Micro runs samples of the
    test data and is compared with LiteRT's reference kernels, value by value. The arena is that of
    64-bit pointers. Share of the ops on the NPU and SRAM as Vela has them, for the settings that it
    takes by default. The one value of ResNet-20 differs in its last layer by 1 LSB: of -49.5007,
    LiteRT's reference FULLY_CONNECTED makes -50, as one rounding does, and TFLite Micro's -49, as
    a doubling multiplication with two does.
    """
    heading = ["model", "ops", "TFLite Micro: values", "unlike LiteRT's reference", "arena, KiB"]
    for npu in NPUS:
        heading += [f"on {TARGETS[npu].title} ({vela.ACCELERATORS[npu].split('-')[-1]} MACs)"]
        heading += ["SRAM, KiB"]
    rows = [[*heading, "XNNPACK"]]
    for name, (model, x, samples) in networks().items():
        q = intact.quantize_model(model, target="tflite-micro")
        intact.calibrate(q, x[:100], verbose=0)
        file = intact.export(q, input_dtype="int8", output_dtype="int8", target="tflite-micro")
        found = intact.check(file, "tflite-micro", x[100 : 100 + samples])
        figures = found.figures
        row = [name, str(len(found.ops))]
        for figure in ("values_compared", "values_unlike_reference_kernels"):
            row.append(f"{figures[figure]:,}")
        row.append(kib(figures["arena_bytes"]))
        for npu in NPUS:
            placed = place(file, npu)
            row += [f"{100 * placed.share:.0f} %", kib(placed.figures["sram_bytes"])]
        row.append(f"{100 * intact.check(file, 'xnnpack').share:.0f} %")
        print(row, flush=True)
        rows.append(row)
    return rows


def kib(count: float) -> str:
    return f"{count / 1024:.1f}"


def kernels(schemes: list[str]) -> None:
    """What the tools take of each kernel and type, where the table of the package differs."""
    warnings.simplefilter("ignore")
    seen: Counter = Counter()
    taken: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for scheme in schemes:
        for op in REGISTRY:
            for case in (*op.cases, *op.float_cases):
                file = case_file(case, scheme)
                ops = () if file is None else read(file).graphs[0].ops
                keys = [(one.name, working_type(one)) for one in ops]
                if file is None or all(seen[key] >= 3 for key in keys):
                    continue
                seen.update(set(keys))
                failed = micro_faults(file)
                found = {"tflite-micro": [i not in failed for i in range(len(ops))]}
                found["xnnpack"] = delegated(file)
                for npu in NPUS:
                    left = vela.compile_file(file, vela.ACCELERATORS[npu]).left
                    found[npu] = [one.outputs[0].name not in left for one in ops]
                for target, list_ in found.items():
                    for key, is_taken in zip(keys, list_, strict=True):
                        taken[key][target].append(is_taken)
    for key in sorted(taken):
        for target, answers in taken[key].items():
            if runs(*key, target, host=False) != any(answers):
                print(*key, target, f"{sum(answers)} of {len(answers)}")


def case_file(case: object, scheme: str) -> bytes | None:
    """The file of an op's case, or None where the scheme has none."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    model = build_model(case, rng)
    io = IO.get(scheme, "int8")
    try:
        if scheme != "float32":
            model = intact.quantize_model(model, scheme)
            intact.calibrate(model, make_data(case, rng, 16), verbose=0)
        return fix_sizes(intact.export(model, input_dtype=io, output_dtype=io))
    except intact.IntactError:
        return None


if __name__ == "__main__":
    chosen, *schemes = sys.argv[1:] or ["targets"]
    if chosen == "kernels":
        kernels(schemes or ["int8"])
    else:
        command = "python benchmarks/targets.py targets"
        text = targets.__doc__ or ""
        write_section("targets", text, targets(), command)
