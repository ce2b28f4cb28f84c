"""Tries files on TFLite Micro, and compares their outputs with LiteRT's reference kernels."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intact.errors import IntactError
from intact.litert.reader import read
from intact.litert.runtime import LiteRTModel
from intact.targets import micro


@dataclass(frozen=True)
class Trial:
    """The result of trying a file on TFLite Micro.

    Args:
        runs: Whether it runs.
        faults: By index of the op, why it does not run or that it computes other values.
        figures: Bytes of the arena, and how many values differ from LiteRT's.
        agrees: Whether the outputs equal LiteRT's, except for rounding.
        reason: Why the file does not run.
    """

    runs: bool
    faults: dict[int, str]
    figures: dict[str, float] = field(default_factory=dict)
    agrees: bool = True
    reason: str = ""


def try_file(file: bytes, data: Any, samples: int) -> Trial:
    """Run a file on TFLite Micro and on LiteRT's reference kernels.

    Args:
        file: The file's bytes.
        data: The samples, as `LiteRTModel.predict` takes them; None for random ones.
        samples: How many random ones.

    Returns:
        The result. If the file does not run, or computes other values, each op is tried alone.

    Raises:
        MissingToolError: TFLite Micro is not installed.
    """
    model = LiteRTModel(file, kernels="reference")
    inputs = _random(model, samples) if data is None else model.stored(data)
    run = micro.run_micro(file, [_in_batches(model, name, x) for name, x in inputs.items()])
    if run.outputs is None:
        return Trial(False, micro_faults(file), reason=run.reason)
    expected = _outputs(model, inputs)
    figures = {"arena_bytes": float(run.arena_bytes), **_difference(expected, run.outputs)}
    agrees = all(map(_agree, expected, run.outputs))
    return Trial(True, {} if agrees else micro_faults(file), figures, agrees)


def dense_scales_note(file: bytes) -> str:
    """The cost of FULLY_CONNECTED's scales per channel on TFLite Micro, and the remedy.

    Args:
        file: The file's bytes.

    Returns:
        Two sentences; none if the file has no such scales.
    """
    ops = (op for graph in read(file).graphs for op in graph.ops)
    dense = [op.inputs[1] for op in ops if op.name == "FULLY_CONNECTED"]
    channels = sum(len(w.scales) for w in dense if w is not None and len(w.scales) > 1)
    if not channels:
        return ""
    # TFLite Micro keeps a 32-bit multiplier and a 32-bit shift for each.
    return (
        f"On TFLite Micro, the {channels} scales of FULLY_CONNECTED take {8 * channels} bytes of "
        "the arena. The scheme 'int8_dense_per_tensor' has one scale for each layer instead."
    )


def _outputs(model: LiteRTModel, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The stored outputs of a file for stored inputs, sample by sample."""
    if not inputs:
        # An op that reads only constants.
        model.interpreter.invoke()
        details = model.interpreter.get_output_details()
        return [model.interpreter.get_tensor(detail["index"]) for detail in details]
    outputs = model.predict(inputs, batch_size=1, raw=True)
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


def micro_faults(file: bytes) -> dict[int, str]:
    """Try the ops of a file's first graph on TFLite Micro, each alone, on random values.

    Args:
        file: The file's bytes.

    Returns:
        By index of the op, why it does not run or that it computes other values.

    Raises:
        MissingToolError: TFLite Micro is not installed.
    """
    files = list(micro.single_ops(file))
    models = [_reference(content) for content in files]
    inputs = [_random(model, 1) if model else {} for model in models]
    runs = micro.run_files(files, [[x[None] for x in arrays.values()] for arrays in inputs])
    faults = {}
    for index, (model, arrays, run) in enumerate(zip(models, inputs, runs, strict=True)):
        if run.outputs is None:
            faults[index] = run.reason
        elif model and not all(map(_agree, _outputs(model, arrays), run.outputs)):
            faults[index] = "it computes other values than LiteRT's kernel"
    return faults


def _reference(file: bytes) -> LiteRTModel | None:
    """A file on LiteRT's reference kernels; None if they do not run it by itself."""
    try:
        return LiteRTModel(file, kernels="reference")
    except IntactError:
        return None


def _agree(expected: np.ndarray, values: np.ndarray) -> bool:
    """Whether outputs are equal except for rounding: within one step, or 20 dB."""
    gaps = _gaps(expected, values)
    finite = expected[np.isfinite(expected)].astype("float64")
    step = 1.0 if expected.dtype.kind != "f" else 1e-4 * np.abs(finite).max(initial=0)
    return bool(gaps.max(initial=0) <= step or (gaps**2).sum() <= 0.01 * finite.size * finite.var())


def _gaps(expected: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The difference of each value; the last batch may be padded."""
    a = expected.reshape(-1).astype("float64")
    b = values.reshape(-1)[: a.size].astype("float64")
    with np.errstate(invalid="ignore"):
        return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))


def _difference(expected: list[np.ndarray], outputs: list[np.ndarray]) -> dict[str, float]:
    """How outputs differ from those of LiteRT's reference kernels."""
    gaps = np.concatenate([_gaps(a, b) for a, b in zip(expected, outputs, strict=True)])
    return {
        "values_compared": gaps.size,
        "values_unlike_reference_kernels": int((gaps > 0).sum()),
        "largest_difference": float(gaps.max(initial=0)),
    }


def _in_batches(model: LiteRTModel, name: str, values: np.ndarray) -> np.ndarray:
    """Samples in batches of the file's fixed size, the last one filled up."""
    size = int(model.input_details[name]["shape"][0])
    short = -len(values) % size
    values = np.concatenate([values, np.repeat(values[-1:], short, 0)])
    return values.reshape(-1, size, *values.shape[1:])


def _random(model: LiteRTModel, samples: int) -> dict[str, np.ndarray]:
    """Random stored values for each input."""
    rng = np.random.default_rng(0)
    inputs = {}
    for name, detail in model.input_details.items():
        shape, dtype = (samples, *detail["shape"][1:]), np.dtype(detail["dtype"])
        if dtype.kind == "f":
            inputs[name] = rng.normal(size=shape).astype(dtype)
            continue
        # 0 and 1 are valid indices everywhere.
        limits = (0, 1)
        if detail["quantization"][0]:
            limits = (np.iinfo(dtype).min, np.iinfo(dtype).max)
        inputs[name] = rng.integers(*limits, size=shape, endpoint=True).astype(dtype)
    return inputs
