"""Shows observers the tensors of a quantized model while data runs through it in float."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.errors import IntactError
from intact.graph.view import Node, with_outputs
from intact.layers.kernel_graph import Role, kernel_graph
from intact.layers.loop import QuantizedLoop
from intact.layers.stateful import stateful_layers
from intact.litert.runtime import LiteRTModel
from intact.lowering.real import lower_products, lower_real
from intact.memory import is_large
from intact.numerics.backend_kernels import predictor
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import to_numpy
from intact.ops.pairs import PairProducts
from intact.ops.registry import get_op
from intact.quantizers.observers import Observer

Watch = tuple[keras.KerasTensor | tuple[keras.KerasTensor, ...], Observer]
"""One tensor of a model's graph, or several together, and their observer."""

MEMORY = 2**26
"""The size in bytes of the tensors of one batch; a single sample may exceed it."""


class Capture:
    """Runs a model on batches, and lets observers look at its tensors.

    The model is written as a float LiteRT file whose outputs are these tensors, as its
    kernels are many times as fast as Keras. Where an op has no float form there, or a
    tensor is not finite, or the model is large or keeps a state, Keras runs it.

    Args:
        model: A quantized model whose quantizers let real values through.
        watches: The tensors, and their observers.
        fast: Whether to try LiteRT.
    """

    def __init__(self, model: keras.Model, watches: list[Watch], fast: bool = True) -> None:
        self.model = model
        self.watches = watches
        self.file: LiteRTModel | None = None
        self.step = 1
        self.whole = pairs_samples(model) or model.inputs[0].shape[0] is not None
        # NumPy's reductions release the GIL.
        self._pool = ThreadPoolExecutor(os.cpu_count())
        if fast and not stateful_layers(model) and not is_large(model):
            try:
                tensors = [tensor for tensor, _ in watches]
                content, names = lower_real(model, keras.tree.flatten(tensors))
                self.names = keras.tree.pack_sequence_as(tensors, names)
                self.file = LiteRTModel(content, threads=os.cpu_count() or 1)
            except Exception:
                # An op, perhaps a user's own, may raise anything.
                self.file = None

    def __call__(self, batch: list[np.ndarray]) -> list[Any]:
        """What each observer sees of a batch, an array for each input of the model."""
        if self.file is not None:
            try:
                return self._by_litert(self.file, batch)
            except (IntactError, RuntimeError, ValueError, ArithmeticError):
                self.file = None
        looks, predict = self._runner
        outputs = predict(batch if len(batch) > 1 else batch[0])
        # Keras unpacks a list of one.
        return keras.tree.pack_sequence_as(looks, keras.tree.flatten(outputs))

    def _look(self, watch: Watch, names: Any) -> Any:
        assert self.file is not None
        with np.errstate(invalid="ignore"):
            return watch[1].look(keras.tree.map_structure(self.file.view, names), numpy_ops)

    @functools.cached_property
    def _runner(self) -> tuple[list[Any], Callable[[Any], Any]]:
        own = _around_loops(self.model, [tensor for tensor, _ in self.watches])
        looks = [
            _Look(observer)(keras.tree.map_structure(lambda t: own.get(id(t), t), x))
            for x, observer in self.watches
        ]
        return looks, predictor(with_outputs(self.model, looks), one_by_one=is_large(self.model))

    def _by_litert(self, file: LiteRTModel, batch: list[np.ndarray]) -> list[Any]:
        states: list[Any] = []
        start = 0
        self.step = len(batch[0]) if self.whole else self.step
        while start < len(batch[0]):
            part = [array[start : start + self.step] for array in batch]
            file.invoke(dict(zip(file.input_names, part, strict=True)))
            seen = list(self._pool.map(self._look, self.watches, self.names))
            if not all(np.isfinite(part).all() for part in keras.tree.flatten(seen)):
                raise ArithmeticError("A tensor is not finite.")
            pairs = zip(self.watches, states or seen, seen, strict=True)
            states = [o.join(old, new, numpy_ops) if states else new for (_, o), old, new in pairs]
            start += self.step
            if start == 1 and not self.whole:
                size = sum(file.view(name).nbytes for name in {*keras.tree.flatten(self.names)})
                self.step = max(1, MEMORY // size)
        return states


def pairs_samples(model: keras.Model) -> bool:
    """Whether outputs depend on which samples are together, as products of all pairs do.

    Args:
        model: A quantized model.
    """
    return any(isinstance(getattr(layer, "layer", None), PairProducts) for layer in model.layers)


def products(
    model: keras.Model, nodes: list[Node], kernels: list[np.ndarray], inputs: list[np.ndarray]
) -> list[np.ndarray]:
    """The outputs of layers with the given kernels, without biases.

    Args:
        model: A quantized model.
        nodes: Calls of its layers that have a kernel.
        kernels: The kernel of each.
        inputs: The input of each, a batch of float32.

    Returns:
        The output of each: by LiteRT, which compiles nothing, or else by Keras.
    """
    names = [str(index) for index in range(len(nodes))]
    try:
        file = LiteRTModel(lower_products(model, nodes, kernels), os.cpu_count() or 1)
        file.invoke(dict(zip(names, inputs, strict=True)))
        return [file.view(name).copy() for name in names]
    except Exception:
        calls = zip(nodes, kernels, inputs, strict=True)
        outputs = []
        for node, kernel, x in calls:
            op: Any = get_op(node.layer.layer)
            x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
            outputs.append(to_numpy(op.products(node.layer.layer, x, kernel)))
        return outputs


def _around_loops(model: keras.Model, watched: Any) -> dict[int, keras.KerasTensor]:
    """By the id of a tensor of a loop's step, a tensor of the model with those of all steps."""
    tensors: dict[int, keras.KerasTensor] = {}
    for kernel in kernel_graph(model).kernels:
        if kernel.role is Role.LOOP:
            known = {id(t) for node in kernel.layer.nodes for t in node.outputs}
            inner = [t for t in keras.tree.flatten(watched) if id(t) in known]
            if inner:
                outputs = _AllSteps(kernel.layer, inner)(*kernel.call.args)
                tensors |= zip(map(id, inner), outputs, strict=True)
    return tensors


class _AllSteps(keras.layers.Layer):
    """A layer that runs a loop to return tensors of its steps."""

    def __init__(self, loop: QuantizedLoop, tensors: list[keras.KerasTensor]) -> None:
        super().__init__(autocast=False)
        self.loop, self.tensors = loop, tensors

    def call(self, inputs: list[Any]) -> list[Any]:
        return self.loop.watched(inputs, self.tensors)

    def compute_output_spec(self, inputs: list[Any]) -> list[Any]:
        return [keras.KerasTensor((None, *t.shape), t.dtype) for t in self.tensors]


class _Look(keras.layers.Layer):
    """A layer that lets an observer look at a batch of real values."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(autocast=False)
        self.observer = observer

    def call(self, x: Any) -> Any:
        return self.observer.look(x)
