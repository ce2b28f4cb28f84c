"""Tensors whose axes have labels, as those of an einsum."""

import math
from collections.abc import Callable
from typing import Any

from keras import layers

from intact.ops.moves import Size, SizedReshape


class Shaper:
    """Permutes and reshapes tensors whose axes have labels."""

    def __init__(self, layer: Any, tracer: Any, sizes: dict[str, int | None], batch: str) -> None:
        self.layer, self.tracer, self.sizes, self.batch = layer, tracer, sizes, batch

    def arrange(self, x: Any, labels: str, groups: list[list[str]]) -> Any:
        """Axes in the order of groups; each group becomes one axis, of size 1 if it is empty."""
        wanted = [label for group in groups for label in group]
        if wanted[0] != labels[0] or wanted[0] != self.batch:
            self.tracer.refuse(self.layer, "it moves the axis of the batch")
        x = self.permute(x, list(labels), wanted)
        if any(len(group) != 1 for group in groups):
            x = self.reshape(x, [self.size(group, wanted.index) for group in groups[1:]])
        return x

    def restore(self, x: Any, groups: list[list[str]], out: str) -> Any:
        """The product's axes as labelled ones, in the order of the output."""
        labels = [label for group in groups for label in group]
        if any(len(group) != 1 for group in groups):
            x = self.reshape(
                x, [s for place in enumerate(groups[1:], 1) for s in self.parts(*place)]
            )
        return self.permute(x, labels, list(out))

    def parts(self, axis: int, group: list[str]) -> list[Size]:
        """The sizes of axes that are one axis."""
        whole, _, _ = self.size(group, lambda label: axis)
        sizes = [self.sizes[label] for label in group]
        return [(1, axis, whole) if size is None else (size, None, 1) for size in sizes]

    def size(self, group: list[str], axis_of: Callable[[str], int]) -> Size:
        """The size of several axes as one: a number, or a multiple of an axis of unknown size."""
        unknown = [label for label in group if self.sizes[label] is None]
        if len(unknown) > 1:
            self.tracer.refuse(self.layer, f"the sizes of its axes {unknown} are unknown")
        known = math.prod(self.sizes[label] or 1 for label in group)
        return known, axis_of(unknown[0]) if unknown else None, 1

    def permute(self, x: Any, labels: list[str], wanted: list[str]) -> Any:
        """A tensor with its labelled axes in another order."""
        if labels == wanted:
            return x
        dims = tuple(labels.index(label) for label in wanted[1:])
        return self.tracer.emit_new(layers.Permute(dims, name=f"{self.layer.name}_permute"), x)

    def reshape(self, x: Any, sizes: list[Size]) -> Any:
        """A tensor in another shape; the batch stays as it is."""
        name = f"{self.layer.name}_reshape"
        target = [size if axis is None else -1 for size, axis, _ in sizes]
        if target.count(-1) > 1:
            return self.tracer.emit(SizedReshape(sizes, name=name), x)
        return self.tracer.emit_new(layers.Reshape(target, name=name), x)
