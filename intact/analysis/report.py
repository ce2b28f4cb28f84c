"""Reports: how a file's outputs compare with what was seen in Keras, layer by layer."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from intact.analysis.page import page
from intact.calibration.float_form import FloatForm
from intact.calibration.sources import Arrays, check_batch
from intact.errors import IntactError, InvalidDataError
from intact.graph.view import with_outputs
from intact.layers.alignment import Noise, Point, Reference, find_points
from intact.layers.builder import flat
from intact.layers.kernel_graph import kernel_graph
from intact.layers.quantized import Quantized
from intact.layers.quantized_model import is_quantized
from intact.layers.stateful import check_stream, keepers, refuse_stream, reset_states
from intact.litert.inspection import is_float
from intact.litert.reader import read
from intact.litert.runtime import expose, load_litert
from intact.names import Kernels
from intact.numerics.affine import dequantize
from intact.numerics.tensors import to_numpy
from intact.paths import write_whole
from intact.tables import table

BINS = 48
"""Bars of a histogram."""
MOST_LSB = 4
"""Differences of so many LSB or more are counted together."""
MOST_VALUES = 2**26
"""About how many values of all tensors are looked at in one batch."""


@dataclass(frozen=True)
class Distribution:
    """How the values of a tensor are spread.

    Args:
        low: Where the histogram begins; smaller values are in its first bar.
        high: Where it ends; larger values are in its last.
        counts: Values in each bar.
        range: The smallest and largest value that the integers stand for, if there are any.
        clipped: Share of the float model's values beyond that range.
        scales: The smallest and largest scale, of weights.
        snr: Signal-to-noise ratio of rounding them, of weights, in dB.

    Example:

    >>> Distribution(-1.0, 1.0, counts=(3, 5, 2)).filled
    1.0
    """

    low: float
    high: float
    counts: tuple[int, ...]
    range: tuple[float, float] | None = None
    clipped: float | None = None
    scales: tuple[float, float] | None = None
    snr: float | None = None

    @property
    def filled(self) -> float:
        """Share of the range where all but a thousandth of the values are."""
        if self.range is None:
            return 1.0
        share = np.cumsum(self.counts) / max(sum(self.counts), 1)
        first, last = np.searchsorted(share, [0.0005, 0.9995])
        width = (self.high - self.low) / len(self.counts)
        return float(min(1.0, (last - first + 1) * width / (self.range[1] - self.range[0])))


@dataclass(frozen=True)
class Agreement:
    """How one tensor agrees between Keras and LiteRT, and with the float model.

    Args:
        name: The layer that it comes from, or the output.
        values: How many values were compared.
        different: How many of them differ.
        max_lsb: The largest difference, in units of the tensor's scale; of a float tensor,
            as it is.
        top1: Share of samples whose largest value is in the same place (outputs of
            rank 2 only).
        tensor: What the file calls it.
        dtype: Its type in the file.
        layer: The layer that makes it, with others fused into it; rules match this name.
        kind: The class of that layer.
        lsb: How many values differ by -4 or less, -3, ..., 3, and 4 or more LSB: Keras less
            LiteRT.
        snr: Signal-to-noise ratio of the file's values, against the float model, in dB.
        local_snr: The same of the layer alone: what it makes of the float model's tensors (as
            rounded where it reads them), against what the float layer makes of the same.
        float_top1: As `top1`, against the float model.
        activations: How the values are spread, in the float model where it is given.
        weights: How the weights of its layer are.

    Example:

    >>> Agreement("head", values=1000, different=5, max_lsb=1.0).share_equal
    0.995
    """

    name: str
    values: int
    different: int
    max_lsb: float
    top1: float | None = None
    tensor: str = ""
    dtype: str = ""
    layer: str = ""
    kind: str = ""
    lsb: tuple[int, ...] = ()
    snr: float | None = None
    local_snr: float | None = None
    float_top1: float | None = None
    activations: Distribution | None = None
    weights: Distribution | None = None

    @property
    def share_equal(self) -> float:
        """Share of the values that are equal."""
        return 1.0 - self.different / max(self.values, 1)


@dataclass(frozen=True)
class FileNode:
    """An op of a file, or one of its inputs.

    Args:
        kind: The op; "INPUT".
        name: Its first output.
        dtype: The type of that.
        reads: The places of those that it reads, in the order of the file.
        float: Whether it computes in float.

    Example:

    >>> FileNode("RELU", "act", "int8", reads=(0,)).float
    False
    """

    kind: str
    name: str
    dtype: str
    reads: tuple[int, ...] = ()
    float: bool = False


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns; printing it gives a table.

    Args:
        outputs: One entry per output.
        layers: One entry per quantized tensor on the way, in the order of the graph.
        samples: How many samples were compared.
        floats: One entry per tensor on the way that float layers make.
        nodes: The ops of the file.
        model: The model's name.
        bytes: Size of the file.
        kernels: The kernels that it ran on.

    Example:

    >>> head = Agreement("head", values=1000, different=5, max_lsb=1.0, top1=1.0)
    >>> print(Comparison((head,), (), samples=100))
    Keras against LiteRT, 100 samples
                 values  differ  max LSB  top-1 same
    output head    1000       5        1    100.00 %
    """

    outputs: tuple[Agreement, ...]
    layers: tuple[Agreement, ...]
    samples: int
    floats: tuple[Agreement, ...] = ()
    nodes: tuple[FileNode, ...] = ()
    model: str = ""
    bytes: int = 0
    kernels: str = "default"

    @property
    def max_lsb(self) -> float:
        """The largest difference of any output, in LSB."""
        return max(a.max_lsb for a in self.outputs)

    @property
    def different(self) -> int:
        """How many output values differ."""
        return sum(a.different for a in self.outputs)

    @property
    def top1(self) -> float | None:
        """The smallest top-1 agreement of the outputs that have one."""
        shares = [a.top1 for a in self.outputs if a.top1 is not None]
        return min(shares) if shares else None

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    def to_json(self, path: str | os.PathLike) -> None:
        """Write all of it as JSON.

        Args:
            path: The file to write.

        Raises:
            ExportError: The path cannot be written.
        """
        write_whole(json.dumps(self.to_dict(), indent=1).encode(), path)

    def to_html(self, path: str | os.PathLike) -> None:
        """Write a page to look at: one file, which needs no network and runs no script.

        It shows the layers, the worst first, with what to try; their distributions and ranges;
        and the graph of the file, with what computes in float.

        Args:
            path: The file to write.

        Raises:
            ExportError: The path cannot be written.
        """
        write_whole(page(self).encode(), path)

    def to_model_explorer(self, path: str | os.PathLike) -> None:
        """Write node data for Google's Model Explorer, to be opened there beside the file.

        The nodes are coloured by their signal-to-noise ratio, in dB, or without a float model
        by their largest difference from Keras, in LSB.

        Args:
            path: The JSON file to write.

        Raises:
            ExportError: The path cannot be written.
        """
        entries = (*self.layers, *self.floats)
        with_float = any(a.snr is not None for a in entries)
        results = {a.tensor: {"value": a.snr if with_float else a.max_lsb} for a in entries}
        colors = ("#d9534f", "#f5e6b3", "#5cb85c")
        stops = zip((0, 0.5, 1), colors if with_float else colors[::-1], strict=True)
        gradient = [{"stop": stop, "bgColor": color} for stop, color in stops]
        data = {"results": results, "gradient": gradient}
        write_whole(json.dumps(data, indent=1).encode(), path)

    def __str__(self) -> str:
        entries = [
            (kind, a)
            for kind, some in (
                ("output", self.outputs),
                ("layer", self.layers),
                ("float", self.floats),
            )
            for a in some
        ]
        rows: list[tuple[str, ...]] = [("", "values", "differ", "max LSB", "top-1 same")]
        for kind, a in entries:
            top1 = "" if a.top1 is None else f"{100 * a.top1:.2f} %"
            rows.append(
                (f"{kind} {a.name}", str(a.values), str(a.different), f"{a.max_lsb:g}", top1)
            )
        if any(a.snr is not None for _, a in entries):
            columns = ["SNR", *(_db(a.snr) for _, a in entries)]
            rows = [(*row, more) for row, more in zip(rows, columns, strict=True)]
        if any(a.local_snr is not None for _, a in entries):
            columns = ["its own SNR", *(_db(a.local_snr) for _, a in entries)]
            rows = [(*row, more) for row, more in zip(rows, columns, strict=True)]
        return f"Keras against LiteRT, {self.samples} samples\n" + table(rows)


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"


def compare(
    model: keras.Model,
    file: str | os.PathLike | bytes,
    x: Arrays,
    batch_size: int = 32,
    per_layer: bool = True,
    kernels: Kernels = "default",
    float_model: keras.Model | None = None,
) -> Comparison:
    """Compare a model with the file it was exported to.

    Args:
        model: The quantized model; or a float one, to see what the file lost.
        file: The LiteRT file, or its bytes.
        x: Inputs, an array or several, samples first.
        batch_size: How many samples run at once, at most.
        per_layer: Look at every quantized tensor on the way too.
        kernels: Which of the runtime's kernels to use, as for `load_litert`.
        float_model: The float model that the quantized one was made from, to tell by how much
            each layer differs from it: by all before it, and by itself. Without, the quantized
            model is compared with itself where nothing is rounded.

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
    if not isinstance(model, keras.Model):
        raise IntactError(
            "Expected the model first, and then the file: `compare(model, file, x)`. Received: "
            f"{type(model).__name__} and {type(file).__name__}."
        )
    plain = load_litert(file)
    content = read(plain.content)
    rounded = any(t.quantized or t.dtype == "float16" for g in content.graphs for t in g.tensors)
    model = flat(model)
    if not is_quantized(model):
        float_model = model if rounded or float_model is not None else None
    arrays = check_batch(x, model.inputs)
    if len(plain.output_names) != len(model.outputs):
        raise IntactError(
            f"The file has {len(plain.output_names)} outputs, the model {len(model.outputs)}. "
            "Compare a model with the file that was exported from it."
        )
    names = [tensor.name for tensor in content.graphs[0].tensors]
    points = find_points(model, names) if per_layer and rounded else []
    if float_model is not None and float_model is not model:
        refuse_stream(model, "a comparison with the float model")
    runner, parts = _runner(model, points, float_model)
    twin = None
    if float_model is None and rounded and not keepers(model):
        twin = FloatForm(model, [*model.outputs, *(point.kernel.output for point in points)])
    exposed = load_litert(expose(plain.content, [p.tensor for p in points]), kernels=kernels)
    kinds = {t.name: t.dtype for t in content.graphs[0].tensors}
    tallies = [
        _Tally(name, tensor, kinds[tensor], step=_step(model, output))
        for name, tensor, output in zip(
            plain.output_names, plain.output_tensors, model.outputs, strict=True
        )
    ]
    tallies += [_Tally(p.name, p.tensor, kinds[p.tensor], p) for p in points]
    samples = len(arrays[0])
    check_stream(model, samples)
    reset_states(model)
    if keepers(model):
        batch_size = model.inputs[0].shape[0]
    elif "int16" in kinds.values() and not exposed.runs_batches():
        # Which values the 16-bit kernels compute in vectors depends on how many there are.
        batch_size = 1
    batch_size = max(1, min(batch_size, MOST_VALUES // _values_per_sample(runner)))
    for start in range(0, samples, batch_size):
        part = [a[start : start + batch_size] for a in arrays]
        seen = runner.predict_on_batch(part if len(part) > 1 else part[0])
        seen = seen if isinstance(seen, list) else [seen]
        found = exposed.predict(part, batch_size=len(part[0]), raw=True)
        reals = None if twin is None else twin.attempt(part)
        for index, (tally, places) in enumerate(zip(tallies, parts, strict=True)):
            theirs = found[tally.tensor] if isinstance(found, dict) else found
            real, noise = (None if i is None else seen[i] for i in places[1:])
            real = real if reals is None else reals[index]
            params = exposed.output_params(tally.tensor)
            tally.add(seen[places[0]], theirs, params, real, noise)
    reset_states(model)
    results = [tally.agreement() for tally in tallies]
    cut = len(model.outputs)
    return Comparison(
        outputs=tuple(results[:cut]),
        layers=tuple(a for a in results[cut:] if _is_whole(a.dtype)),
        samples=samples,
        floats=tuple(a for a in results[cut:] if not _is_whole(a.dtype)),
        nodes=_nodes(content.graphs[0]),
        model=model.name,
        bytes=content.size,
        kernels=kernels,
    )


def _is_whole(dtype: str) -> bool:
    return "int" in dtype


def _values_per_sample(runner: keras.Model) -> int:
    return sum(int(np.prod([n or 1 for n in t.shape[1:]])) for t in runner.outputs)


def _runner(
    model: keras.Model, points: list[Point], float_model: keras.Model | None
) -> tuple[keras.Model, list[tuple[int, int | None, int | None]]]:
    """A model of all that is looked at, and for each output and point where its own are.

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
    """The stored integers of a triple; unsigned ones are shifted."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def call(self, triple: Any) -> Any:
        values, _, zero_point = triple
        return values + (zero_point + self.shift)

    def compute_output_shape(self, shapes: Any) -> Any:
        return shapes[0]


def _step(model: keras.Model, output: keras.KerasTensor) -> float:
    """The scale of an output's integers; 1 if it is float through and through."""
    quantizer = kernel_graph(model).range_of(output)
    return 1.0 if quantizer is None else float(to_numpy(quantizer.grid().scale))


class _Tally:
    """Counts of one tensor, over batches."""

    def __init__(
        self, name: str, tensor: str, dtype: str, point: Point | None = None, step: float = 1.0
    ) -> None:
        self.name, self.tensor, self.dtype = name, tensor, dtype
        self.point, self.step = point, step
        self.values = self.different = 0
        self.max_lsb = 0.0
        self.lsb = np.zeros(2 * MOST_LSB + 1, int)
        self.same, self.float_same, self.rows = 0, 0, 0
        self.sums: np.ndarray | None = None
        self.own_sums: np.ndarray | None = None
        self.bars: _Bars | None = None

    def add(
        self,
        ours: np.ndarray,
        theirs: np.ndarray,
        params: tuple[float, int] | None,
        real: np.ndarray | None,
        noise: np.ndarray | None,
    ) -> None:
        """Take in a batch.

        Args:
            ours: What Keras computes: of quantized tensors inside the integers.
            theirs: What the file has.
            params: Scale and zero point there.
            real: What the float model computes.
            noise: Sums of the layer alone, as of `Noise`.
        """
        if ours.shape != theirs.shape:
            raise InvalidDataError(
                f"Shapes of {self.name!r} differ: {ours.shape} in Keras, {theirs.shape} in LiteRT."
            )
        values = theirs if params is None else dequantize(theirs, *params)
        whole = self.point is not None and self.point.quantizer is not None
        step = self.step
        if whole:
            ours, theirs = ours.astype("float32"), theirs.astype("float32")
        else:
            theirs = values
            step = params[0] if self.point and params else step
        gap = (ours - theirs.astype("float32")) / np.float32(step)
        self.values += gap.size
        self.different += int((np.abs(gap) > 1e-3).sum() if params else (ours != theirs).sum())
        self.max_lsb = max(self.max_lsb, float(np.abs(gap).max()))
        if params or step != 1.0:
            places = np.clip(np.rint(gap), -MOST_LSB, MOST_LSB).astype(int) + MOST_LSB
            self.lsb += np.bincount(places.ravel(), minlength=len(self.lsb))
        if self.point is None and ours.ndim == 2 and ours.shape[1] > 1:
            best = values.argmax(1)
            self.same += int((ours.argmax(1) == best).sum())
            self.float_same += 0 if real is None else int((real.argmax(1) == best).sum())
            self.rows += len(ours)
        if real is not None:
            self.sums = _added(self.sums, _squares(real, values))
        if noise is not None:
            self.own_sums = _added(self.own_sums, noise.sum(axis=0, dtype="float64"))
        if self.point is not None:
            self.bars = self.bars or _Bars(real if real is not None else values, params, self.dtype)
            self.bars.add(real if real is not None else values)

    def agreement(self) -> Agreement:
        """What was counted."""
        point = self.point
        held = None if point is None else point.held
        clips = self.sums is not None
        return Agreement(
            name=self.name,
            values=self.values,
            different=self.different,
            max_lsb=self.max_lsb,
            top1=self.same / self.rows if self.rows else None,
            tensor=self.tensor,
            dtype=self.dtype,
            layer="" if point is None else point.made_by.name,
            kind="" if point is None else type(point.made_by).__name__,
            lsb=tuple(self.lsb.tolist()) if self.lsb.any() else (),
            snr=_ratio(self.sums),
            local_snr=_ratio(self.own_sums),
            float_top1=self.float_same / self.rows if self.rows and clips else None,
            activations=None if self.bars is None else self.bars.distribution(clips),
            weights=None if held is None else _weights(held),
        )


def _squares(real: np.ndarray, values: np.ndarray) -> np.ndarray:
    gap = real.astype("float64") - values
    return np.array([np.vdot(real, real), np.vdot(gap, gap)], "float64")


def _added(total: np.ndarray | None, part: np.ndarray) -> np.ndarray:
    return part if total is None else total + part


def _ratio(sums: np.ndarray | None) -> float | None:
    """Signal-to-noise ratio in dB; at most 200, so that it is a number without noise, too."""
    if sums is None:
        return None
    signal, noise = sums
    return float(np.clip(10 * np.log10((signal + 1e-30) / (noise + 1e-30)), -200, 200))


class _Bars:
    """A histogram whose limits are those of the integers, or of the first values seen."""

    def __init__(self, first: np.ndarray, params: tuple[float, int] | None, dtype: str) -> None:
        self.range: tuple[float, float] | None = None
        self.step = 0.0
        low, high = float(first.min()), float(first.max())
        if params is not None:
            info = np.iinfo(dtype)
            self.step, zero_point = params
            low, high = ((n - zero_point) * self.step for n in (info.min, info.max))
            self.range = (low, high)
        margin = (high - low) / 8 if params else 0.0
        self.low = float(low - margin)
        # All values may be one.
        self.high = max(float(high + margin), self.low + 1e-6 * abs(self.low) + 1e-12)
        self.counts = np.zeros(BINS, int)
        self.outside = self.values = 0

    def add(self, values: np.ndarray) -> None:
        """Take in values."""
        where = (values.ravel() - self.low) * (BINS / (self.high - self.low))
        self.counts += np.bincount(np.clip(where, 0, BINS - 1).astype(int), minlength=BINS)
        if self.range is not None:
            low, high = self.range[0] - self.step / 2, self.range[1] + self.step / 2
            self.outside += int(((values < low) | (values > high)).sum())
        self.values += values.size

    def distribution(self, clips: bool) -> Distribution:
        """What was counted."""
        clipped = self.outside / self.values if clips and self.range else None
        return Distribution(self.low, self.high, tuple(self.counts.tolist()), self.range, clipped)


def _weights(held: Quantized) -> Distribution:
    """How the weights of a layer are spread, and what rounding takes from them."""
    name = next(iter(held.weight_axes()))
    real = to_numpy(getattr(held.layer, name)).astype("float32")
    rounded = to_numpy(held.real_weights()[name]).reshape(real.shape)
    bars = _Bars(real, None, "float32")
    bars.add(real)
    scales = None
    if name in (whole := held.quantized_weights()):
        scale = np.abs(to_numpy(whole[name][1]))
        scales = (float(scale.min()), float(scale.max()))
    return Distribution(
        bars.low,
        bars.high,
        tuple(bars.counts.tolist()),
        scales=scales,
        snr=_ratio(_squares(real, rounded)),
    )


def _nodes(graph: Any) -> tuple[FileNode, ...]:
    """The inputs and ops of a graph, without those that only unpack constants."""
    made: list[FileNode] = [FileNode("INPUT", t.name, t.dtype) for t in graph.inputs]
    places = {t.index: i for i, t in enumerate(graph.inputs)}
    for op in graph.ops:
        reads = tuple(places[t.index] for t in op.inputs if t is not None and t.index in places)
        if not reads:
            continue
        first = op.outputs[0]
        places.update((t.index, len(made)) for t in op.outputs)
        made.append(FileNode(op.name, first.name, first.dtype, reads, is_float(op)))
    return tuple(made)
