"""What `compare` returns."""

import builtins
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from intact.analysis.page import page
from intact.paths import write_whole
from intact.tables import Report, Table

BINS = 48
"""Bars of a histogram."""


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
class TensorComparison:
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
        local_snr: The same for the layer alone: it and the float layer read the float model's
            tensors, rounded.
        float_top1: As `top1`, against the float model.
        activations: How the values are spread, in the float model where it is given.
        weights: How the weights of its layer are spread.

    Example:

    >>> TensorComparison("head", values=1000, different=5, max_lsb=1.0).share_equal
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
        reads: The indices of the nodes that it reads, in the order of the file.
        float: Whether it computes in float.
        shape: The sizes of its first output; None where they may be resized.
        latency: The seconds that the op takes alone, if they were measured.

    Example:

    >>> FileNode("RELU", "act", "int8", reads=(0,)).float
    False
    """

    kind: str
    name: str
    dtype: str
    reads: tuple[int, ...] = ()
    float: bool = False
    shape: tuple[int | None, ...] = ()
    latency: builtins.float | None = None


@dataclass(frozen=True)
class Flip:
    """A sample whose largest output is another one in the file than in float.

    Args:
        sample: Its place among the samples.
        before: The class in float; in Keras, if there is no float model to compare with.
        after: The class in the file.
        picture: The sample as an image, a PNG in a data URI, if it is one.

    Example:

    >>> Flip(17, before=3, after=5).after
    5
    """

    sample: int
    before: int
    after: int
    picture: str = ""


@dataclass(frozen=True, repr=False)
class Comparison(Report):
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
        file: The path of the file, if it came from one.
        types: The types of its weights and activations, in words.
        flips: The first samples whose largest output is another one in the file than in float.
        flipped: How many such samples there are.

    Example:

    >>> head = TensorComparison("head", values=1000, different=5, max_lsb=1.0, top1=1.0)
    >>> print(Comparison((head,), (), samples=100))
    Keras against LiteRT, 100 samples
                 values  differ  max LSB  top-1 same
    output head    1000       5        1    100.00 %
    """

    outputs: tuple[TensorComparison, ...]
    layers: tuple[TensorComparison, ...]
    samples: int
    floats: tuple[TensorComparison, ...] = ()
    nodes: tuple[FileNode, ...] = ()
    model: str = ""
    bytes: int = 0
    kernels: str = "default"
    file: str = ""
    types: str = ""
    flips: tuple[Flip, ...] = ()
    flipped: int = 0

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
        """The comparison as data for JSON."""
        data = asdict(self)
        for flip in data["flips"]:
            # JSON is for programs, which have the samples.
            del flip["picture"]
        return data

    def to_json(self, path: str | os.PathLike) -> None:
        """Write the comparison as JSON.

        Args:
            path: The file to write.

        Raises:
            ExportError: The path cannot be written.
        """
        write_whole(json.dumps(self.to_dict(), indent=1).encode(), path)

    def to_html(self, path: str | os.PathLike) -> None:
        """Write a page to look at: one file, which needs no network.

        It shows the samples that change their class; the layers, the worst first, with what to try;
        their distributions and ranges; and the graph of the file, with what computes in float. A
        script of a few lines searches and sorts the layers; all else works without it.

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

    def parts(self) -> list[str | Table]:
        """The table of the outputs and layers."""
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
        return [f"Keras against LiteRT, {self.samples} samples", Table(rows)]


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"
