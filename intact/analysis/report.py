"""Reports: how a file's outputs compare with what was seen in Keras, layer by layer."""

import os
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from intact.analysis.comparison import Comparison, FileNode
from intact.analysis.drawings import picture
from intact.analysis.op_times import op_latencies
from intact.analysis.tallies import Tally
from intact.calibration.float_form import FloatForm
from intact.calibration.sources import Arrays, check_batch
from intact.errors import IntactError
from intact.graph.view import with_outputs
from intact.layers.alignment import Noise, Point, Reference, find_points
from intact.layers.builder import flat
from intact.layers.kernel_graph import kernel_graph
from intact.layers.quantized_model import is_quantized
from intact.layers.stateful import check_stream, refuse_stream, reset_states, stateful_layers
from intact.litert.inspection import is_float
from intact.litert.reader import FileGraph, LiteRTFile, read
from intact.litert.runtime import LiteRTModel, expose, load_litert
from intact.names import Kernels
from intact.numerics.affine import QTensor
from intact.numerics.backend_kernels import predictor

MOST_VALUES = 2**26
"""About how many values of all tensors are looked at in one batch."""


def compare(
    model: keras.Model,
    file: str | os.PathLike | bytes,
    x: Arrays,
    batch_size: int = 32,
    per_layer: bool = True,
    kernels: Kernels = "default",
    float_model: keras.Model | None = None,
    latency: bool = False,
) -> Comparison:
    """Compare a model with the file it was exported to.

    Args:
        model: The quantized model; or a float one, to see what the file lost.
        file: The LiteRT file, or its bytes.
        x: Inputs, an array or several, samples first.
        batch_size: How many samples run at once, at most.
        per_layer: Look at every quantized tensor on the way too.
        kernels: Which of the runtime's kernels to use, as for `load_litert`.
        float_model: The float model that the quantized one was made from. The comparison then
            tells how much each layer differs from it, in total and by itself. By default, the
            quantized model is compared with itself without rounding.
        latency: Also measure each op of the file alone, in some milliseconds for each.

    Returns:
        The comparison; print it, or look at it: `comparison.to_html("page.html")`.

    Raises:
        InvalidDataError: The data does not fit the model.
        IntactError: The file was not exported from this model, or the quantized model was not
            made from this float model.

    Example:

    >>> import intact
    >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    >>> comparison = compare(q, intact.export(q), x, float_model=model)
    >>> comparison.different, comparison.outputs[0].snr > 30
    (0, True)
    """
    plain = _open(model, file)
    content = read(plain.content)
    rounded = any(t.quantized or t.dtype == "float16" for g in content.graphs for t in g.tensors)
    model = flat(model)
    if not is_quantized(model):
        float_model = model if rounded or float_model is not None else None
    arrays = check_batch(x, model.inputs)
    names = [tensor.name for tensor in content.graphs[0].tensors]
    looped = [tensor.name for graph in content.graphs[1:] for tensor in graph.tensors]
    points = find_points(model, names, looped) if per_layer and rounded else []
    if float_model is not None and float_model is not model:
        refuse_stream(model, "a comparison with the float model")
    runner, parts = _runner(model, points, float_model)
    predict = predictor(runner)
    twin = None
    if float_model is None and rounded and not stateful_layers(model):
        twin = FloatForm(model, [*model.outputs, *(point.kernel.output for point in points)])
    exposed = load_litert(expose(plain.content, [p.tensor for p in points]), kernels=kernels)
    kinds = {t.name: t.dtype for t in content.graphs[0].tensors}
    tallies = _tallies(plain, model, points, kinds)
    samples = len(arrays[0])
    check_stream(model, samples)
    if stateful_layers(model):
        batch_size = model.inputs[0].shape[0]
    elif "int16" in kinds.values() and not exposed.runs_batches():
        # Which values the 16-bit kernels compute in vectors depends on how many there are.
        batch_size = 1
    batch_size = max(1, min(batch_size, MOST_VALUES // _values_per_sample(runner)))
    reset_states(model)
    for start in range(0, samples, batch_size):
        part = [a[start : start + batch_size] for a in arrays]
        seen = predict(part if len(part) > 1 else part[0])
        seen = seen if isinstance(seen, list) else [seen]
        reals = None if twin is None else twin.attempt(part)
        _count(tallies, parts, seen, reals, exposed, part)
    reset_states(model)
    result = _result(tallies, model, content, arrays, kernels)
    path = "" if isinstance(file, bytes) else os.fspath(file)
    times = op_latencies(plain.content) if latency else {}
    return replace(result, file=path, nodes=_nodes(content.graphs[0], times))


def _result(
    tallies: list[Tally],
    model: keras.Model,
    content: LiteRTFile,
    arrays: list[np.ndarray],
    kernels: Kernels,
) -> Comparison:
    """The comparisons of the outputs, then those of the tensors inside."""
    results = [tally.agreement() for tally in tallies]
    inside = results[len(model.outputs) :]
    flipping = max(tallies[: len(model.outputs)], key=lambda tally: tally.flipped)
    flips = [
        replace(flip, picture=picture(arrays[0][flip.sample]) if len(arrays) == 1 else "")
        for flip in flipping.flips
    ]
    return Comparison(
        outputs=tuple(results[: len(model.outputs)]),
        layers=tuple(tensor for tensor in inside if _is_whole(tensor.dtype)),
        samples=len(arrays[0]),
        floats=tuple(tensor for tensor in inside if not _is_whole(tensor.dtype)),
        model=model.name,
        bytes=content.size,
        kernels=kernels,
        types=_types(content),
        flips=tuple(flips),
        flipped=flipping.flipped,
    )


def _types(content: LiteRTFile) -> str:
    """The types of a file's weights and activations, in words."""
    tensors = [t for graph in content.graphs for t in graph.tensors]
    weights = {t.dtype for t in tensors if t.data is not None and (t.quantized or "f" in t.dtype)}
    activations = {t.dtype for t in tensors if t.data is None and (t.quantized or "f" in t.dtype)}
    sides = (("weights", weights - {"int32", "int64"}), ("activations", activations))
    return "; ".join(f"{name} {', '.join(sorted(types))}" for name, types in sides if types)


def _open(model: keras.Model, file: str | os.PathLike | bytes) -> LiteRTModel:
    """Load the file, and check that it belongs to the model."""
    if not isinstance(model, keras.Model):
        raise IntactError(
            "Expected the model first, and then the file: `compare(model, file, x)`. Received: "
            f"{type(model).__name__} and {type(file).__name__}."
        )
    plain = load_litert(file)
    if len(plain.output_names) != len(model.outputs):
        raise IntactError(
            f"The file has {len(plain.output_names)} outputs, the model {len(model.outputs)}. "
            "Compare a model with the file that was exported from it."
        )
    return plain


def _tallies(
    plain: LiteRTModel, model: keras.Model, points: list[Point], kinds: dict[str, str]
) -> list[Tally]:
    """A tally for each output and each point."""
    named = zip(plain.output_names, plain.output_tensors, model.outputs, strict=True)
    tallies = [Tally(name, t, kinds[t], step=_step(model, output)) for name, t, output in named]
    return tallies + [Tally(p.name, p.tensor, kinds[p.tensor], p) for p in points]


def _count(
    tallies: list[Tally],
    places: list[tuple[int, int | None, int | None]],
    seen: list[np.ndarray],
    reals: list[np.ndarray] | None,
    exposed: LiteRTModel,
    batch: list[np.ndarray],
) -> None:
    """Add a batch to each tally.

    Args:
        tallies: The tallies.
        places: For each, where its tensors are in `seen`.
        seen: What Keras computes.
        reals: For each tally, what the model without rounding computes, if it is not in `seen`.
        exposed: The file, whose outputs are the tallies' tensors.
        batch: The inputs.
    """
    results = exposed.predict(batch, batch_size=len(batch[0]), raw=True)
    for index, (tally, (ours, exact, alone)) in enumerate(zip(tallies, places, strict=True)):
        theirs = results[tally.tensor] if isinstance(results, dict) else results
        real = None if exact is None else seen[exact]
        real = real if reals is None else reals[index]
        noise = None if alone is None else seen[alone]
        tally.add(seen[ours], theirs, exposed.output_params(tally.tensor), real, noise)


def _is_whole(dtype: str) -> bool:
    return "int" in dtype


def _values_per_sample(runner: keras.Model) -> int:
    return sum(int(np.prod([n or 1 for n in t.shape[1:]])) for t in runner.outputs)


def _runner(
    model: keras.Model, points: list[Point], float_model: keras.Model | None
) -> tuple[keras.Model, list[tuple[int, int | None, int | None]]]:
    """A model that returns all tensors to look at, and which of them belong to each tally.

    They are what Keras computes, what the float model does, and the noise of the layer alone.
    """
    ours = [*model.outputs, *map(_stored, points)]
    count = len(ours)
    here, nothing = range(count), [None] * count
    if float_model is None:
        return with_outputs(model, ours), list(zip(here, nothing, nothing, strict=True))
    if not is_quantized(model):
        return with_outputs(model, ours), list(zip(here, here, nothing, strict=True))
    reference = Reference(model, float_model)
    floats = [*reference.mixed({}), *map(reference.of, points)]
    noise = [Noise()(pair) for pair in reference.alone(points)]
    own = [2 * count + i if p.rounds else None for i, p in enumerate(points)]
    places = zip(here, range(count, 2 * count), nothing[: -len(own) or None] + own, strict=True)
    return with_outputs(model, [*ours, *floats, *noise]), list(places)


def _stored(point: Point) -> Any:
    """The integers that the file has at a point, or its real values."""
    if point.quantizer is None:
        return point.kernel.output
    return _Stored(128 if point.quantizer.spec.kind == "uint" else 0)(point.kernel.outputs)


class _Stored(keras.layers.Layer):
    """The stored integers of a `QTensor`; unsigned ones are shifted."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def call(self, parts: Any) -> Any:
        x = QTensor(*parts)
        return x.values + (x.zero_point + self.shift)

    def compute_output_shape(self, shapes: Any) -> Any:
        return shapes[0]


def _step(model: keras.Model, output: keras.KerasTensor) -> float:
    """The scale of an output's integers; 1 for a float output."""
    quantizer = kernel_graph(model).range_of(output)
    return 1.0 if quantizer is None else float(quantizer.stored_grid().scale)


def _nodes(graph: FileGraph, times: dict[int, float]) -> tuple[FileNode, ...]:
    """The inputs and ops of a graph, without those that only unpack constants."""
    nodes: list[FileNode] = [
        FileNode("INPUT", t.name, t.dtype, shape=t.shape) for t in graph.inputs
    ]
    places = {t.index: i for i, t in enumerate(graph.inputs)}
    for op in graph.ops:
        reads = tuple(places[t.index] for t in op.inputs if t is not None and t.index in places)
        if not reads:
            continue
        first = op.outputs[0]
        places.update((t.index, len(nodes)) for t in op.outputs)
        nodes.append(
            FileNode(
                kind=op.name,
                name=first.name,
                dtype=first.dtype,
                reads=reads,
                float=is_float(op),
                shape=first.shape,
                latency=times.get(op.index),
            )
        )
    return tuple(nodes)
