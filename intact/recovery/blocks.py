"""Rounds the weights of a block together, so that the output of the block changes least.

A block reaches from one tensor that all later layers depend on to the next: in a residual network
from a fork to behind its sum, in a chain it is a single layer. Whether each weight has the integer
below or above its exact value, and the ranges of activations of few bits, are learned by gradients
from the error of the block's output (BRECQ: Li et al., arXiv:2102.05426), with the rounding that
layers alone have found (`intact.recovery.layerwise`) to begin with. The choice is rounded in each
step, and its gradient goes straight through. At random, values stay as they are in the float model,
so that the choice does not depend on the errors of a few samples (QDrop: Wei et al.,
arXiv:2203.05740), in blocks with activations of few bits.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from intact.calibration.walk import Walk, as_filed, in_float
from intact.graph.view import Graph, Node, view
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.quantized import Quantized
from intact.numerics.affine import integer_range, unquantized
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.straight_through import round_through
from intact.numerics.tensors import to_numpy
from intact.recovery.layerwise import adjustable

STEPS = 200
"""How many steps of Adam a block takes."""

BATCH = 16
"""Samples in each."""

RATE = 0.003
"""The first learning rate, of choices between 0 and 1 and of factors of ranges; it falls to 0."""

DROPPED = 0.5
"""The share of values that stay as in the float model, where activations have few bits."""

START = 0.45
"""How far from its choice a weight begins, of the distance between its choice and its value."""


@dataclass(frozen=True)
class Block:
    """Consecutive calls between two tensors.

    Args:
        source: The call whose output they read.
        nodes: The calls.
        layers: The layers whose rounding is learned.
    """

    source: Node
    nodes: tuple[Node, ...]
    layers: tuple[Quantized, ...]

    @property
    def ranges(self) -> list[FakeQuantize]:
        """The quantizers whose ranges are learned, too."""
        layers = [node.layer for node in self.nodes if isinstance(node.layer, FakeQuantize)]
        plain = [a for a in layers if a.fixed is None and a.slots == 1 and not a.learns]
        return [a for a in plain if a.spec.bits < 8 and a.rule.name == "range"]


def find_blocks(graph: Graph) -> list[Block]:
    """The blocks of a quantized model that have weights of few bits, in their order.

    Args:
        graph: The view of the model.
    """
    calls = Counter(id(node.layer) for node in graph.nodes)
    last = {id(t): index for index, node in enumerate(graph.nodes) for t in node.inputs}
    last |= {id(t): len(graph.nodes) for t in graph.outputs}
    blocks: list[Block] = []
    nodes: list[Node] = []
    source, reach = None, 0
    for index, node in enumerate(graph.nodes):
        nodes.append(node)
        if isinstance(node.layer, FakeQuantize) and reach <= index:
            few = tuple(n.layer for n in nodes if _is_few(n.layer) and calls[id(n.layer)] == 1)
            # A constant, or another input, is no tensor of the block before.
            alone = not any(n.is_input for n in nodes)
            if source is not None and few and alone:
                blocks.append(Block(source, tuple(nodes), few))
            nodes, source = [], node
        # The last call that reads anything of what has been computed so far.
        reach = max([reach, *(last.get(id(tensor), 0) for tensor in node.outputs)])
    return blocks


def _is_few(layer: Any) -> bool:
    """Whether a layer has weights of few bits that can be rounded up or down."""
    return adjustable(layer) and layer.spec.symmetric and layer.spec.bits < 8


@dataclass(frozen=True)
class FloatBlocks:
    """What the blocks of a model are in float.

    Args:
        kernels: The kernels, by the names of their layers.
        outputs: The tensors at both ends of the blocks, by the names of their quantizers.
    """

    kernels: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def float_blocks(model: keras.Model, batches: list[list[Any]]) -> FloatBlocks:
    """Run the blocks of a model in float, before its weights are rounded.

    Args:
        model: A quantized model; its own float weights are what it should compute.
        batches: Per batch, the arrays of the inputs.
    """
    graph = view(model)
    blocks = find_blocks(graph)
    ends = {id(node) for block in blocks for node in (block.source, block.nodes[-1])}
    layers = [layer for block in blocks for layer in block.layers]
    kernels = {layer.name: np.array(to_numpy(layer.layer.kernel)) for layer in layers}
    walk, outputs = Walk(graph, batches), {}
    for node in graph.nodes:
        if not node.is_input:
            walk.step(node, in_float)
            if id(node) in ends:
                outputs[node.layer.name] = _output(walk, node)
    return FloatBlocks(kernels, outputs)


def reconstruct(model: keras.Model, batches: list[list[Any]], real: FloatBlocks, seed: int) -> None:
    """Learn the rounding of a calibrated model's weights, block by block.

    Each block reads what the blocks before it give, which have learned theirs already.

    Args:
        model: A quantized model.
        batches: Per batch, the arrays of the inputs.
        real: What `float_blocks` returned for them.
        seed: Of the choice of samples, and of what stays as in the float model.
    """
    graph = view(model)
    walk = Walk(graph, batches)
    blocks = {id(node): block for block in find_blocks(graph) for node in block.nodes}
    waiting: list[Node] = []
    for node in graph.nodes:
        if node.is_input:
            continue
        waiting.append(node)
        block = blocks.get(id(node))
        if block is not None and node is not block.nodes[-1]:
            continue
        if block is not None:
            ends = block.source.layer.name, node.layer.name
            outputs = [real.outputs[name] for name in ends]
            _learn(block, [_output(walk, block.source), *outputs], real.kernels, seed)
        for call in waiting:
            walk.step(call, as_filed)
        waiting = []


def _output(walk: Walk, node: Node) -> np.ndarray:
    """The real values of what a quantizer returns, of all samples."""
    return np.concatenate([to_numpy(part) for part in walk.real(node.outputs)])


def _learn(
    block: Block, arrays: list[np.ndarray], kernels: dict[str, np.ndarray], seed: int
) -> None:
    """Learn the rounding of a block.

    Args:
        block: The block.
        arrays: Its input in the quantized model and in the float model, and its output there.
        kernels: The float kernels, by the names of their layers.
        seed: As for `reconstruct`.
    """
    trainer = BlockTrainer(block, kernels, float(np.mean(arrays[-1] ** 2)) or 1.0, seed)
    rate = keras.optimizers.schedules.CosineDecay(RATE, STEPS)
    trainer.compile(keras.optimizers.Adam(rate), loss=lambda _, error: error)
    rng, count = np.random.default_rng(seed), len(arrays[0])

    def batches() -> Iterator[tuple[Any, np.ndarray]]:
        while True:
            chosen = rng.integers(0, count, BATCH)
            yield tuple(a[chosen] for a in arrays), np.zeros((BATCH, 1), "float32")

    trainer.fit(batches(), steps_per_epoch=STEPS, shuffle=False, verbose=0)
    trainer.write()


class ChosenKernel:
    """A kernel whose weights are rounded up or down as training decides.

    Args:
        quantized: The layer, whose weights are rounded already.
        exact: The float kernel.
        model: Where the trained numbers go.
    """

    def __init__(self, quantized: Quantized, exact: np.ndarray, model: keras.Model) -> None:
        self.quantized, spec = quantized, quantized.spec
        assert spec is not None
        whole, flat = quantized.quantized_weights(numpy_ops)["kernel"]
        self.scale = quantized.layouts()["kernel"].spread(flat, exact.shape, numpy_ops)
        high = integer_range(spec.bits)[1]
        # From its integer, a weight can go to the next one towards its exact value. Those at the
        # ends make the range, and stay.
        gap = np.clip(np.clip(exact / self.scale, -high, high) - whole, -1.0, 1.0)
        gap = np.where(np.abs(whole) >= high, 0.0, gap)
        floor = np.where(gap < 0, whole - 1, whole).astype("float32")
        first = np.where(gap < 0, 1.0, 0.0) + START * gap
        self.floor, self.moves = map(ops.convert_to_tensor, (floor, (gap != 0).astype("float32")))
        self.flat = ops.convert_to_tensor(flat, "float32")
        self.choice = model.add_weight(
            name=f"{quantized.name}_choice",
            shape=exact.shape,
            constraint=lambda choice: ops.clip(choice, 0.0, 1.0),
        )
        self.choice.assign(first)

    def whole(self) -> Any:
        """The integers, with a gradient."""
        return self.floor + self.moves * round_through(self.choice * 1.0)

    def write(self) -> None:
        """Write the rounded kernel into the layer."""
        kernel = to_numpy(self.whole()) * self.scale
        self.quantized.layer.kernel.assign(kernel.astype("float32"))


class BlockTrainer(keras.Model):
    """The error of a block for each sample, and the numbers that make it smaller.

    It is called with the block's input in the quantized model, its input in the float model, and
    its output there.

    Args:
        block: The block.
        kernels: The float kernels, by the names of their layers.
        power: The mean square of its output.
        seed: Of what stays as in the float model.
    """

    def __init__(
        self, block: Block, kernels: dict[str, np.ndarray], power: float, seed: int
    ) -> None:
        super().__init__()
        self.block, self.power = block, power
        self.random = keras.random.SeedGenerator(seed)
        self.chosen = {
            layer.name: ChosenKernel(layer, kernels[layer.name], self) for layer in block.layers
        }
        self.grids = {layer.name: layer.stored_grid() for layer in block.ranges}
        self.factors = {
            name: self.add_weight(name=f"{name}_factor", shape=(), initializer="ones")
            for name in self.grids
        }

    def call(self, inputs: Any) -> Any:
        """The mean square of each sample's error, in units of the output's power, (samples, 1).

        Args:
            inputs: The two inputs, and the output.
        """
        rounded, real, target = inputs
        # Activations of 8 bits lose little, so all of the input's error is the weights' to undo.
        mixed = ops.where(self._dropped(rounded), real, rounded) if self.grids else rounded
        start = unquantized(mixed)
        values = dict(zip(map(id, self.block.source.outputs), start, strict=False))
        result: Any = start
        for node in self.block.nodes:
            args = keras.tree.map_structure(
                lambda a: values[id(a)] if isinstance(a, keras.KerasTensor) else a, node.args
            )
            result = self._result(node, args)
            values.update(zip(map(id, node.outputs), keras.tree.flatten(result), strict=False))
        square = ops.square(result.values * result.scale - target)
        rows = ops.reshape(square, (ops.shape(square)[0], -1))
        return ops.mean(rows, axis=-1, keepdims=True) / self.power

    def _dropped(self, x: Any) -> Any:
        return keras.random.uniform(ops.shape(x), seed=self.random) < DROPPED

    def _result(self, node: Node, args: tuple[Any, ...]) -> Any:
        """What a call returns, in real values."""
        name = node.layer.name
        if name in self.chosen:
            kernel = self.chosen[name]
            return node.layer.compute(args[0], {"kernel": (kernel.whole(), kernel.flat)})
        result = getattr(node.layer, "unrounded", node.layer)(*args, **node.kwargs)
        if name not in self.grids:
            return result
        grid, x = self.grids[name], result.values
        scale = float(grid.scale) * self.factors[name]
        whole = round_through(ops.clip(x / scale, float(grid.low), float(grid.high)))
        return unquantized(ops.where(self._dropped(x), x, whole * scale))

    def write(self) -> None:
        """Write what was learned into the model's layers."""
        for kernel in self.chosen.values():
            kernel.write()
        for layer in self.block.ranges:
            factor = to_numpy(self.factors[layer.name])
            layer.set_range(to_numpy(layer.minimum) * factor, to_numpy(layer.maximum) * factor)
