"""The outputs of a quantized model without rounding, and those of its float model."""

import os
import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.calibration.biases import State, take_back_corrections, without_corrections
from intact.calibration.walk import cut, in_float, run
from intact.errors import IntactError
from intact.graph.view import Node, structure, view
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.kernel_graph import KernelGraph
from intact.layers.quantized import Quantized
from intact.layers.stateful import StatefulQuantize, reset_states, stateful_layers
from intact.litert.runtime import LiteRTModel
from intact.lowering.real import lower_real
from intact.memory import is_large
from intact.numerics.forward import infer, no_gradients
from intact.numerics.tensors import to_numpy


class FloatForm:
    """A quantized model without any rounding: real activations, and the weights as they are.

    Biases are those before bias correction. A float LiteRT file computes this, because it needs
    no compilation. Where an op has no float form there, or the model is large or keeps a state,
    Keras makes its calls one by one.

    Args:
        model: A quantized model.
        tensors: The tensors of its graph to return; for a `QTensor`, its values.

    Example:

    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model)
    >>> x = np.ones((3, 4), "float32")
    >>> (y,) = FloatForm(q, q.outputs)([x])
    >>> bool(np.allclose(y, model.predict(x, verbose=0), atol=1e-5))
    True
    """

    def __init__(self, model: keras.Model, tensors: list[keras.KerasTensor]) -> None:
        self.model = model
        self.tensors = tensors
        self._file: LiteRTModel | None = None
        folded = any(isinstance(layer, Quantized) and layer.norm for layer in model.layers)
        self._in_keras = not folded
        if stateful_layers(model) or (is_large(model) and self._in_keras):
            # A float file has no cell states.
            return
        try:
            with without_corrections(model):
                content, self._names = lower_real(model, tensors, exact=True)
            self._file = LiteRTModel(content, os.cpu_count() or 1)
        except Exception:
            # Whatever an op, perhaps a user's own, has against it.
            self._file = None

    def __call__(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Real values of the tensors; the states of a stateful model start from zero.

        Args:
            batch: Samples, an array for each input.

        Raises:
            IntactError: There is no float form of the model.
        """
        if self._file is not None:
            try:
                size = self.model.inputs[0].shape[0] or len(batch[0])
                values = self._file.predict(batch, batch_size=size)
                return [values[n] if isinstance(values, dict) else values for n in self._names]
            except (IntactError, RuntimeError, ValueError):
                self._file = None
        return self._by_keras(batch)

    def attempt(self, batch: list[np.ndarray]) -> list[np.ndarray] | None:
        """The same; None if there is no float form, as for a frozen model.

        Args:
            batch: Samples, an array for each input.
        """
        try:
            return self(batch)
        except Exception:
            # Whatever an op, perhaps a user's own, has against it.
            return None

    def _by_keras(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        if not self._in_keras:
            raise IntactError("weights with a batch norm folded in have no float form in Keras")
        batches = _batches(self.model, batch)
        before = State(self.model, weights=False)
        try:
            take_back_corrections(self.model)
            reset_states(self.model)
            parts = run(self.model, batches, _call, self._operands())
        finally:
            before.restore()
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _operands(self) -> list[Any]:
        """For each tensor, the `QTensor` that it belongs to, or the tensor itself."""
        graph = view(self.model)
        nodes = [graph.producer(tensor) for tensor in self.tensors]
        return [
            node.outputs if isinstance(node.layer, FakeQuantize) else tensor
            for node, tensor in zip(nodes, self.tensors, strict=True)
        ]


class FloatForms:
    """The float forms of a model, which do not depend on its ranges.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._known: dict[tuple[int, ...], FloatForm] = {}

    def of(self, tensors: list[keras.KerasTensor]) -> FloatForm:
        """The float form that returns some tensors.

        Args:
            tensors: Tensors of the model's graph.
        """
        key = tuple(map(id, tensors))
        if key in self._known:
            return self._known[key]
        form = FloatForm(self.model, tensors)
        if not is_large(self.model):
            # The file of a large model is released as soon as it has run.
            self._known[key] = form
        return form


def _call(kernels: KernelGraph, node: Node, args: tuple[Any, ...]) -> Any:
    """Make a call without any rounding; a state goes on to the next batch."""
    layer = node.layer
    if not isinstance(layer, StatefulQuantize):
        return in_float(kernels, node, args)
    layer.observe(True)
    try:
        return layer(*args, **node.kwargs)
    finally:
        layer.observe(False)


def remember_float_model(model: keras.Model, float_model: keras.Model) -> None:
    """Let a quantized model refer to its float model, as long as that is in memory.

    The reference is weak and is not saved.

    Args:
        model: The quantized model.
        float_model: The float model.
    """
    model._float_model = weakref.ref(float_model)


def float_outputs(model: keras.Model, batch: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a quantized model's float model.

    Args:
        model: The quantized model.
        batch: Samples, an array for each input.

    Returns:
        An array for each output; none where the float model is not in memory any more, or
        would move a state, or where Keras cannot run it on this backend.
    """
    reference = getattr(model, "_float_model", None)
    float_model = None if reference is None else reference()
    if float_model is None or stateful_layers(model):
        return []
    parts = []
    try:
        with no_gradients():
            for arrays in _batches(model, batch):
                tensors = [ops.convert_to_tensor(array) for array in arrays]
                inputs = keras.tree.pack_sequence_as(structure(model)[0], tensors)
                outputs = infer(float_model, inputs)
                parts.append([_to_numpy(output) for output in keras.tree.flatten(outputs)])
    except Exception:
        # PyTorch, for example, has no negative steps.
        return []
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _batches(model: keras.Model, batch: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Samples as a model takes them: all at once, if it is not built for a known batch."""
    arrays = [np.asarray(a, t.dtype) for a, t in zip(batch, model.inputs, strict=True)]
    return cut(arrays, model.inputs[0].shape[0] or len(batch[0]))


def _to_numpy(tensor: Any) -> np.ndarray:
    """The values of a tensor; real ones as float32, because NumPy has no bfloat16."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return to_numpy(ops.cast(tensor, "float32") if "float" in dtype else tensor)
