"""Kernels for TensorFlow, which runs op by op on CPUs."""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from intact.numerics.forward import needs_gradients

_shared: dict[Hashable, Any] = {}


def on_cpu() -> bool:
    """Whether there is no other device; of a GPU, `batch_norm` would get other statistics."""
    return not tf.config.list_logical_devices("GPU")


def replicas() -> int:
    """How many replicas of a strategy run this together; 1 outside of a strategy's `run`."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica() -> Any:
    """The number of this replica in the strategy."""
    return tf.distribute.get_replica_context().replica_id_in_sync_group if replicas() > 1 else 0


def gather(x: Any) -> Any:
    """The tensors of all replicas of the strategy, stacked; gradients flow back.

    Args:
        x: A tensor.
    """
    rows = tf.distribute.get_replica_context().all_gather(x[None], axis=0)
    return tf.ensure_shape(rows, (replicas(), *x.shape))


def several_workers() -> bool:
    """Whether replicas of other workers, with variables of their own, train together with this."""
    if replicas() == 1:
        # The strategy may be the default one, which has no list of devices.
        return False
    return replicas() > len(tf.distribute.get_strategy().extended.worker_devices)


def rows_of_replicas(read: Callable[[], np.ndarray]) -> np.ndarray:
    """What the variables of all replicas hold, exchanged at once and not by the graph.

    Args:
        read: Reads the values of this worker, outside of its replicas.

    Returns:
        The values, stacked.
    """

    def rows(strategy: Any) -> np.ndarray:
        with tf.init_scope():
            values = tf.constant(read()[None])
            parts = strategy.experimental_distribute_values_from_function(lambda _: values)
            return strategy.gather(parts, axis=0).numpy()

    return tf.distribute.get_replica_context().merge_call(rows)


def has_replicas() -> bool:
    """Whether this is the scope of a strategy with several replicas."""
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def predictor(model: keras.Model) -> Callable[[Any], Any]:
    """A function that computes a model's outputs by one graph, outside of the replicas.

    Args:
        model: Any model.
    """
    graph = tf.function(lambda x: model(x, training=False), autograph=False)
    return lambda x: keras.tree.map_structure(lambda y: y.numpy(), graph(x))


def shared(key: Hashable, function: Callable[..., tuple], arguments: tuple) -> tuple[Any, ...]:
    """Calls a function by one subgraph for all tensors of the same ranks.

    Args:
        key: As for `intact.numerics.backend_kernels.shared`.
        function: As for `intact.numerics.backend_kernels.shared`.
        arguments: As for `intact.numerics.backend_kernels.shared`.

    Returns:
        What the function returns.
    """
    if tf.executing_eagerly():
        return function(*arguments)
    leaves = keras.tree.flatten(arguments)
    tensors = [tf.convert_to_tensor(leaf) for leaf in leaves if not _is_constant(leaf)]
    specs = tuple(tf.TensorSpec([None] * len(t.shape), t.dtype) for t in tensors)
    constants = tuple(leaf if _is_constant(leaf) else "tensor" for leaf in leaves)
    key = (key, constants, specs, needs_gradients())
    if key not in _shared:
        skeleton = keras.tree.map_structure(lambda x: x if _is_constant(x) else "tensor", arguments)
        _shared[key] = _graph(function, skeleton, specs)
    with _unoptimized():
        *results, scalars = _shared[key](*tensors)
    _answer_for_references(next(x for x in (*results, scalars) if x is not None).op)
    return (*results, *([] if scalars is None else tf.unstack(scalars)))


def _answer_for_references(call: tf.Operation) -> None:
    """Keeps TensorFlow from building the called graph twice more for each call.

    A pass before the first run looks in each called graph for reference variables, in both
    directions. An attribute that names a graph with one ends that search. Only automatic
    clustering by XLA reads what it found.

    Args:
        call: The operation that calls a graph.
    """
    graph = _reference_variable()
    graph.add_to_graph(call.graph)
    name = tf.compat.v1.NameAttrList(name=graph.name)
    call._set_attr("_references", tf.compat.v1.AttrValue(func=name))


@functools.cache
def _reference_variable() -> Any:
    """A graph with a reference variable, which is never run."""

    def body() -> tf.Tensor:
        return tf.raw_ops.TemporaryVariable(shape=(), dtype=tf.float32, var_name="reference")

    return tf.function(body, autograph=False).get_concrete_function()


@contextlib.contextmanager
def _unoptimized() -> Iterator[None]:
    """A context in which traced calls of graphs are not optimized by TensorFlow.

    Optimizing a graph of a hundred small ops takes longer than it ever saves.
    """
    name = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(name, False)
    tf.config.optimizer.set_experimental_options({name: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({name: before})


def _is_constant(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, bool | int | float)


def _graph(function: Callable[..., tuple], skeleton: Any, specs: tuple) -> Any:
    """A function as a graph that is not inlined, and so processed only once.

    It returns its scalars, which come last, as one tensor. Of an output that is not used,
    TensorFlow would make another graph at each call.
    """

    def flat(*tensors: Any) -> tuple:
        rest = iter(tensors)
        results = function(
            *keras.tree.map_structure(lambda x: next(rest) if x == "tensor" else x, skeleton)
        )
        scalars = [x for x in results if x.shape.rank == 0]
        others = results[: len(results) - len(scalars)]
        return (*others, tf.stack(scalars) if scalars else None)

    inner = _not_inlined(flat, specs)
    # Several passes copy the called graph at each call, so this one contains only a call.
    return _not_inlined(lambda *tensors: inner(*tensors), specs)


def _not_inlined(function: Callable[..., tuple], specs: tuple) -> Any:
    attributes = {"_noinline": True}
    graph = tf.function(function, autograph=False, experimental_attributes=attributes)
    with _unoptimized():
        return graph.get_concrete_function(*specs)


def rounded(x: Any, factor: Any, low: Any, high: Any) -> Any:
    """Scales, rounds half to even and saturates, without a gradient of its own.

    Args:
        x: Values.
        factor: What they are multiplied by, scalar.
        low: Smallest value, scalar.
        high: Largest value, scalar.
    """
    y = tf.round(x if isinstance(factor, float) and factor == 1 else x * factor)
    return tf.raw_ops.ClipByValue(t=y, clip_value_min=low, clip_value_max=high)


@tf.custom_gradient
def round_clip(x: Any, factor: Any, low: Any, high: Any, first: Any, last: Any) -> Any:
    """Scales, rounds half to even and saturates; the gradient passes inside the bounds.

    Args:
        x: Values.
        factor: What they are multiplied by, scalar.
        low: Smallest value, scalar.
        high: Largest value, scalar.
        first: Where the gradient begins to pass, scalar.
        last: Where it ends to, scalar.

    Returns:
        Whole numbers.
    """

    def grad(g: Any) -> tuple[Any, ...]:
        # A select is as slow as ten other ops; this is a single op, with bounds of 0 and 6.
        part = 6.0 / tf.maximum(last - first, 1e-30)
        six = x * (factor * part) - first * part
        inside = tf.raw_ops.Relu6Grad(gradients=g, features=six)
        return inside * factor, tf.reduce_sum(inside * x), *4 * [None]

    return rounded(x, factor, low, high), grad


@tf.custom_gradient
def batch_norm(x: Any, gamma: Any, beta: Any, epsilon: Any) -> Any:
    """Normalizes over all axes but the last, by one kernel for the statistics and one back.

    Args:
        x: Values, float32.
        gamma: Factor of each channel.
        beta: Offset of each channel.
        epsilon: What is added to the variance of each channel.

    Returns:
        `(y, mean, variance)`; there is no gradient through the last two.
    """
    channels = x.shape[-1]
    image = x if len(x.shape) == 4 else tf.reshape(x, (-1, 1, 1, channels))
    ones, none = tf.ones((channels,)), tf.zeros((0,))
    seen = tf.raw_ops.FusedBatchNormV3(
        x=image, scale=ones, offset=ones, mean=none, variance=none, is_training=True
    )
    mean, variance = seen.reserve_space_1, seen.reserve_space_2
    spread = variance + epsilon
    factor = gamma * tf.math.rsqrt(spread)

    def grad(g: Any, *_: Any) -> tuple[Any, Any, Any, Any]:
        # The kernel has one epsilon for all channels.
        back = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=tf.reshape(g, tf.shape(image)),
            x=image,
            scale=gamma,
            reserve_space_1=mean,
            reserve_space_2=spread,
            reserve_space_3=seen.reserve_space_3,
            epsilon=0.0,
            is_training=True,
        )
        of_gamma = back.scale_backprop
        of_epsilon = of_gamma * gamma / spread * -0.5
        of_x = tf.reshape(back.x_backprop, tf.shape(x))
        return of_x, of_gamma, back.offset_backprop, of_epsilon

    return (x * factor + (beta - mean * factor), mean, variance), grad


def scan(body: Any, states: list[Any], sequences: list[Any], backwards: bool) -> tuple[Any, Any]:
    """As `intact.numerics.scanning.scan`; Keras' own wants outputs in the form of the states.

    The first step stands before the loop: its outputs tell what is collected.

    Args:
        body: The function.
        states: What the first step gets.
        sequences: Tensors of shape `(batch, steps, ...)`.
        backwards: Whether the last step is the first to be computed.
    """
    count = tf.shape(sequences[0])[1]
    parts = [
        tf.TensorArray(x.dtype, count, element_shape=(x.shape[0], *x.shape[2:])).unstack(
            tf.transpose(x, (1, 0, *range(2, len(x.shape))))
        )
        for x in sequences
    ]

    def step(place: Any, before: list[Any]) -> tuple[list[Any], list[Any]]:
        at = count - 1 - place if backwards else place
        new, outputs = body(list(before), [tf.expand_dims(part.read(at), 1) for part in parts])
        # A loop wants shapes that stay the same.
        pairs = zip(new, before, strict=True)
        return [tf.ensure_shape(after, x.shape) for after, x in pairs], outputs

    states = [tf.convert_to_tensor(x) for x in states]
    states, outputs = step(0, states)
    arrays = [tf.TensorArray(x.dtype, count, element_shape=x.shape).write(0, x) for x in outputs]

    def following(place: Any, states: Any, arrays: Any) -> Any:
        states, outputs = step(place, states)
        pairs = zip(arrays, outputs, strict=True)
        return place + 1, states, [array.write(place, x) for array, x in pairs]

    variables = tf.constant(1), states, arrays
    _, states, arrays = tf.while_loop(lambda place, *_: place < count, following, variables)
    return states, [array.stack() for array in arrays]
