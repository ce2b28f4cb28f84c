"""The ranges of a quantized model: which are missing, and where each is used."""

import contextlib
from collections.abc import Iterator

import keras

from intact.errors import IntactError, NotCalibratedError
from intact.graph.view import Graph, Node, all_layers, made_by, view
from intact.layers.base import QuantizedLayer, is_own_model
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.loop import QuantizedLoop
from intact.numerics.tensors import to_numpy


@contextlib.contextmanager
def stand_in_ranges(model: keras.Model) -> Iterator[None]:
    """Inside a `with` block, give ranges without data a stand-in, so that a file can be written.

    Args:
        model: A quantized model.
    """
    layers = (layer for layer in model.layers if isinstance(layer, FakeQuantize))
    empty = [layer for layer in layers if not layer.calibrated]
    try:
        for layer in empty:
            layer.set_range(-1.0, 1.0)
        yield
    finally:
        for layer in empty:
            layer.reset()


def refuse_nested(model: keras.Model, before: str) -> None:
    """Make sure that a quantized model does not stand inside another one.

    Args:
        model: A model.
        before: What is about to be done, for the error.

    Raises:
        IntactError: The model calls a quantized one, which the message names.
    """
    for inner in all_layers(model):
        if is_own_model(inner) and any(isinstance(x, QuantizedLayer) for x in inner.layers):
            raise IntactError(
                f"Model {model.name!r} calls the quantized model {inner.name!r}. Pass "
                f"{inner.name!r} itself for {before}: its layers are the same ones."
            )


def check_calibrated(model: keras.Model, before: str) -> None:
    """Make sure that every range of a model has seen data.

    Args:
        model: A quantized model.
        before: What is about to be done, for the error.

    Raises:
        NotCalibratedError: Ranges are missing; each is named with its layer.
    """
    quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    refuse_nested(model, before)
    if all(layer.calibrated for layer in quantizers):
        return
    missing = []
    for node, slot in range_calls(view(model)):
        if not to_numpy(node.layer.count)[slot]:
            source = made_by(node.inputs[0]).layer
            source = getattr(source, "layer", source)
            slots = f", slot {slot}" if node.layer.slots > 1 else ""
            missing.append(
                f"{node.layer.name}{slots}: behind {type(source).__name__} {source.name!r}"
            )
    raise NotCalibratedError(
        f"{len(missing)} ranges of model {model.name!r} have seen no data:\n  "
        + "\n  ".join(missing)
        + "\nRun `intact.calibrate(model, data)` on about 100 samples, or train with `fit`, "
        f"before {before}; or give them a range without data: "
        "`intact.calibrate(model, default_ranges=(-6.0, 6.0))`."
    )


def range_calls(graph: Graph) -> list[tuple[Node, int]]:
    """The calls of quantizers whose ranges are observed, and the slot of each.

    Args:
        graph: The view of a quantized model.
    """
    loops = (node.layer for node in graph.nodes if isinstance(node.layer, QuantizedLoop))
    inner = (node for loop in loops for node in (*loop.start_nodes, *loop.nodes))
    calls = [node for node in (*graph.nodes, *inner) if isinstance(node.layer, FakeQuantize)]
    return [(node, node.kwargs.get("slot", 0)) for node in calls if node.layer.fixed is None]
