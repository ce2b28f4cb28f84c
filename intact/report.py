"""Reports: how a file's outputs compare with what was seen in Keras, layer by layer."""

import os
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from intact.calibration import check_batch
from intact.errors import IntactError, InvalidDataError
from intact.graph import Graph, Node, view, with_outputs
from intact.litert.runtime import expose, load_litert
from intact.lowering import tensor_name
from intact.numerics import dequantize, to_numpy
from intact.ops.constant import Constant
from intact.quantizers import FakeQuantize
from intact.training import Dequantize


@dataclass(frozen=True)
class Agreement:
    """How one tensor agrees between Keras and LiteRT.

    Args:
        name: The layer that it comes from, or the output.
        values: How many values were compared.
        different: How many of them differ.
        max_lsb: The largest difference, in units of the tensor's scale.
        top1: Share of samples whose largest value is in the same place (outputs of
            rank 2 only).

    Example:

    >>> Agreement("head", values=1000, different=5, max_lsb=1.0).share_equal
    0.995
    """

    name: str
    values: int
    different: int
    max_lsb: float
    top1: float | None = None

    @property
    def share_equal(self) -> float:
        """Share of the values that are equal."""
        return 1.0 - self.different / max(self.values, 1)


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns; printing it gives a table.

    Args:
        outputs: One entry per output.
        layers: One entry per quantized tensor on the way, in the order of the graph.
        samples: How many samples were compared.

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

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "values", "differ", "max LSB", "top-1 same")]
        for kind, entries in (("output", self.outputs), ("layer", self.layers)):
            for a in entries:
                top1 = "" if a.top1 is None else f"{100 * a.top1:.2f} %"
                lsb = f"{a.max_lsb:g}"
                rows.append((f"{kind} {a.name}", str(a.values), str(a.different), lsb, top1))
        return f"Keras against LiteRT, {self.samples} samples\n" + table(rows)


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows of text in aligned columns, the first one flush left.

    Args:
        rows: The rows; the first is the heading.

    Returns:
        The lines.

    Example:

    >>> print(table([("model", "bytes"), ("float", "1024"), ("int8", "256")]))
    model  bytes
    float   1024
    int8     256
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def compare(
    model: keras.Model,
    file: str | os.PathLike | bytes,
    x: Any,
    batch_size: int = 32,
    per_layer: bool = True,
    kernels: str = "default",
) -> Comparison:
    """Compare a quantized model with the file it was exported to.

    Args:
        model: The quantized model.
        file: The LiteRT file, or its bytes.
        x: Inputs, an array or several, samples first.
        batch_size: How many samples run at once.
        per_layer: Look at every quantized tensor on the way too.
        kernels: Which of the runtime's kernels to use, as for `load_litert`.

    Returns:
        The comparison; print it.

    Raises:
        InvalidDataError: The data does not fit the model.
        IntactError: The file was not exported from this model.

    Example:

    >>> import intact
    >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    >>> compare(q, intact.export(q), x).different
    0
    """
    arrays = check_batch(x, model.inputs)
    names, tensors = _quantized_tensors(model) if per_layer else ([], [])
    runner = with_outputs(model, [*model.outputs, *tensors])
    plain = load_litert(file)
    exposed = load_litert(expose(plain.content, names), kernels=kernels)
    if len(plain.output_names) != len(model.outputs):
        raise IntactError(
            f"The file has {len(plain.output_names)} outputs, the model {len(model.outputs)}. "
            "Compare a model with the file that was exported from it."
        )
    pairs = [*zip(plain.output_names, plain.output_tensors, strict=True), *((n, n) for n in names)]
    steps = [*(_step(model, tensor) for tensor in model.outputs), *(1.0 for _ in names)]
    totals: list[list[Any]] = [[0, 0, 0.0, 0, 0] for _ in pairs]
    samples = len(arrays[0])
    for start in range(0, samples, batch_size):
        part = [a[start : start + batch_size] for a in arrays]
        seen = runner.predict_on_batch(part if len(part) > 1 else part[0])
        seen = seen if isinstance(seen, list) else [seen]
        found = exposed.predict(part, batch_size=len(part[0]), raw=True)
        for i, (_, tensor) in enumerate(pairs):
            theirs = found[tensor] if isinstance(found, dict) else found
            params = exposed.output_params(tensor)
            _count(totals[i], seen[i], theirs, params, steps[i], i < len(model.outputs))
    results = [
        Agreement(name, t[0], t[1], t[2], t[3] / t[4] if t[4] else None)
        for (name, _), t in zip(pairs, totals, strict=True)
    ]
    cut = len(model.outputs)
    return Comparison(tuple(results[:cut]), tuple(results[cut:]), samples)


def _quantized_tensors(model: keras.Model) -> tuple[list[str], list[Any]]:
    names, tensors = [], []
    graph = view(model)
    for node in graph.nodes:
        if isinstance(node.layer, FakeQuantize):
            source = graph.producer(node.inputs[0]).layer
            if isinstance(getattr(source, "layer", None), Constant) or _changes_nothing(
                node, graph
            ):
                continue
            names.append(tensor_name(node.layer, node.kwargs))
            shift = 128 if node.layer.spec.kind == "uint" else 0
            tensors.append(_Stored(shift)(node.outputs))
    return names, tensors


def _changes_nothing(node: Node, graph: Graph) -> bool:
    """Whether a requantization is to the range that the tensor has: the file has none there."""
    if node.kwargs.get("arithmetic") not in ("requantize", "convert"):
        return False
    mine, theirs = node.layer, _quantizer(graph.producer(node.inputs[0]), graph)
    same = [
        to_numpy(a) == to_numpy(b) for a, b in zip(mine.grid()[:2], theirs.grid()[:2], strict=True)
    ]
    return all(same) and mine.spec.activation_dtype == theirs.spec.activation_dtype


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
    graph = view(model)
    node = graph.producer(output)
    if not isinstance(node.layer, Dequantize):
        return 1.0
    return float(to_numpy(_quantizer(node, graph).grid().scale))


def _quantizer(node: Node, graph: Graph) -> FakeQuantize:
    """The quantizer whose range the integers have that a node passes on."""
    while not isinstance(node.layer, FakeQuantize):
        node = graph.producer(node.inputs[0])
    return node.layer


def _count(
    total: list[Any],
    ours: np.ndarray,
    values: np.ndarray,
    params: Any,
    step: float,
    is_output: bool,
) -> None:
    if ours.shape != values.shape:
        raise InvalidDataError(f"Shapes differ: {ours.shape} in Keras, {values.shape} in LiteRT.")
    if is_output and params is not None:
        values = dequantize(values, *params)
    gap = np.abs(ours - values.astype("float32")) / np.float32(step)
    total[0] += gap.size
    total[1] += int((gap > 1e-3).sum() if params is not None else (ours != values).sum())
    total[2] = max(total[2], float(gap.max()))
    if is_output and ours.ndim == 2 and ours.shape[1] > 1:
        total[3] += int((ours.argmax(1) == values.argmax(1)).sum())
        total[4] += len(ours)
