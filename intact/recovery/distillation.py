"""Distillation: a quantized model learns from its float model."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.calibration.sources import Data, Source
from intact.errors import IntactError
from intact.graph.canonicalize import canonicalize
from intact.graph.view import with_outputs
from intact.layers.alignment import as_real
from intact.layers.kernel_graph import KernelGraph, Role, kernel_graph
from intact.layers.quantized_model import is_quantized

LOSSES = ("kl", "mse")


def distill(
    model: keras.Model,
    teacher: keras.Model,
    data: Data,
    epochs: int = 1,
    steps: int | None = None,
    batch_size: int = 32,
    optimizer: Any = None,
    loss: str | None = None,
    temperature: float = 1.0,
    features: Iterable[str] = (),
    freeze_norms: bool = True,
    callbacks: Any = None,
    seed: int = 0,
    verbose: int | str = "auto",
) -> keras.callbacks.History:
    """Train a quantized model towards the outputs of its float model; no labels are needed.

    Where an output is a softmax, the loss is the Kullback-Leibler divergence of the shares
    at a temperature, times its square (Hinton et al., arXiv:1503.02531, section 2); the
    student's logits are those before its softmax. Other outputs take the mean square of the
    difference. Losses of several outputs and features are added.

    Args:
        model: What `quantize_model` returned.
        teacher: The float model, of the same outputs; it stays as it is.
        data: As for `calibrate`. Arrays are shuffled in each epoch; other data keeps its order, and
            a `PyDataset` is read again in each epoch, so that it may augment.
        epochs: How often to go through the data.
        steps: How many batches to take at most in each epoch.
        batch_size: Samples per batch, for arrays.
        optimizer: A Keras optimizer; None is Adam with a rate that falls from 2e-5 to 0 as a
            cosine.
        loss: "kl" for models that end in logits, "mse", or None: as said above.
        temperature: What logits are divided by before their softmax, for "kl".
        features: Names of layers whose outputs are to be as the teacher's, too: the mean
            square of the difference over that of the teacher's.
        freeze_norms: Batch norms keep their statistics and weights: few images say less about
            these than what is stored.
        callbacks: As in `fit`.
        seed: Of the order of samples.
        verbose: As in `fit`: 0 shows nothing.

    Returns:
        What `fit` returns: the loss of each epoch, in `history`.

    Raises:
        IntactError: The teacher is quantized or has other outputs, or there is no such layer.
        InvalidDataError: The data is empty, not finite, or wrongly shaped.

    Example:

    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
    >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    >>> q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    >>> history = distill(q, teacher=model, data=x, epochs=2, verbose=0)
    >>> len(history.history["loss"])
    2
    """
    if loss is not None and loss not in LOSSES:
        raise IntactError(f"Expected loss None or one of {LOSSES}. Received: {loss!r}.")
    if not is_quantized(model) or is_quantized(teacher):
        raise IntactError(
            "Expected a quantized model and the float model that teaches it. Received: "
            f"model {model.name!r} and teacher {teacher.name!r}, of which the first is float or "
            "the second quantized."
        )
    source = Source(data, steps, batch_size, model.inputs, np.random.default_rng(seed))
    count = source.total(1)
    if not count:
        # The length of an epoch must be known beforehand, so a generator's batches are kept.
        count = sum(1 for _ in source)
    joint = _joint(model, canonicalize(teacher), loss, temperature, tuple(features))
    if optimizer is None:
        decay = keras.optimizers.schedules.CosineDecay(2e-5, epochs * count)
        optimizer = keras.optimizers.Adam(decay)
    norms = [layer for layer in map(_norm_of, model.layers) if freeze_norms and layer]
    trained = [layer.trainable for layer in norms]
    try:
        for layer in norms:
            layer.trainable = False
        joint.compile(optimizer, loss=lambda _, distance: distance)
        return joint.fit(
            _forever(source),
            steps_per_epoch=count,
            epochs=epochs,
            shuffle=False,
            callbacks=callbacks,
            verbose=verbose,
        )
    finally:
        for layer, was in zip(norms, trained, strict=True):
            layer.trainable = was


def _forever(source: Source) -> Iterator[tuple[Any, np.ndarray]]:
    while True:
        for batch in source:
            inputs = tuple(batch) if len(batch) > 1 else batch[0]
            yield inputs, np.zeros((len(batch[0]), 1))


def _norm_of(layer: Any) -> Any:
    """The layer that freezes a layer's batch norm when it is frozen; None if there is no norm."""
    is_norm = isinstance(getattr(layer, "layer", None), layers.BatchNormalization)
    return layer if is_norm else getattr(layer, "norm", None)


def _joint(
    model: keras.Model,
    teacher: keras.Model,
    loss: str | None,
    temperature: float,
    features: tuple[str, ...],
) -> keras.Model:
    """A model that returns the distance of student and teacher for each sample."""
    student, expert = kernel_graph(model), kernel_graph(teacher)
    ours, theirs = [], []
    kinds: list[str] = []
    if [t.shape for t in model.outputs] != [t.shape for t in teacher.outputs]:
        raise IntactError(
            f"Expected a teacher with outputs of shapes {[t.shape for t in model.outputs]}. "
            f"Received: {[t.shape for t in teacher.outputs]} of {teacher.name!r}."
        )
    for mine, its in zip(model.outputs, teacher.outputs, strict=True):
        source = expert.graph.producer(its)
        ends = isinstance(source.layer, layers.Softmax) and loss != "mse"
        ours.append(as_real(student.source(mine).call.args[0]) if ends else mine)
        theirs.append(source.inputs[0] if ends else its)
        kinds.append("kl" if ends else loss or "mse")
    for name in features:
        ours.append(_feature(model, student, name))
        theirs.append(_feature(teacher, expert, name))
        kinds.append("feature")
    frozen = with_outputs(teacher, theirs)
    frozen.trainable = False
    inputs = list(model.inputs)
    known = frozen(inputs if len(inputs) > 1 else inputs[0], training=False)
    known = known if isinstance(known, list) else [known]
    return StudentAndTeacher(model.inputs, _Distance(kinds, temperature)([*ours, *known]))


class StudentAndTeacher(keras.Model):
    """A student and its teacher, of which the student trains."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the last step, on PyTorch.

        Keras' own finds weights by their paths. The teacher's have the same paths as the student's,
        so it would miss those of the student, and gradients would add up from step to step.
        """
        for variable in self.trainable_variables:
            variable.value.grad = None


def _feature(model: keras.Model, kernels: KernelGraph, name: str) -> keras.KerasTensor:
    """The output of a layer as real values."""
    inside = False
    for kernel in kernels.kernels:
        if kernel.name == name and kernel.role in (Role.INTEGER, Role.FLOAT):
            return as_real(kernel.outputs)
        for node in kernel.calls:
            inside |= node.layer.name == name
            if node.layer.name == name and kernel.role is Role.FLOAT:
                return node.outputs[0]
    if inside:
        raise IntactError(
            f"The output of layer {name!r} is not rounded before the activation or batch norm "
            "behind it. Name that layer instead."
        )
    raise IntactError(
        f"Model {model.name!r} has no layer {name!r}. `print(intact.explain(model))` shows "
        "the names."
    )


class _Distance(layers.Layer):
    """The distance, per sample, of the first half of some tensors from the second half."""

    def __init__(self, kinds: list[str], temperature: float) -> None:
        super().__init__(dtype="float32")
        self.kinds = kinds
        self.temperature = temperature

    def call(self, tensors: Any) -> Any:
        count = len(self.kinds)
        triples = zip(self.kinds, tensors[:count], tensors[count:], strict=True)
        return sum(self._one(*triple) for triple in triples)

    def _one(self, kind: str, ours: Any, theirs: Any) -> Any:
        if kind == "kl":
            ours, theirs = (ops.log_softmax(t / self.temperature) for t in (ours, theirs))
            gap = ops.sum(ops.exp(theirs) * (theirs - ours), axis=-1) * self.temperature**2
        else:
            gap = ops.square(ours - theirs)
            if kind == "feature":
                gap = gap / ops.maximum(ops.mean(ops.square(theirs)), 1e-12)
        return ops.mean(ops.reshape(gap, (ops.shape(gap)[0], -1)), axis=-1, keepdims=True)

    def compute_output_shape(self, shapes: Any) -> tuple[None, int]:
        return (None, 1)
