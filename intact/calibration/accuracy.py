"""Checks on a few samples that a calibrated model still computes what it did in float.

The file that the model would be exported to runs beside its float form: the same graph with the
weights as they were before anything was rounded. This shows any fault of ranges, plan or kernels.
While the float model is in memory, the float form is compared with it, too.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from intact.calibration.float_form import FloatForms, float_outputs
from intact.calibration.holdout import Holdout
from intact.errors import AccuracyWarning
from intact.graph.view import Node
from intact.layers.alignment import before_shares
from intact.layers.kernel_graph import Role, kernel_graph
from intact.litert.runtime import LiteRTModel, expose_in
from intact.litert.writing import pack
from intact.lowering.lowering import Lowering
from intact.memory import is_large, separate_pages
from intact.names import Kernels
from intact.ops.constant import Constant

LEAST = 20.0
"""The signal-to-noise ratio in dB below which a tensor counts as lost: an error of a tenth.

The logits of a ResNet-20 in int8 have 24 dB, and it has float's accuracy; those of a MobileNetV1
0.25 have 10 to 12, and one of ten of its top-1 is another.
"""

FLOAT_SAMPLES = 2
"""How many samples the float model runs on: a layer traced wrongly is wrong on each."""

HIDDEN = 20.0
"""How many dB a lost part is below the whole that hides it."""

GONE = 3.0
"""The error of a channel with less is nearly as large as the channel."""

FEW = 8
"""Up to this number of channels, one lost channel counts; of more channels, a quarter has to be
lost."""

SAME = 0.7
"""Smallest share of whole numbers, such as classes, that must agree."""

DROP = 6.0
"""How many dB a tensor to blame is below its inputs."""

BEST = 200.0
"""The signal-to-noise ratio of what has no noise."""

NAMED = 3
"""How many outputs and how many tensors a warning names."""


REMEDIES = {
    "graph": (
        "The graph that intact traced does not compute what the float model computes. If the float "
        "model has changed since `quantize_model`, quantize it again. If it has not, a `call` was "
        "traced wrongly: please report this, and keep the layer in float by `filters`.",
    ),
    "concatenation": (
        "Give the parts of a concatenation as outputs of their own, because they share one scale: "
        "`keras.Model(inputs, {'boxes': boxes, 'scores': scores})`.",
    ),
    "channels": (
        "Give channels of unlike sizes as outputs of their own, because all channels of a tensor "
        "share one scale.",
    ),
    "rows": (
        "Leave no room for a few very large values: `calibrate(..., observer='percentile')`.",
    ),
    "input": (
        "Normalize the data before the model takes it, so that it lies around 0, because the "
        "integers of an input reach from 0 to its values.",
    ),
    "table": (
        "Make the rows of a table alike in size, or keep its layer in float by `filters`, because "
        "all rows share one scale: no kernel has a scale per row.",
    ),
    "range": (
        "More samples: values beyond the ranges of those that were seen are cut off.",
        "Another observer: `calibrate(..., observer='percentile')`, or 'mse'.",
        "`recover` in place of `calibrate`, or training.",
        "More bits: for some layers (`mixed`), or for all activations (the scheme 'int16x8').",
    ),
    "unseen": (
        "Calibrate on more samples, from all parts of the data: values beyond the ranges of those "
        "that were seen are cut off.",
        "Training, which moves the ranges on.",
    ),
}
"""What to try, by the kind of loss."""


@dataclass(frozen=True)
class Loss:
    """A tensor, or a part of it, that its integers do not represent any more.

    Args:
        what: Which it is.
        value: Its signal-to-noise ratio in dB; for whole numbers, the share that agrees.
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
    """A tensor in float and in the file, samples first."""

    real: np.ndarray
    rounded: np.ndarray

    @classmethod
    def of(cls, real: np.ndarray, rounded: np.ndarray) -> "Pair":
        """The pair without the places where float is not finite, such as log(0)."""
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
        """The same for most samples: a few large ones cannot hide the loss of the others."""
        real = self.real.astype("float64").reshape(len(self.real), -1)
        # A few large samples would dominate a mean.
        signal = np.sum((real - np.median(real)) ** 2, axis=1)
        noise = np.sum((real - self.rounded.reshape(real.shape)) ** 2, axis=1)
        live = signal > 1e-12 * np.sum(real**2)
        if not live.any():
            return BEST
        ratios = 10 * np.log10(signal[live] / np.maximum(noise[live], 1e-30))
        return float(np.clip(np.median(ratios), -BEST, BEST))

    @property
    def has_classes(self) -> bool:
        """Whether there is one number for each of several classes."""
        return self.real.ndim == 2 and self.real.shape[1] > 1

    @property
    def same_top1(self) -> float:
        """Share of the samples whose largest value is in the same place."""
        return float((self.real.argmax(1) == self.rounded.argmax(1)).mean())

    def channel_snr(self) -> np.ndarray:
        """The same for each channel that is not constant."""
        real = self.real.astype("float64").reshape(-1, self.real.shape[-1])
        signal = np.sum((real - real.mean(axis=0)) ** 2, axis=0)
        noise = np.sum((real - self.rounded.reshape(real.shape)) ** 2, axis=0)
        live = signal > 1e-12 * np.sum(real**2, axis=0)
        return 10 * np.log10(signal[live] / np.maximum(noise[live], 1e-30))

    def part(self, index: Any) -> "Pair":
        """The same part of both tensors."""
        return Pair(self.real[index], self.rounded[index])


def losses(name: str, pair: Pair, parts: Sequence[tuple[str, Any]] = ()) -> list[Loss]:
    """What an output has lost.

    Args:
        name: The output.
        pair: Its values in float and in the file.
        parts: Names and indices of the tensors that it concatenates.

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
    if pair.snr < LEAST:
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


def share_losses(name: str, shares: Pair, before: Pair) -> list[Loss]:
    """What an output of probabilities has lost.

    They are judged by themselves or by what the softmax or sigmoid takes, whichever is better.
    Their scale is fixed to 1/256, so that a thousand classes that are about as probable are all
    rounded to 0, though their order is right before the softmax. And where a class is certain, the
    logits may be wrong by much without any effect.

    Args:
        name: The output.
        shares: The probabilities.
        before: The inputs of the softmax or sigmoid.

    Example:

    >>> logits, shares = np.array([[9.0, -8.0], [-8.0, 9.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> share_losses("y", Pair(shares, shares), Pair(logits, logits * 2))
    []
    """
    snr = max(shares.snr, before.snr)
    return [Loss(f"output {name!r}", snr, "range")] if snr < LEAST else []


def warn_of_losses(
    model: keras.Model,
    batch: list[np.ndarray],
    fresh: bool = False,
    holdout: Holdout | None = None,
) -> None:
    """Warn where a calibrated model has lost what it computed in float.

    Args:
        model: A calibrated model; its float weights are what it should compute.
        batch: A few samples, an array for each input.
        fresh: Whether the weights are those of the float model still.
        holdout: Samples that were held out of the ranges of the others.

    Warns:
        AccuracyWarning: An output, or a part of one, is lost; or that could not be found out.
    """
    forms = FloatForms(model)
    try:
        message = _message_of_losses(forms, batch, fresh)
        if not message and holdout:
            message = _message_of_unseen(forms, holdout)
    except Exception as error:
        message = (
            f"The accuracy of model {model.name!r} was not checked, because it has no file or no "
            f"float form: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        )
    if message:
        warnings.warn(message, AccuracyWarning, stacklevel=3)


def _message_of_losses(forms: FloatForms, batch: list[np.ndarray], fresh: bool) -> str:
    """The warning about a model by the ranges that it has; empty if nothing is lost."""
    model, check = forms.model, _Check(forms, batch)
    lost = check.losses(fresh)
    if not lost:
        return ""
    culprits = check.culprits()[:NAMED] if lost[0].remedy != "graph" else []
    what = f"Quantized, model {model.name!r} loses"
    return message_of(what, len(batch[0]), lost, culprits, check.same_top1)


def _message_of_unseen(forms: FloatForms, holdout: Holdout) -> str:
    """The warning about a model whose ranges are too narrow for new samples."""
    model = forms.model
    with holdout.ranges_of_others(model) as narrower:
        if not narrower:
            return ""
        count = len(holdout.samples[0])
        check = _Check(forms, holdout.samples)
        lost = [replace(loss, remedy="unseen") for loss in check.losses(False)]
        if not lost:
            return ""
        culprits = [replace(loss, remedy="unseen") for loss in check.culprits()[:NAMED]]
    what = (
        f"Model {model.name!r} was calibrated on too few samples for new ones. With the ranges of "
        f"{holdout.total - count} of the {holdout.total} samples, the others lose"
    )
    return message_of(what, count, lost, culprits, check.same_top1)


def message_of(
    what: str,
    samples: int,
    lost: list[Loss],
    culprits: list[Loss],
    same_top1: float | None = None,
) -> str:
    """What a warning says: what is lost, where, and what to try.

    Args:
        what: The beginning of the sentence that names the lost outputs.
        samples: How many samples were compared.
        lost: What the outputs have lost.
        culprits: The tensors that lose most.
        same_top1: Share of the samples whose largest output is where it is in float, if the model
            has outputs of several classes.
    """
    more = len(lost) - NAMED
    lines = [
        f"{what} {', '.join(map(str, lost[:NAMED]))}"
        + (f" and {more} more" if more > 0 else "")
        + f". These are signal-to-noise ratios against float, on {samples} samples; from "
        f"{LEAST:g} dB on, the error is less than a tenth."
    ]
    if same_top1 is not None:
        lines.append(
            f"On {100 * same_top1:.0f} % of them, the largest output is the same one as in float. "
            "These samples are few: measure the accuracy on others."
        )
    if culprits:
        lines.append(f"Most is lost at {', '.join(map(str, culprits))}.")
    special = [loss.remedy for loss in lost if loss.remedy != "range"]
    remedies = special + [loss.remedy for loss in culprits or lost]
    lines.append("What may help:")
    lines += [f"- {text}" for key in dict.fromkeys(remedies) for text in REMEDIES[key]]
    lines.append("`compare(q, file, x, float_model=model)` tells what each layer loses.")
    return "\n".join(lines)


class _Check:
    """A model beside itself in float, on a few samples."""

    def __init__(self, forms: FloatForms, batch: list[np.ndarray]) -> None:
        self.forms, self.batch = forms, batch
        model = self.model = forms.model
        self.kernels = kernel_graph(model)
        self.graph = self.kernels.graph
        file = self.file = Lowering(model).run()
        graph = file.subgraphs[0]
        self.output_names = [entry.name for entry in file.signatureDefs[0].outputs]
        self.output_tensors = [graph.tensors[index].name for index in graph.outputs]
        self.names = dict(self._names({tensor.name for tensor in graph.tensors}))
        self.same_top1: float | None = None

    def _names(self, known: set[str]) -> Iterator[tuple[Node, str]]:
        """The quantizers' calls whose tensors the file has, and what it calls these."""
        for kernel in self.kernels.kernels:
            node, name = kernel.range_call, kernel.name
            if node is None:
                continue
            source = self.graph.producer(node.inputs[0])
            if source.is_input and name not in known:
                # An integer input has the name of its layer.
                name = source.layer.name
            if name in known:
                yield node, name

    def _run(self, names: list[str]) -> dict[str, np.ndarray]:
        """What the file computes: real values by the names of its outputs and of more tensors.

        Memory holds the weights of a large model once: its file is packed from objects that
        are released, and without XNNPACK, which would copy them.
        """
        objects = self.file or Lowering(self.model).run()
        self.file = None
        expose_in(objects, names)
        kernels: Kernels = "builtin" if is_large(self.model) else "default"
        file = LiteRTModel(pack(objects, release=True), os.cpu_count() or 1, kernels)
        outputs = file.predict(self.batch)
        return outputs if isinstance(outputs, dict) else {file.output_names[0]: outputs}

    def pairs(self, nodes: Sequence[Node]) -> tuple[list[Pair], dict[Node, Pair]]:
        """The model's outputs, and what some of its quantizers make."""
        inside = [self.names[node] for node in nodes]
        with separate_pages(self.model):
            rounded = self._run(inside)
        tensors = [*self.model.outputs, *(node.outputs[0] for node in nodes)]
        exact = self.forms.of(tensors)(self.batch)
        names = [*self.output_tensors, *inside]
        pairs = [Pair.of(real, rounded[name]) for real, name in zip(exact, names, strict=True)]
        count = len(self.model.outputs)
        return pairs[:count], dict(zip(nodes, pairs[count:], strict=True))

    def losses(self, fresh: bool) -> list[Loss]:
        """What the outputs have lost; only the faults of the float form, if it has any.

        Args:
            fresh: Whether the float model is to be compared with the float form.
        """
        judged = [self._judged(tensor) for tensor in self.model.outputs]
        outputs, inside = self.pairs(list(dict.fromkeys(filter(None, judged))))
        shares = [pair.same_top1 for pair in outputs if pair.has_classes]
        self.same_top1 = min(shares, default=None)
        lost = self._graph_losses(outputs) if fresh else []
        if lost:
            return lost
        rows = zip(self.output_names, self.model.outputs, outputs, judged, strict=True)
        for name, tensor, pair, node in rows:
            if node is None:
                lost += losses(name, pair, self._parts(tensor))
            else:
                lost += share_losses(name, pair, inside[node])
        return lost

    def _graph_losses(self, outputs: list[Pair]) -> list[Loss]:
        """The outputs for which the float form differs from the float model."""
        size = self.model.inputs[0].shape[0] or 1
        few = [array[: max(FLOAT_SAMPLES, size)] for array in self.batch]
        rows = zip(self.output_names, float_outputs(self.model, few), outputs, strict=False)
        # Products of all pairs of samples have fewer columns, too.
        pairs = [
            (name, Pair.of(real, pair.real[tuple(map(slice, real.shape))]))
            for name, real, pair in rows
        ]
        return [replace(loss, remedy="graph") for row in pairs for loss in losses(*row)]

    def _judged(self, output: keras.KerasTensor) -> Node | None:
        """The quantizer before an output's softmax or sigmoid, if there is one."""
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
        sizes = [tensor.shape[axis] for tensor in firsts]
        if None in sizes:
            return []
        before = [slice(None)] * axis
        return [
            (self.kernels.source(t).layer.name, (*before, slice(end - size, end)))
            for t, size, end in zip(firsts, sizes, np.cumsum(sizes), strict=True)
        ]

    def culprits(self) -> list[Loss]:
        """The tensors that are much worse than their inputs, the worst first; at least one."""
        _, inside = self.pairs(list(self.names))
        levels: dict[int, float] = {}
        drops: list[tuple[float, Loss]] = []
        for node in self.graph.nodes:
            level = before = min((levels[id(t)] for t in node.inputs), default=BEST)
            if node in inside:
                level = min(inside[node].snr, inside[node].row_snr)
            levels.update((id(tensor), level) for tensor in node.outputs)
            if level < LEAST and node in inside:
                drops.append((level - before, self._culprit(node, level)))
        drops.sort(key=lambda drop: drop[0])
        large = [loss for drop, loss in drops if drop < -DROP]
        return large or [loss for _, loss in drops[:1]]

    def _culprit(self, node: Node, snr: float) -> Loss:
        source = self.kernels.source(node.inputs[0])
        remedy = "range"
        if source.role is Role.INPUT:
            remedy = "input"
        elif isinstance(source.layer, Constant):
            remedy = "table"
        return Loss(repr(source.layer.name), snr, remedy)
