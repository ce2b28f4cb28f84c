"""Weights of several layers that are one weight of the float model, and train as one.

The table of a tied embedding is also the kernel of the layer that computes the logits. The
quantized model has a weight for each of them, because each is quantized in its own way. Both start
with the same values, and each receives the gradients of both, so they stay equal.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from intact.layers.base import QuantizedLayer
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor, to_numpy

Fingerprint = tuple[int, int]
"""The number of a weight's values, and a sum of them that does not depend on their order."""

Place = tuple[str, str, Any]
"""The name of a layer, the name of a weight of it, and the variable."""


@dataclass(frozen=True)
class Copy:
    """A layer's copy of a shared weight.

    Args:
        layer: The layer's name.
        weight: The attribute of the layer that holds the copy.
        axes: The order in which the copy has the axes of the float model's weight. The copy may
            have another shape: its axes may be split or merged.
    """

    layer: str
    weight: str
    axes: tuple[int, ...]


@dataclass(frozen=True)
class SharedWeight:
    """A weight of the float model that several layers of the quantized model have a copy of.

    Args:
        path: The path of the float model's weight.
        shape: Its shape.
        copies: The copies.
    """

    path: str
    shape: tuple[int, ...]
    copies: tuple[Copy, ...]

    def get_config(self) -> dict[str, Any]:
        """The fields, for a model's config."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SharedWeight":
        """The record of a config.

        Args:
            config: What `get_config` returned; JSON may have made its tuples lists.
        """
        copies = (Copy(c["layer"], c["weight"], tuple(c["axes"])) for c in config["copies"])
        return cls(config["path"], tuple(config["shape"]), tuple(copies))


class SharesWeights:
    """A layer whose weights may be copies of shared weights.

    Attributes:
        siblings: By the name of a weight, its other copies, which receive its gradient.
    """

    siblings: dict[str, "Siblings"]

    def shareable(self) -> dict[str, Any]:
        """By name, the trainable weights that can receive the gradients of others."""
        raise NotImplementedError


class Siblings:
    """The other copies of a layer's weight.

    Args:
        shape: The shape of the float model's weight.
        axes: The order of its axes in the layer's copy.
        others: The variables of the other copies, each with the order of its axes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        others: Sequence[tuple[Any, tuple[int, ...]]],
    ) -> None:
        # Of each other copy: its variable, its shape with the axes apart, and their order here.
        self.others = [
            (variable, [shape[axis] for axis in order], np.argsort(order)[list(axes)].tolist())
            for variable, order in others
        ]

    def with_gradients(self, w: Tensor) -> Tensor:
        """The layer's copy, whose gradient also reaches the other copies.

        Args:
            w: The copy.

        Returns:
            The same values.
        """
        for variable, apart, order in self.others:
            other = ops.reshape(ops.convert_to_tensor(variable), apart)
            other = ops.reshape(ops.transpose(other, order), w.shape)
            # The difference is 0 and has the gradient of `other`.
            w = w + (other - ops.stop_gradient(other))
        return w


def find_shared_weights(
    model: keras.Model, float_model: keras.Model, linked: bool = False
) -> list[SharedWeight]:
    """Find the weights of a float model that several layers of another model have a copy of.

    A weight is shared if the other model has its values more often than the float model.

    Args:
        model: The other model, quantized or canonical.
        float_model: The float model.
        linked: Whether only copies count that can receive the gradients of others.
    """
    sources = [v for v in float_model.trainable_variables if len(v.shape) > 1]
    layers = [layer for layer in model.layers if _owner(layer) is not None or not linked]
    places = [place for layer in layers for place in _places(layer)]
    # Sizes tell most weights apart, and cost nothing.
    once = Counter(math.prod(variable.shape) for variable in sources)
    often = Counter(math.prod(variable.shape) for *_, variable in places)
    sizes = {size for size, count in often.items() if count > once[size] > 0}
    alike: dict[Fingerprint, list[Place]] = defaultdict(list)
    for place in places:
        if math.prod(place[2].shape) in sizes:
            alike[_fingerprint(place[2])].append(place)
    owners = defaultdict(list)
    for variable in sources:
        if math.prod(variable.shape) in sizes:
            owners[_fingerprint(variable)].append(variable)
    shared = [_shared(v[0], alike[key]) for key, v in owners.items() if len(v) == 1]
    return [weight for weight in shared if len(weight.copies) > 1]


def share_gradients(model: keras.Model, shared: Sequence[SharedWeight]) -> None:
    """Let the copies of shared weights receive each other's gradients.

    Args:
        model: A quantized model, or a part of one.
        shared: What `find_shared_weights` returned for the whole model.
    """
    if not shared:
        return
    owners = {layer.name: owner for layer in model.layers if (owner := _owner(layer)) is not None}
    for weight in shared:
        if not all(copy.layer in owners for copy in weight.copies):
            continue
        variables = [owners[copy.layer].shareable()[copy.weight] for copy in weight.copies]
        for copy in weight.copies:
            others = [
                (variable, other.axes)
                for variable, other in zip(variables, weight.copies, strict=True)
                if other is not copy
            ]
            siblings = owners[copy.layer].siblings
            siblings[copy.weight] = Siblings(weight.shape, copy.axes, others)


def _places(layer: keras.layers.Layer) -> list[Place]:
    """The weights of a layer that may be copies."""
    owner = _owner(layer)
    if owner is not None:
        return [(layer.name, name, variable) for name, variable in owner.shareable().items()]
    if isinstance(layer, QuantizedLayer):
        return []
    return [(layer.name, variable.name, variable) for variable in layer.trainable_variables]


def _owner(layer: Any) -> SharesWeights | None:
    """The layer that reads a layer's weights: itself, or the one inside it."""
    parts = (layer, getattr(layer, "layer", None))
    return next((p for p in parts if isinstance(p, SharesWeights) and p.shareable()), None)


def _fingerprint(variable: Any) -> Fingerprint:
    """What equal values have in common, whatever their order."""
    values = to_numpy(variable).astype("float32", copy=False).reshape(-1)
    return values.size, int(np.sum(values.view("uint32"), dtype="uint64"))


def _shared(source: Any, places: list[Place]) -> SharedWeight:
    """The record of a weight, with the places that have its values."""
    values = to_numpy(source)
    copies = []
    # Values that are all equal have no order.
    if values.size and (values != values.flat[0]).any():
        for layer, name, variable in places:
            axes = _order(values, to_numpy(variable))
            if axes is not None:
                copies.append(Copy(layer, name, axes))
    return SharedWeight(source.path, tuple(values.shape), tuple(copies))


def _order(values: np.ndarray, other: np.ndarray) -> tuple[int, ...] | None:
    """The order of axes in which values, flattened, are other ones; None if there is none."""
    for axes in itertools.permutations(range(values.ndim)):
        if np.array_equal(values.transpose(axes).reshape(-1), other.reshape(-1)):
            return axes
    return None
