"""Computations that one backend needs or does faster, each behind one function."""

import contextlib
import importlib
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np

from intact.numerics.forward import needs_gradients
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops

EQUAL: Any = "only_first_replica"
"""Keras' aggregation of a variable to which all replicas assign equal values."""

TORCH = keras.backend.backend() == "torch"
TENSORFLOW = keras.backend.backend() == "tensorflow"
JAX = keras.backend.backend() == "jax"

if TORCH:
    from intact.numerics import torch_kernels
if TENSORFLOW:
    from intact.numerics import tensorflow_kernels


def exact_convolution() -> contextlib.AbstractContextManager:
    """A context in which convolutions of whole numbers are exact.

    Torch computes small batches with NNPACK's Winograd transform, whose intermediate
    values are not whole numbers; it is switched off inside.
    """
    if TORCH:
        import torch

        return torch.backends.nnpack.flags(enabled=False)
    return contextlib.nullcontext()


def wide_types() -> contextlib.AbstractContextManager:
    """A context in which ops can compute on 64 bits.

    Outside of it, JAX reduces 64 bits to 32.
    """
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax.experimental

    # Where it is depends on the version.
    home: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return home.enable_x64(True)


def either(condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> tuple[Any, ...]:
    """The result of one of two functions, at the least cost.

    Args:
        condition: A scalar truth value.
        yes: Returns tensors; called where it holds.
        no: Returns tensors of the same shapes; called where it does not.

    Returns:
        The tensors.
    """
    if JAX or (TENSORFLOW and replicas() > 1):
        # XLA fuses a choice into what is around it, but nothing across the ends of a branch.
        # TensorFlow's replicas cannot exchange tensors in one.
        return tuple(ops.where(condition, a, b) for a, b in zip(yes(), no(), strict=True))
    if TORCH and torch_kernels.is_known(condition):
        return tuple(yes() if condition else no())
    return tuple(ops.cond(condition, lambda: tuple(yes()), lambda: tuple(no())))


def shared(key: Hashable, function: Callable[..., tuple], *arguments: Any) -> tuple[Any, ...]:
    """Call a function that a graph contains only once, however often it is called.

    TensorFlow traces, optimizes and stores each op of a graph, and a quantized layer has a
    hundred scalars to compute. Other backends have nothing to gain.

    Args:
        key: Identifies the function; functions with the same key must do the same.
        function: Takes tensors and returns a tuple of tensors, scalars last. It reads no other
            tensors, and no sizes but by `ops.shape`.
        *arguments: Tensors, in any structure, or None.

    Returns:
        What the function returns. Sizes may be unknown.
    """
    if TENSORFLOW:
        return tensorflow_kernels.shared(key, function, arguments)
    return function(*arguments)


def replicas() -> int:
    """How many replicas of the model train together, each on a part of a global batch.

    Returns:
        The processes of torch's default group, or the replicas of TensorFlow's strategy. 1 where
        there is neither, and on JAX, whose distributions run one program on global arrays.
    """
    if TORCH:
        return torch_kernels.replicas()
    return tensorflow_kernels.replicas() if TENSORFLOW else 1


def place(count: Any) -> tuple[Any, Any]:
    """Where the values of this replica are among those of the global batch.

    Args:
        count: How many values this replica has: an integer, or a tensor of one.

    Returns:
        `(before, total)`: how many values the replicas before this one have, and all replicas.
    """
    if replicas() == 1:
        return 0, count
    counts = gather(ops.convert_to_tensor(count, "int32"))
    kernels = torch_kernels if TORCH else tensorflow_kernels
    before = ops.where(ops.arange(replicas()) < kernels.replica(), counts, 0)
    return ops.sum(before), ops.sum(counts)


def gather(x: Any) -> Any:
    """The tensors of all replicas; gradients flow back to each of them.

    Every replica has to call this, with a tensor of the same shape. TensorFlow cannot
    exchange tensors inside `ops.cond`.

    Args:
        x: A tensor of this replica.

    Returns:
        A tensor of shape `(replicas(), *x.shape)`, the same on each replica.
    """
    if TORCH:
        return torch_kernels.gather(x)
    return tensorflow_kernels.gather(x) if TENSORFLOW else x[None]


def rows_of_processes(read: Callable[[], Any]) -> Any:
    """What the variables of all processes that train together hold.

    Every process has to call this. JAX compares processes by itself, when a variable is assigned.

    Args:
        read: Reads the values of this process, an array.

    Returns:
        The arrays, stacked; None where one process has all replicas.
    """
    if TORCH and replicas() > 1:
        return ops.convert_to_numpy(gather(ops.convert_to_tensor(read())))
    if TENSORFLOW and tensorflow_kernels.several_workers():
        return tensorflow_kernels.rows_of_replicas(read)
    return None


def predictor(model: keras.Model, one_by_one: bool = False) -> Callable[[Any], Any]:
    """A function that computes a model's outputs for a batch once.

    On each replica of TensorFlow's strategies, `predict_on_batch` would run the whole batch, and
    chain the outputs.

    Args:
        model: Any model.
        one_by_one: Run a layer after the other. A compiled graph rounds the weights of all layers
            at once, and holds as much as the float weights again.

    Returns:
        A function of an array, or of a list of arrays for several inputs; its results are those of
        `predict_on_batch`.
    """
    if TENSORFLOW and tensorflow_kernels.has_replicas():
        return tensorflow_kernels.predictor(model)
    if one_by_one and not TORCH:
        return lambda x: keras.tree.map_structure(
            ops.convert_to_numpy,
            model(keras.tree.map_structure(ops.convert_to_tensor, x), training=False),
        )
    return model.predict_on_batch


def no_bias(scale: Any) -> Any:
    """Zeros of the shape of some scales.

    TensorFlow copies a shared graph at each call that gets constants. It does not see that these
    zeros are constant.

    Args:
        scale: The scales.

    Returns:
        The zeros.
    """
    return ops.minimum(ops.abs(scale), 0.0) if TENSORFLOW else ops.zeros_like(scale)


def with_shape(x: Any, shape: tuple[int | None, ...]) -> Any:
    """A tensor of a graph, with the known sizes that the graph lost.

    Args:
        x: A tensor.
        shape: Its shape; None where a size is open.

    Returns:
        The tensor.
    """
    if TENSORFLOW:
        x.set_shape(shape)
    return x


def inverse(x: Any) -> Any:
    """`1 / x`, rounded as IEEE 754 says.

    Args:
        x: Values.

    Returns:
        The quotient.
    """
    return over(1.0, x)


def over(numerator: float, x: Any, xp: Any = ops) -> Any:
    """`numerator / x`, rounded as IEEE 754 says.

    TensorFlow turns a division of 1 into an approximate reciprocal, off by one unit in the
    last place in a third of all cases. The (empty) bound hides that the numerator is constant.
    Torch divides a number by a tensor as the number times the reciprocal.

    Args:
        numerator: A constant.
        x: Values.
        xp: `keras.ops`, or `numpy_ops`.

    Returns:
        The quotient.
    """
    if xp is numpy_ops:
        return np.float32(numerator) / x
    if TENSORFLOW:
        return ops.minimum(ops.abs(x) + abs(numerator), numerator) / x
    if TORCH and numerator != 1:
        return ops.full_like(x, numerator) / x
    return numerator / x


def lowered(x: Any) -> Any:
    """Values that are at most those given, and that no compiler of JAX takes for a single one.

    XLA knows of a tensor whether it is one value, spread, and multiplies by the inverse of such a
    divisor. The last axis counts down, which it cannot spread.

    Args:
        x: Values.

    Returns:
        The values, less 0, 1, 2, ... along the last axis on JAX.
    """
    if JAX and x.shape:
        return x - ops.arange(x.shape[-1], dtype=x.dtype)
    return x


def sqrt(x: Any) -> Any:
    """The square root, rounded as IEEE 754 says.

    Torch's own for float32 on CPUs is off by one unit in the last place in one of six
    cases, which is enough to make a scale differ from that of the file.
    """
    if TORCH:
        return ops.cast(ops.sqrt(ops.cast(x, "float64")), "float32")
    return ops.sqrt(x)


def precisely(function: Callable[[Any], Any], x: Any) -> Any:
    """A function of float32 values, computed in float64 and rounded once.

    The functions of backends are off by one or two units in the last place, and of each in
    its own way. JAX has float64 only where asked for it.

    Args:
        function: The function. Keras' `clip`, `floor` and `maximum` would lead it to float32.
        x: Its argument.

    Returns:
        Its values, float32.
    """
    with wide_types():
        return ops.cast(function(ops.cast(x, "float64")), "float32")


def native(name: str) -> Callable:
    """A function that keeps float64 where Keras' may go on in float32.

    Args:
        name: The name of the function in `keras.ops`.

    Returns:
        The backend's own function of that name, or Keras' where it has none.

    Example:

    >>> with wide_types():
    ...     x = native("cosh")(ops.zeros((1,), "float64"))
    >>> keras.backend.standardize_dtype(x.dtype)
    'float64'
    """
    home: Any = importlib.import_module("jax.numpy" if JAX else keras.backend.backend())
    return getattr(home, name, None) or getattr(ops, name)


def multiply_add(x: Any, factor: Any, offset: Any) -> Any:
    """`x * factor + offset`, in one pass where the backend can; rounded once or twice.

    Args:
        x: Values.
        factor: Factors, which broadcast to them.
        offset: Offsets, which broadcast to them.
    """
    if TORCH:
        return torch_kernels.multiply_add(x, factor, offset)
    return x * factor + offset


def holds(x: Any) -> bool:
    """Whether truth values are known to be all true, so that a graph needs no branch.

    Args:
        x: A truth value, or several.

    Returns:
        False where a graph or another device will compute them.
    """
    if not ops.is_tensor(x):
        return bool(np.all(x))
    return TORCH and torch_kernels.on_host(x) and (x is torch_kernels.TRUE or bool(x.all()))


def straight_through(exact: Any, smooth: Any) -> Any:
    """The value of `exact` with the gradient of `smooth`.

    Args:
        exact: Values.
        smooth: Values of the same shape.
    """
    if not TORCH:
        return _through(exact, smooth)
    exact = exact if ops.is_tensor(exact) else ops.convert_to_tensor(exact)
    return torch_kernels.straight_through(exact, smooth)


@ops.custom_gradient
def _through(exact: Any, smooth: Any) -> Any:
    def grad(*args: Any, upstream: Any | None = None) -> tuple[Any, Any]:
        g = args[0] if upstream is None else upstream
        return ops.zeros_like(g), g

    return exact, grad


def unfused(x: Any) -> Any:
    """A product rounded to float32, even if a compiler would fuse it with the next operation.

    A fused multiply-add rounds once where kernels round twice, and TensorFlow moves a
    constant factor from one product to the next; the (empty) clamp between keeps them apart.
    Torch without a compiler needs none.

    Args:
        x: The product.
    """
    return x if TORCH and torch_kernels.on_host(x) else ops.clip(x, -3e38, 3e38)


def extremes(x: Any, xp: Any = ops) -> tuple[Any, Any]:
    """The smallest and the largest value of a tensor, without a gradient.

    Args:
        x: Values.
        xp: `keras.ops`, or `numpy_ops`.
    """
    if not (TORCH and ops.is_tensor(x)):
        return xp.min(x), xp.max(x)
    low, high = torch_kernels.extremes(x)
    return (low, high) if xp is not numpy_ops else (np.float32(low.item()), np.float32(high.item()))


@ops.custom_gradient
def _round_clip(x: Any, factor: Any, low: Any, high: Any, first: Any, last: Any) -> Any:
    y = x * factor

    def grad(*args: Any, upstream: Any | None = None) -> tuple[Any, ...]:
        g = args[0] if upstream is None else upstream
        inside = ops.logical_and(y > first, y < last)
        # XLA computes the choice again for each reader of a product of it, so it comes last.
        of_x, of_factor = (ops.where(inside, g * other, 0.0) for other in (factor, x))
        others = (ops.zeros_like(scalar) for scalar in (low, high, first, last))
        return of_x, ops.sum(of_factor), *others

    return ops.clip(ops.round(y), low, high), grad


def round_clip(
    x: Any, low: Any, high: Any, factor: Any = 1.0, passes: tuple[Any, Any] | None = None
) -> Any:
    """Scale, round half to even and saturate; the gradient passes inside the bounds.

    Args:
        x: Values.
        low: Smallest result, scalar.
        high: Largest result, scalar.
        factor: What the values are multiplied by, a positive scalar.
        passes: Other bounds inside which the gradient passes.

    Returns:
        Whole numbers between `low` and `high`.
    """
    if not (JAX or needs_gradients()):
        kernels = torch_kernels if TORCH else tensorflow_kernels
        return kernels.rounded(ops.convert_to_tensor(x, "float32"), factor, low, high)
    scalars = (factor, low, high, *(passes or (low, high)))
    if TORCH and not any(map(ops.is_tensor, scalars)):
        x = x.float() if ops.is_tensor(x) else ops.convert_to_tensor(x, "float32")
        return torch_kernels.round_clip(x, *map(float, scalars))
    tensors = [ops.convert_to_tensor(v, "float32") for v in (x, *scalars)]
    if TORCH:
        return torch_kernels.round_clip(*tensors)
    if TENSORFLOW:
        return tensorflow_kernels.round_clip(*tensors)
    return _round_clip(*tensors)
