"""What replicas that train together have to agree on: the statistics of the global batch."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from intact.errors import IntactError
from intact.numerics.backend_kernels import TORCH, gather, replicas, rows_of_processes
from intact.numerics.light_ops import ops
from intact.quantizers.observers import Observer


def of_all_replicas(observer: Observer, state: Any, xp: Any = ops) -> Any:
    """The state of the global batch, of which each replica saw a part.

    All parts of the state travel in one exchange.

    Args:
        observer: Whose `look` returned the state.
        state: A named tuple of float tensors, of this replica's part.
        xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`: what computes with the state.

    Returns:
        The joined state, the same on each replica.
    """
    if replicas() == 1:
        return type(state)(*map(xp.convert_to_tensor, state))
    tensors = [xp.cast(xp.convert_to_tensor(part), "float32") for part in state]
    ends = np.cumsum([math.prod(tensor.shape) for tensor in tensors]).tolist()
    row = xp.concatenate([xp.reshape(tensor, (-1,)) for tensor in tensors])
    rows = xp.convert_to_tensor(gather(ops.convert_to_tensor(row)))
    columns = [
        xp.reshape(rows[:, first:last], (replicas(), *tensor.shape))
        for first, last, tensor in zip([0, *ends], ends, tensors, strict=False)
    ]
    states = [type(state)(*(column[n] for column in columns)) for n in range(replicas())]
    return functools.reduce(lambda a, b: observer.join(a, b, xp), states)


def check_agreement(name: str, read: Callable[[], np.ndarray]) -> None:
    """Refuse processes that begin to train with different ranges.

    Args:
        name: The layer's name.
        read: Reads the range that this process begins with, `(minimum, maximum, count)`.

    Raises:
        IntactError: The range of another process differs.
    """
    rows = rows_of_processes(read)
    if rows is not None and (rows != rows[0]).any():
        remedy = (
            "Load the same file in each, or wrap the model in "
            "`torch.nn.parallel.DistributedDataParallel` before the first step, which sends the "
            "weights and ranges of process 0 to all."
            if TORCH
            else "Load the same file in each, or calibrate by the same data."
        )
        raise IntactError(
            f"The processes that train together have different ranges for {name!r}: (minimum, "
            f"maximum) is {[tuple(row[:2].tolist()) for row in rows]}. {remedy}"
        )
