"""The part of the tracer that makes the steps of layers, one by one or as a loop."""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import keras


class LoopTracing:
    """Makes the model of a step, which is a graph of its own.

    Args:
        unrolled: The ids of cells whose steps are not to be a loop; None for all cells.
    """

    _prefix: str
    _rule: Any
    _owner: Any

    def __init__(self, unrolled: Collection[int] | None = ()) -> None:
        self._unrolled = unrolled
        self._step: tuple[int, Counter] | None = None
        self.anchor: Any = None
        # Whether emitted layers are part of a loop's step.
        self.in_loop = False
        # How often the steps of each cell have become a loop.
        self.loops: Counter[int] = Counter()

    def unique(self, name: str) -> str:
        """A layer name that is not taken yet, similar to `name`."""
        raise NotImplementedError

    @property
    def in_step(self) -> bool:
        """Whether emitted layers are part of a step that is written out."""
        return self._step is not None

    @contextlib.contextmanager
    def step(self, layer: Any) -> Iterator[None]:
        """One step of a layer: all its steps call the same layers, and each of these has one range.

        Args:
            layer: The layer, or anything that stands for the steps that go together.
        """
        outer, self._step = self._step, (id(layer), Counter())
        try:
            yield
        finally:
            self._step = outer

    @property
    def looped_twice(self) -> set[int]:
        """The ids of cells that have several loops, whose models could not share their weights."""
        return {cell for cell, count in self.loops.items() if count > 1}

    def may_loop(self, cell: Any) -> bool:
        """Whether the steps of a cell may become a loop; counts that they do.

        Args:
            cell: The user's cell.
        """
        if self._unrolled is None or id(cell) in self._unrolled or self.in_loop:
            return False
        self.loops[id(cell)] += 1
        return True

    def inner_input(self, name: str, sizes: tuple[int | None, ...], like: Any) -> Any:
        """An input of the model of a step.

        Args:
            name: A name for it.
            sizes: Its sizes, without the batch.
            like: A tensor with its batch and type.
        """
        name = self.unique(f"{self._prefix}_{name}")
        return keras.Input(batch_shape=(like.shape[0], *sizes), dtype=like.dtype, name=name)

    @contextlib.contextmanager
    def inside(self, anchor: Any) -> Iterator[None]:
        """Inside a `with` block, emit the layers of a step.

        Args:
            anchor: An input of the step's model.
        """
        outer, self.anchor, self.in_loop = self.anchor, anchor, True
        try:
            yield
        finally:
            self.anchor, self.in_loop = outer, False

    def place(self, layer: keras.layers.Layer, inputs: list[Any]) -> list[Any]:
        """Call a layer in the new graph that is not copied, and has several outputs.

        Args:
            layer: The layer.
            inputs: Tensors of the new graph.
        """
        layer.name = self.unique(f"{self._prefix}_{layer.name}")
        layer.own_rule, layer.owner = self._rule, self._owner
        return layer(inputs)
