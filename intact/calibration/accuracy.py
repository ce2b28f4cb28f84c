"""Whether a calibrated model still computes what it did in float, on a few samples.

Both sides run as LiteRT files, which need no compilation: the file that the model would be
exported to, and a float file with the weights as they were before anything was rounded. So a
fault of a range, of the plan or of a kernel shows alike.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from intact.calibration.biases import without_corrections
from intact.errors import AccuracyWarning
from intact.graph.view import Node
from intact.layers.alignment import before_shares
from intact.layers.kernel_graph import Role, kernel_graph
from intact.layers.stateful import keepers
from intact.litert.reader import read
from intact.litert.runtime import LiteRTModel, expose
from intact.lowering.lowering import lower
from intact.lowering.real import lower_real
from intact.ops.constant import Constant

SAMPLES = 16
"""How many samples are looked at."""

LEAST = 10.0
"""The signal-to-noise ratio in dB below which an output counts as lost."""

LEAST_OF_SHARES = 6.0
"""The same of what a softmax or sigmoid makes shares of, where the order counts.

The logits of a pretrained MobileNetV1 0.25 in int8 have 10 to 12 dB, and nine of ten of its
top-1 are those of float; those of a ResNet-20 have 24, and of models that are of no use any
more less than 3.
"""

HIDDEN = 20.0
"""By how many dB a part that is lost is worse than the whole that hides it."""

GONE = 3.0
"""A channel with less has an error nearly as large as itself."""

FEW = 8
"""An output of so few channels loses each of them; of more, a quarter of them has to be lost."""

SAME = 0.7
"""Share of whole numbers, such as classes, that have to be the same."""

GOOD = 20.0
"""A tensor of so many dB is not to blame; below an input that has less, outputs need as much."""

DROP = 6.0
"""By how many dB a tensor to blame is worse than what it is made of."""

BEST = 200.0
"""The signal-to-noise ratio of what has no noise."""

NAMED = 3
"""How many tensors a warning names."""


REMEDIES = {
    "concatenation": "give the parts of a concatenation as outputs of their own, as in "
    "`keras.Model(inputs, {'boxes': boxes, 'scores': scores})`, because they share one scale",
    "channels": "give channels of unlike sizes as outputs of their own, because all channels of "
    "a tensor share one scale",
    "rows": "an observer that makes no room for a few very large values "
    "(`calibrate(..., observer='percentile')`)",
    "input": "normalize the data before the model takes it, so that it lies around 0, because "
    "the integers of an input reach from 0 to its values",
    "table": "make the rows of a table alike in size, or keep its layer in float by `filters`, "
    "because all rows share one scale",
    "range": "another observer (`calibrate(..., observer='percentile')` or 'mse'), `recover` in "
    "place of `calibrate`, more bits for some layers (`mixed`) or for all activations (the "
    "scheme 'int16x8'), or training",
}
"""What to try, by what is wrong."""


@dataclass(frozen=True)
class Loss:
    """A tensor, or a part of it, that its integers do not tell any more.

    Args:
        what: Which it is.
        value: Its signal-to-noise ratio, in dB; of whole numbers, the share that is the same.
        remedy: What to try, one of the keys of `REMEDIES`.
        unit: Of the value.

    Example:

    >>> print(Loss("output 'scores'", 2.13, "range"))
    output 'scores' (2.1 dB)
    """

    what: str
    value: float
    remedy: str
    unit: str = "dB"

    def __str__(self) -> str:
        return f"{self.what} ({self.value:.1f} {self.unit})"


@dataclass(frozen=True)
class Pair:
    """A tensor in float, and as the file has it; samples first."""

    real: np.ndarray
    rounded: np.ndarray

    @classmethod
    def of(cls, real: np.ndarray, rounded: np.ndarray) -> "Pair":
        """The pair without the places where float has no finite value, as of log(0)."""
        finite = np.isfinite(real)
        if finite.all():
            return cls(real, rounded)
        return cls(np.where(finite, real, 0), np.where(finite, rounded, 0))

    @property
    def snr(self) -> float:
        """How far the values lie from their mean, beside the error, in dB.

        Of a constant, how large it is.
        """
        real = self.real.astype("float64")
        noise = np.sum((real - self.rounded) ** 2)
        if noise == 0:
            return BEST
        size, signal = np.sum(real**2), np.sum((real - real.mean()) ** 2)
        signal = signal if signal > 1e-12 * size else size
        return float(np.clip(10 * np.log10((signal + 1e-30) / noise), -BEST, BEST))

    @property
    def row_snr(self) -> float:
        """The same of most samples: a few large ones cannot hide what the others lose."""
        real = self.real.astype("float64").reshape(len(self.real), -1)
        # The large ones would move a mean.
        signal = np.sum((real - np.median(real)) ** 2, axis=1)
        noise = np.sum((real - self.rounded.reshape(real.shape)) ** 2, axis=1)
        live = signal > 1e-12 * np.sum(real**2)
        if not live.any():
            return BEST
        ratios = 10 * np.log10(signal[live] / np.maximum(noise[live], 1e-30))
        return float(np.clip(np.median(ratios), -BEST, BEST))

    def channel_snr(self) -> np.ndarray:
        """The same of each channel that is no constant."""
        real = self.real.astype("float64").reshape(-1, self.real.shape[-1])
        signal = np.sum((real - real.mean(axis=0)) ** 2, axis=0)
        noise = np.sum((real - self.rounded.reshape(real.shape)) ** 2, axis=0)
        live = signal > 1e-12 * np.sum(real**2, axis=0)
        return 10 * np.log10(signal[live] / np.maximum(noise[live], 1e-30))

    def part(self, index: Any) -> "Pair":
        """The same of a part of both."""
        return Pair(self.real[index], self.rounded[index])


def losses(
    name: str, pair: Pair, least: float = LEAST, parts: Sequence[tuple[str, Any]] = ()
) -> list[Loss]:
    """What is lost of an output.

    Args:
        name: The output.
        pair: What is judged of it.
        least: The signal-to-noise ratio that it should have.
        parts: Names and indices of what it was put together of.

    Returns:
        The output itself, or the parts of it whose errors hide behind larger values.

    Example:

    >>> real = np.array([[500.0, 0.1], [100.0, 0.9], [300.0, 0.6]])
    >>> [str(loss) for loss in losses("y", Pair(real, np.round(real / 2) * 2))]
    ["1 of the 2 channels of output 'y' (-5.6 dB)"]
    """
    what = f"output {name!r}"
    if pair.real.dtype.kind != "f":
        share = float(np.mean(pair.real == pair.rounded))
        return [] if share >= SAME else [Loss(what, 100 * share, "range", "% the same")]
    if pair.snr < least:
        return [Loss(what, pair.snr, "range")]
    limit = min(LEAST, pair.snr - HIDDEN)
    ratios = [(label, pair.part(index).snr) for label, index in parts]
    lost = [
        Loss(f"the part {label!r} of {what}", snr, "concatenation")
        for label, snr in ratios
        if snr < limit
    ]
    if lost:
        return lost
    if pair.row_snr < limit:
        return [Loss(f"{what} for most samples", pair.row_snr, "rows")]
    if pair.real.ndim > 1:
        channels = pair.channel_snr()
        bad = channels[channels < min(GONE, limit)]
        if len(bad) and (len(channels) <= FEW or len(bad) >= len(channels) / 4):
            label = f"{len(bad)} of the {pair.real.shape[-1]} channels of {what}"
            return [Loss(label, float(np.median(bad)), "channels")]
    return []


def float_file(model: keras.Model, tensors: list[keras.KerasTensor]) -> tuple[bytes, list[str]]:
    """A float file of what a quantized model computes where nothing is rounded.

    Args:
        model: A quantized model; its biases are taken as they were before bias correction.
        tensors: The tensors of its graph to look at: of quantized ones, the values.

    Returns:
        `(content, names)`: the file, and the name of the output that each tensor is.

    Raises:
        IntactError: An op has no float form.
    """
    with without_corrections(model):
        return lower_real(model, tensors, exact=True)


def warn_of_losses(model: keras.Model, batch: list[np.ndarray]) -> None:
    """Warn where a calibrated model has lost what it computed in float.

    Args:
        model: A calibrated model; its float weights are what it should compute.
        batch: A few samples, an array for each input.

    Warns:
        AccuracyWarning: An output, or a part of one, is lost.
    """
    if keepers(model):
        # A float file has no cells to begin with.
        return
    try:
        check = _Check(model, batch)
        lost = check.losses()
        culprits = check.culprits()[:NAMED] if lost else []
    except Exception:
        # There is no float form, or no file: whatever is wrong with it, `export` will say.
        return
    if not lost:
        return
    where = f" Most is lost at {', '.join(map(str, culprits))}." if culprits else ""
    special = [loss.remedy for loss in lost if loss.remedy != "range"]
    remedies = special + [loss.remedy for loss in culprits or lost]
    warnings.warn(
        f"Quantized, model {model.name!r} loses {', '.join(map(str, lost))}: signal to noise "
        f"against float, on {len(batch[0])} samples; 20 dB is an error of a tenth.{where} "
        f"What may help: {'; '.join(REMEDIES[key] for key in dict.fromkeys(remedies))}. "
        "`compare` with `float_model` tells what each layer loses.",
        AccuracyWarning,
        stacklevel=3,
    )


class _Check:
    """A model beside itself in float, on a few samples."""

    def __init__(self, model: keras.Model, batch: list[np.ndarray]) -> None:
        self.model, self.batch = model, batch
        self.kernels = kernel_graph(model)
        self.graph = self.kernels.graph
        self.content = lower(model)
        self.plain = LiteRTModel(self.content)
        self.names = dict(self._names())

    def _names(self) -> Iterator[tuple[Node, str]]:
        """The quantizers' calls whose tensors the file has, and what it calls these."""
        known = {tensor.name for tensor in read(self.content).graphs[0].tensors}
        for kernel in self.kernels.kernels:
            node, name = kernel.range_call, kernel.name
            if node is None:
                continue
            source = self.graph.producer(node.inputs[0])
            if source.is_input and name not in known:
                # An input of integers has the name of its layer.
                name = source.layer.name
            if name in known:
                yield node, name

    def pairs(self, nodes: Sequence[Node]) -> tuple[list[Pair], dict[Node, Pair]]:
        """The model's outputs, and what some of its quantizers make."""
        inside = [self.names[node] for node in nodes]
        rounded = _run(expose(self.content, inside), self.batch)
        tensors = [*self.model.outputs, *(node.outputs[0] for node in nodes)]
        real, places = float_file(self.model, tensors)
        exact = _run(real, self.batch)
        names = [*self.plain.output_tensors, *inside]
        pairs = [Pair.of(exact[a], rounded[b]) for a, b in zip(places, names, strict=True)]
        count = len(self.model.outputs)
        return pairs[:count], dict(zip(nodes, pairs[count:], strict=True))

    def losses(self) -> list[Loss]:
        """What is lost of the outputs."""
        inputs = [node for node in self.names if self.graph.producer(node.inputs[0]).is_input]
        judged = [self._judged(tensor) for tensor in self.model.outputs]
        nodes = list(dict.fromkeys([*inputs, *filter(None, judged)]))
        outputs, inside = self.pairs(nodes)
        bad_input = any(inside[node].snr < GOOD for node in inputs)
        lost = []
        rows = zip(self.plain.output_names, self.model.outputs, outputs, judged, strict=True)
        for name, tensor, pair, node in rows:
            least = GOOD if bad_input else LEAST if node is None else LEAST_OF_SHARES
            pair = pair if node is None else inside[node]
            lost += losses(name, pair, least, self._parts(tensor))
        return lost

    def _judged(self, output: keras.KerasTensor) -> Node | None:
        """What rounds the tensor that an output makes shares of, if it does."""
        before = before_shares(self.kernels, output)
        if before is output:
            return None
        node = self.graph.producer(keras.tree.flatten(before)[0])
        while node.inputs and node not in self.names:
            node = self.graph.producer(node.inputs[0])
        return node if node.inputs else None

    def _parts(self, output: keras.KerasTensor) -> list[tuple[str, Any]]:
        """The tensors that an output is a concatenation of: names, and their places in it."""
        joined = self.kernels.source(output)
        if not isinstance(joined.layer, keras.layers.Concatenate):
            return []
        operands = joined.call.args[0]
        firsts = [x if isinstance(x, keras.KerasTensor) else x[0] for x in operands]
        axis = joined.layer.axis % len(firsts[0].shape)
        ends = np.cumsum([tensor.shape[axis] for tensor in firsts])
        before = [slice(None)] * axis
        return [
            (self.kernels.source(t).layer.name, (*before, slice(end - t.shape[axis], end)))
            for t, end in zip(firsts, ends, strict=True)
        ]

    def culprits(self) -> list[Loss]:
        """The tensors that are much worse than all that they are made of, the worst first."""
        _, inside = self.pairs(list(self.names))
        levels: dict[int, float] = {}
        drops: list[tuple[float, Loss]] = []
        for node in self.graph.nodes:
            level = before = min((levels[id(t)] for t in node.inputs), default=BEST)
            if node in inside:
                level = min(inside[node].snr, inside[node].row_snr)
            levels.update((id(tensor), level) for tensor in node.outputs)
            if level < min(GOOD, before - DROP):
                drops.append((level - before, self._culprit(node, level)))
        return [loss for _, loss in sorted(drops, key=lambda drop: drop[0])]

    def _culprit(self, node: Node, snr: float) -> Loss:
        source = self.kernels.source(node.inputs[0])
        remedy = "range"
        if source.role is Role.INPUT:
            remedy = "input"
        elif isinstance(source.layer, Constant):
            remedy = "table"
        return Loss(repr(source.layer.name), snr, remedy)


def _run(content: bytes, batch: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What a file computes: real values by the outputs' names."""
    file = LiteRTModel(content, os.cpu_count() or 1)
    found = file.predict(batch)
    return found if isinstance(found, dict) else {file.output_names[0]: found}
