"""Keeps reshapes and permutations from piling up while a model is traced.

Layers of one or three spatial axes, or with their channels first, are traced into 2D
layers with a move of the values before and behind. Here, consecutive moves become one or none, and
ops that work wherever values stand are applied before a move rather than after it.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from intact.graph.view import Node, made_by
from intact.numerics.tensors import Tensor, is_whole
from intact.ops.function_layer import FunctionLayer
from intact.ops.pixel_blocks import DepthToSpace, SpaceToDepth
from intact.ops.registry import find_op, known_class, known_config, share_code

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer

Shape = tuple[Any, ...]


class Moved(FunctionLayer):
    """Base of the layers that move values of any type: indices and truth values as well."""

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        return keras.KerasTensor(self.compute_output_shape(x.shape), self.output_dtype or x.dtype)


@keras.saving.register_keras_serializable("intact")
class BatchReshape(Moved):
    """A new shape for the values of the whole batch, whose size absorbs the rest.

    Args:
        target_shape: The shape without the batch.

    Example:

    >>> BatchReshape((4,))(np.zeros((2, 3, 4))).shape[0]
    6
    """

    target_shape: tuple[int, ...]

    def call(self, x: Tensor) -> Tensor:
        """The same values in the new shape."""
        return ops.reshape(x, (-1, *self.target_shape))

    def compute_output_shape(self, shape: Shape) -> Shape:
        batch = None if None in shape else math.prod(shape) // math.prod(self.target_shape)
        return (batch, *self.target_shape)


Size = tuple[int, int | None, int]
"""A size as `factor * source / divisor`: the source is an axis, or None where it is 1."""


@keras.saving.register_keras_serializable("intact")
class SizedReshape(Moved):
    """A new shape of unknown sizes, which are multiples or parts of those of the input.

    Args:
        target: The size of each axis but the batch, which takes what is over.

    Example:

    >>> layer = SizedReshape([(2, 1, 1), (1, 2, 2)])
    >>> layer(np.zeros((1, 3, 4))).shape[1:] == (6, 2)
    True
    """

    target: tuple[Size, ...]

    def call(self, x: Tensor) -> Tensor:
        """The same values in the new shape."""
        sizes = ops.shape(x)
        return ops.reshape(x, (-1, *(size_of(entry, sizes) for entry in self.target)))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (None, *(size_of(entry, shape) for entry in self.target))


def size_of(entry: Size, shape: Any) -> Any:
    """A size of a new shape, by the old one; None if it is unknown."""
    factor, source, divisor = entry
    if source is None:
        return factor
    size = shape[source]
    return None if size is None else size * factor // divisor


RESHAPES = (layers.Reshape, layers.Flatten, BatchReshape)
MOVES = (*RESHAPES, layers.Permute)


def reshape(x: keras.KerasTensor, shape: Shape, name: str, tracer: "Tracer") -> Any:
    """A tensor in another shape.

    Args:
        x: A tensor of the new graph.
        shape: The new shape without the batch; the batch absorbs the rest. One size
            may be unknown if the batch stays as it is. Several are those of the tensor, in order.
        name: The name of the layer, if one is needed.
        tracer: Makes the new graph.

    Returns:
        The tensor.
    """
    sizes = (*x.shape[1:], *shape)
    if shape.count(None) > 1:
        unknown = (axis for axis, size in enumerate(x.shape) if axis and size is None)
        target = [(n, None, 1) if n is not None else (1, next(unknown), 1) for n in shape]
        return tracer.emit(SizedReshape(target, name=name), x)
    if None in sizes or math.prod(x.shape[1:]) == math.prod(shape):
        known = tuple(-1 if size is None else size for size in shape)
        return tracer.emit_new(layers.Reshape(known, name=name), x)
    return tracer.emit(BatchReshape(shape, name=name), x)


def permute(x: keras.KerasTensor, dims: tuple[int, ...], name: str, tracer: "Tracer") -> Any:
    """A tensor with its axes in another order, as `keras.layers.Permute` counts them."""
    return tracer.emit_new(layers.Permute(dims, name=name), x)


def channel_last(x: keras.KerasTensor, axis: int, name: str, tracer: "Tracer") -> Any:
    """A tensor with one axis moved to the end.

    Args:
        x: A tensor of the new graph.
        axis: The axis; 1 is the first behind the batch.
        name: The name of the layer, if one is needed.
        tracer: Makes the new graph.

    Returns:
        The tensor, and a function that moves the axis of another such tensor back.
    """
    rank = len(x.shape)
    dims = (*(a for a in range(1, rank) if a != axis), axis)
    back = tuple(int(place) + 1 for place in np.argsort(dims))
    moved = permute(x, dims, f"{name}_channels_last", tracer)
    return moved, lambda y: permute(y, back, f"{name}_channels_back", tracer)


def emit_moved(tracer: "Tracer", layer: Any, inputs: Any, overrides: dict[str, Any]) -> Any:
    """Emit a layer without needless moves; `Tracer.emit` tries this first.

    Args:
        tracer: Makes the new graph.
        layer: The layer to emit.
        inputs: Its inputs.
        overrides: Changes to its config.

    Returns:
        The output tensor, or None if nothing would be gained.
    """
    if isinstance(layer, (*RESHAPES, SizedReshape)):
        blocks = _as_blocks(layer, inputs, tracer)
        if blocks is not None or isinstance(layer, SizedReshape):
            return blocks
        return _merge_reshapes(layer, inputs, tracer)
    if isinstance(layer, layers.Permute):
        return _merge_permutations(layer, inputs, tracer)
    # A repeated layer has the same form every time.
    return None if tracer.in_step else _emit_before(tracer, layer, inputs, overrides)


def _merge_reshapes(layer: Any, x: Any, tracer: "Tracer") -> Any:
    shape = layer.compute_output_shape(x.shape)
    if shape.count(None) > 2:
        return None
    if shape[1:] == x.shape[1:]:
        return x
    before = made_by(x)
    if isinstance(before.layer, RESHAPES):
        (source,) = before.inputs
        # Tensors of equal shape and size have equally many samples.
        return source if source.shape == shape else reshape(source, shape[1:], layer.name, tracer)
    if isinstance(layer, layers.Flatten):
        return reshape(x, shape[1:], layer.name, tracer)
    return None


def _as_blocks(layer: Any, x: Any, tracer: "Tracer") -> Any:
    """A reshape of axes that were split and swapped, as blocks of pixels; None if it is not one.

    Pixels from channels swap the axes of `(h, w, s, s, c)`, and channels from pixels those of
    `(h, s, w, s, c)`. One kernel does it.
    """
    swap = made_by(x)
    if not isinstance(swap.layer, layers.Permute) or tuple(swap.layer.dims) != (1, 3, 2, 4, 5):
        return None
    split = made_by(swap.inputs[0])
    if not isinstance(split.layer, (*RESHAPES, SizedReshape)) or is_whole(x):
        return None
    (source,), sizes = split.inputs, split.outputs[0].shape[1:]
    wanted = layer.compute_output_shape(x.shape)[1:]
    for form in _block_forms(sizes):
        ready, done = source.shape[1:] == form.before, wanted == form.after
        known = None not in sizes
        fits = _splits(split.layer, form.split) and _splits(layer, form.joined)
        if not ((ready or done) if known else (ready and done and fits)):
            continue
        if not ready:
            source = reshape(source, form.before, f"{layer.name}_pixels", tracer)
        y = tracer.emit(form.kind(sizes[3], name=layer.name), source)
        return y if done else reshape(y, wanted, f"{layer.name}_shape", tracer)
    return None


class _BlockForm(NamedTuple):
    """How blocks of pixels move.

    Args:
        kind: The layer.
        before: Height, width and channels before.
        split: The axes, split for the swap, as sizes of the image.
        after: Height, width and channels behind.
        joined: These, as sizes of the swapped axes.
    """

    kind: type[DepthToSpace]
    before: Shape
    split: list[Size]
    after: Shape
    joined: list[Size]


def _block_forms(sizes: Shape) -> Iterator[_BlockForm]:
    """How blocks of pixels may move, by the sizes of the axes that are swapped."""
    a, b, c, size, rest = sizes
    if size in (None, 1) or rest is None:
        return

    def times(n: int | None) -> int | None:
        return None if n is None else n * size

    last: list[Size] = [(size, None, 1), (rest, None, 1)]
    whole: Size = (size * size * rest, None, 1)
    if b == size:
        split: list[Size] = [(1, 1, size), (size, None, 1), (1, 2, size), *last]
        joined: list[Size] = [(1, 1, 1), (1, 2, 1), whole]
        before, after = (times(a), times(c), rest), (a, c, whole[0])
        yield _BlockForm(SpaceToDepth, before, split, after, joined)
    if c == size:
        split = [(1, 1, 1), (1, 2, 1), *last[:1], *last]
        joined = [(size, 1, 1), (size, 3, 1), last[1]]
        before, after = (a, b, whole[0]), (times(a), times(b), rest)
        yield _BlockForm(DepthToSpace, before, split, after, joined)


def _splits(layer: Any, target: list[Size]) -> bool:
    """Whether a reshape makes the given sizes, or all but one of them are known."""
    return not isinstance(layer, SizedReshape) or list(layer.target) == target


def _merge_permutations(layer: layers.Permute, x: Any, tracer: "Tracer") -> Any:
    dims = tuple(layer.dims)
    before = made_by(x)
    if isinstance(before.layer, layers.Permute):
        (source,) = before.inputs
        return permute(source, tuple(before.layer.dims[d - 1] for d in dims), layer.name, tracer)
    if dims == tuple(sorted(dims)):
        return x
    if _moves_ones(x.shape, dims):
        return reshape(x, tuple(x.shape[d] for d in dims), layer.name, tracer)
    return None


def _moves_ones(shape: Shape, dims: tuple[int, ...]) -> bool:
    """Whether a permutation only moves axes of size 1, and so is a reshape."""
    kept = [d for d in dims if shape[d] != 1]
    return kept == sorted(kept) and shape.count(None) <= 2


def _emit_before(tracer: "Tracer", layer: Any, inputs: Any, overrides: dict[str, Any]) -> Any:
    """Emit a layer before the move that made its input, if the result is the same."""
    tensors = keras.tree.flatten(inputs)
    moves = [node for node in map(made_by, tensors) if isinstance(node.layer, MOVES)]
    op, rank = find_op(layer), tracer.built_rank(layer)
    if moves and op is not None:
        # Of several moves, prefer a permutation, because moving other inputs may be in vain.
        move = min(moves, key=lambda node: isinstance(node.layer, RESHAPES))
        earlier = op.before_move(layer, move)
        origins = [_origin(tensor, move, tracer) for tensor in tensors]
        if earlier is not None and None not in origins:
            sources = [origin() for origin in origins if origin]
            if rank in (None, len(sources[0].shape)):
                y = tracer.emit(earlier, sources if len(sources) > 1 else sources[0], **overrides)
                return _repeat(move, y, f"{layer.name}_back", tracer)
    if rank not in (None, len(tensors[0].shape)):
        return _emit_in_rank(tracer, layer, tensors[0], rank, overrides)
    return None


def _origin(tensor: Any, move: Node, tracer: "Tracer") -> Callable[[], Any] | None:
    """A tensor before a move, if getting it needs no inverse move."""
    producer = made_by(tensor)
    if isinstance(move.layer, RESHAPES):
        if not isinstance(producer.layer, RESHAPES) or tensor.shape != move.outputs[0].shape:
            return None
        (source,) = producer.inputs
        return (lambda: source) if source.shape == move.inputs[0].shape else None
    if isinstance(producer.layer, layers.Permute) and producer.layer.dims == move.layer.dims:
        return lambda: producer.inputs[0]
    back = tuple(int(place) + 1 for place in np.argsort(move.layer.dims))
    if len(tensor.shape) == len(back) + 1 and _moves_ones(tensor.shape, back):
        return lambda: permute(tensor, back, f"{producer.layer.name}_turned", tracer)
    return None


def _repeat(move: Node, y: Any, name: str, tracer: "Tracer") -> Any:
    """The same move of another tensor."""
    if y.shape == move.inputs[0].shape:
        return move.layer(y)
    return permute(y, move.layer.dims, name, tracer)


def _emit_in_rank(tracer: "Tracer", layer: Any, x: Any, rank: int, overrides: Any) -> Any:
    """Emit a layer by channel that has been built for tensors of another rank."""
    *spatial, channels = x.shape[1:]
    shape = (*(1,) * (rank - 3), math.prod(spatial), channels) if rank > 2 else (channels,)
    y = tracer.emit(layer, reshape(x, shape, f"{layer.name}_in", tracer), **overrides)
    return reshape(y, x.shape[1:], f"{layer.name}_out", tracer)


def channels_last(layer: Any, x: Any, tracer: "Tracer") -> Any:
    """A layer whose channels come first: the same with the channels last, between two moves.

    Args:
        layer: The layer.
        x: Its input in the new graph.
        tracer: Makes the new graph.

    Returns:
        The output tensor.
    """
    rank = len(x.shape)
    moved, back = channel_last(x, 1, layer.name, tracer)
    y = tracer.trace(twin(layer, known_class(layer), moved.shape, tracer), (moved,), {})
    y = back(y) if len(y.shape) == rank else y
    return tracer.activation(getattr(layer, "activation", None), y, layer)


def twin(
    layer: Any,
    kind: type[keras.layers.Layer],
    shape: Shape,
    tracer: "Tracer",
    convert: Callable[[np.ndarray], np.ndarray] = lambda value: value,
    **changes: Any,
) -> Any:
    """A layer of another kind, channels last and without activation, with the same weights.

    Args:
        layer: The user's layer.
        kind: Class of the other one.
        shape: The shape that it is built for.
        tracer: Makes the new graph; a layer that is called twice has one twin.
        convert: Reorders the values of a weight; they are reshaped in any case.
        **changes: Changes to the config.

    Returns:
        The layer.
    """

    def make() -> Any:
        config = {**known_config(layer), "data_format": "channels_last", **changes}
        if "activation" in config:
            config["activation"] = "linear"
        copy = kind.from_config(config)
        share_code(layer, copy, changes)
        copy.build(shape)
        tracer.copy_weights(layer, copy, convert)
        return copy

    return tracer.once((layer, kind.__name__, changes.get("name", "")), make)
