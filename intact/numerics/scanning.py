"""Repeats a function along the time, by the loop of the backend."""

from collections.abc import Callable, Sequence
from typing import Any

from intact.numerics.backend_kernels import TENSORFLOW, TORCH
from intact.numerics.light_ops import ops

if TENSORFLOW:
    from intact.numerics import tensorflow_kernels

Body = Callable[[list[Any], list[Any]], tuple[list[Any], list[Any]]]
"""From the states and the parts of the sequences, the new states and what the step gives."""


def scan(
    body: Body, states: Sequence[Any], sequences: Sequence[Any], backwards: bool = False
) -> tuple[list[Any], list[Any]]:
    """Run a function for each step of sequences.

    Args:
        body: The function; its outputs may have any shape.
        states: What the first step gets, a list of tensors.
        sequences: Tensors of shape `(batch, steps, ...)`; a step gets `(batch, 1, ...)`.
        backwards: Whether the last step is the first to be computed.

    Returns:
        The states after the last step, and the outputs of all steps, in the order in which they
        were computed, with a new first axis.

    Example:

    >>> x = ops.convert_to_tensor([[1.0, 2.0, 3.0]])
    >>> add = lambda state, x: ([state[0] + x[0]], [state[0] + x[0]])
    >>> (total,), (sums,) = scan(add, [ops.zeros((1, 1))], [x])
    >>> float(total[0, 0]), [float(part) for part in ops.reshape(sums, (-1,))]
    (6.0, [1.0, 3.0, 6.0])
    """
    if TORCH:
        return _by_hand(body, list(states), sequences, backwards)
    if TENSORFLOW:
        return tensorflow_kernels.scan(body, list(states), list(sequences), backwards)

    def step(before: Any, now: Any) -> Any:
        new, outputs = body(list(before), [ops.expand_dims(part, 1) for part in now])
        return tuple(new), tuple(outputs)

    along = tuple(ops.swapaxes(x, 0, 1) for x in sequences)
    final, outputs = ops.scan(step, tuple(states), along, reverse=backwards)
    if backwards:
        outputs = [ops.flip(x, axis=0) for x in outputs]
    return list(final), list(outputs)


def has_no_values(x: Any) -> bool:
    """Whether a tensor is one by which Keras finds shapes on torch; operations on it are slow.

    Args:
        x: The tensor.
    """
    return TORCH and x.device.type == "meta"


def _by_hand(
    body: Body, states: list[Any], sequences: Sequence[Any], backwards: bool
) -> tuple[list[Any], list[Any]]:
    """The same step by step, as torch has no loop that is faster."""
    parts = [*zip(*(x.split(1, dim=1) for x in sequences), strict=True)]
    steps = []
    for now in parts[:: -1 if backwards else 1]:
        states, outputs = body(states, list(now))
        steps.append(outputs)
    return states, [ops.stack(column) for column in zip(*steps, strict=True)]


def joined(outputs: Any, turned: bool = False) -> Any:
    """All steps' outputs of shape `(steps, batch, 1, ...)` as `(batch, steps, ...)`.

    Args:
        outputs: An output of `scan`.
        turned: Whether to reverse their order.
    """
    outputs = ops.flip(outputs, axis=0) if turned else outputs
    return ops.swapaxes(ops.squeeze(outputs, axis=2), 0, 1)
