"""TensorFlow's functions, as operations of Keras."""

from typing import Any

from keras import ops

from intact.graph.function_rules import (
    Function,
    Table,
    alike,
    as_type,
    euclidean_norm,
    product,
    refuse,
    split,
    unit_length,
    whole_numbers,
    with_names,
)
from intact.ops.resize import AlignedResizing

NHWC = "channels_last"


def _place_of(function: Function) -> Function:
    """The place of an extreme, by default along the first axis."""

    def place(input: Any, axis: Any = None, output_type: Any = None, name: Any = None) -> Any:
        return function(input, axis=0 if axis is None else whole_numbers(axis))

    return place


def _cumsum(
    x: Any, axis: int = 0, exclusive: bool = False, reverse: bool = False, name: Any = None
) -> Any:
    y = ops.flip(x, axis) if reverse else x
    y = ops.cumsum(y, axis=axis)
    y = ops.flip(y, axis) if reverse else y
    return y - x if exclusive else y


def _gather(
    params: Any,
    indices: Any,
    validate_indices: Any = None,
    axis: int | None = None,
    batch_dims: int = 0,
    name: Any = None,
) -> Any:
    rank = len(params.shape)
    axis = batch_dims if axis is None else whole_numbers(axis) % rank
    if batch_dims == 0:
        return ops.take(params, indices, axis=axis)
    if batch_dims == axis == rank - 1 == len(indices.shape) - 1:
        return ops.take_along_axis(params, indices, axis=axis)
    return refuse("tf.gather", {"axis": axis, "batch_dims": batch_dims})


def _gelu(features: Any, approximate: bool = False, name: Any = None) -> Any:
    return ops.gelu(features, approximate=approximate)


def _matmul(
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
    **settings: Any,
) -> Any:
    return product(a, b, transpose_a or adjoint_a, transpose_b or adjoint_b)


def _norm(
    tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: Any = None, name: Any = None
) -> Any:
    if ord not in ("euclidean", 2):
        return refuse("tf.norm", ord)
    return euclidean_norm(tensor, axis, keepdims)


def _one_hot(
    indices: Any,
    depth: Any,
    on_value: Any = None,
    off_value: Any = None,
    axis: int | None = None,
    dtype: Any = None,
    name: Any = None,
) -> Any:
    if on_value not in (None, 1) or off_value not in (None, 0):
        return refuse("tf.one_hot", (on_value, off_value))
    hot = ops.one_hot(indices, int(depth), axis=-1 if axis is None else axis)
    return as_type(hot, dtype)


def _pad(
    tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0, name: Any = None
) -> Any:
    widths = whole_numbers(paddings)
    if mode.lower() == "constant":
        return ops.pad(tensor, widths, constant_values=constant_values)
    return ops.pad(tensor, widths, mode.lower())


def _slice(input_: Any, begin: Any, size: Any, name: Any = None) -> Any:
    pairs = zip(whole_numbers(begin), whole_numbers(size), strict=True)
    return input_[tuple(slice(at, None if n == -1 else at + n) for at, n in pairs)]


def _shares(function: Function) -> Function:
    """A softmax or its logarithm, by default along the last axis."""

    def shares(logits: Any, axis: int | None = None, name: Any = None) -> Any:
        return function(logits, axis=-1 if axis is None else axis)

    return shares


def _split(
    value: Any, num_or_size_splits: Any, axis: int = 0, num: Any = None, name: Any = None
) -> list[Any]:
    sizes = whole_numbers(num_or_size_splits)
    if isinstance(sizes, int):
        return list(ops.split(value, sizes, axis))
    return split(value, sizes, axis)


def _convolved(
    input: Any,
    filters: Any,
    strides: Any,
    padding: str,
    data_format: str | None = "NHWC",
    dilations: Any = None,
    name: Any = None,
) -> Any:
    if data_format not in (None, "NHWC") or not isinstance(padding, str):
        return refuse("tf.nn.conv2d", (data_format, padding))
    settings = {"strides": _pair(strides), "dilation_rate": _pair(dilations or 1)}
    return ops.conv(input, filters, padding=padding.lower(), data_format=NHWC, **settings)


def _depthwise(
    input: Any,
    filter: Any,
    strides: Any,
    padding: str,
    data_format: str | None = None,
    dilations: Any = None,
    name: Any = None,
) -> Any:
    if data_format not in (None, "NHWC") or not isinstance(padding, str):
        return refuse("tf.nn.depthwise_conv2d", (data_format, padding))
    settings = {"strides": _pair(strides), "dilation_rate": _pair(dilations or 1)}
    return ops.depthwise_conv(input, filter, padding=padding.lower(), data_format=NHWC, **settings)


def _pair(values: Any) -> tuple[int, int]:
    """The two sizes along the axes of an image, which may stand among those of all axes."""
    values = whole_numbers(values)
    values = values if isinstance(values, tuple) else (values,)
    first, last = values[1:3] if len(values) == 4 else (values[0], values[-1])
    return first, last


def _pooling(function: Function) -> Function:
    def pooled(
        input: Any,
        ksize: Any,
        strides: Any,
        padding: str,
        data_format: str | None = "NHWC",
        name: Any = None,
    ) -> Any:
        if data_format not in (None, "NHWC") or len(input.shape) != 4:
            return refuse(function.__name__, (data_format, input.shape))
        return function(input, _pair(ksize), _pair(strides), padding.lower(), data_format=NHWC)

    return pooled


def _normalized(
    x: Any,
    mean: Any,
    variance: Any,
    offset: Any,
    scale: Any,
    variance_epsilon: Any,
    name: Any = None,
) -> Any:
    factor = ops.rsqrt(variance + variance_epsilon)
    factor = factor if scale is None else factor * scale
    shift = -mean * factor
    return x * factor + (shift if offset is None else offset + shift)


def _resize(
    images: Any,
    size: Any,
    method: str = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
    name: Any = None,
) -> Any:
    if preserve_aspect_ratio:
        return refuse("tf.image.resize", "preserve_aspect_ratio=True")
    settings = {"interpolation": method, "antialias": antialias, "data_format": NHWC}
    return ops.image.resize(images, whole_numbers(size), **settings)


def _resize_v1(
    images: Any, size: Any, method: str = "bilinear", align_corners: bool = False, **settings: Any
) -> Any:
    """`tf.compat.v1.image.resize` with `align_corners`; no other form of Keras has its centres."""
    if method != "bilinear" or not align_corners:
        return refuse("tf.compat.v1.image.resize", (method, align_corners))
    return AlignedResizing(*map(int, size))(images)


class WrittenTensors:
    """What `tf.TensorArray` does, with symbolic tensors, too.

    Args:
        dtype: The type of the tensors.
        size: How many there are at first.
        settings: Others of `tf.TensorArray`.
    """

    def __init__(self, dtype: Any = None, size: Any = 0, **settings: Any) -> None:
        self.dtype = dtype
        self._parts: list[Any] = [None] * int(size or 0)

    def identity(self) -> "WrittenTensors":
        """The same tensors."""
        return self

    def gather(self, indices: Any, name: Any = None) -> Any:
        """The tensors at some places, along a new first axis."""
        return ops.stack([self._parts[int(index)] for index in whole_numbers(indices)])

    def write(self, index: Any, value: Any, name: Any = None) -> "WrittenTensors":
        """Put a tensor at a place."""
        place = int(index)
        self._parts += [None] * (place + 1 - len(self._parts))
        self._parts[place] = value
        return self

    def unstack(self, value: Any, name: Any = None) -> "WrittenTensors":
        """Put each part of a tensor along its first axis at a place."""
        self._parts = list(ops.unstack(value))
        return self

    def read(self, index: Any, name: Any = None) -> Any:
        """The tensor at a place."""
        return self._parts[int(index)]

    def stack(self, name: Any = None) -> Any:
        """The tensors along a new first axis."""
        return ops.stack(self._parts)

    def concat(self, name: Any = None) -> Any:
        """The tensors along their first axis."""
        return ops.concatenate(self._parts)

    def size(self, name: Any = None) -> int:
        """How many there are."""
        return len(self._parts)


class Sizes(tuple[int | None, ...]):
    """A shape with the methods of `tf.TensorShape` that calls use."""

    @property
    def rank(self) -> int:
        """How many axes there are."""
        return len(self)

    ndims = rank

    def as_list(self) -> list[int | None]:
        """The sizes; None where one is unknown."""
        return list(self)


TENSORS: dict[str, Function] = {
    **alike("abs acos=arccos asin=arcsin atan=arctan ceil cos cosh erf exp expm1 floor log log1p"),
    **alike("log_sigmoid logical_not negative reciprocal round rsqrt sigmoid sign sin sinh"),
    **alike("softplus sqrt square tan tanh stop_gradient zeros_like ones_like identity=copy"),
    **alike("add subtract multiply divide truediv=true_divide maximum minimum pow=power", 2),
    **alike("floordiv=floor_divide mod floormod=mod divide_no_nan atan2=arctan2", 2),
    **alike("equal not_equal less less_equal greater greater_equal logical_and logical_or", 2),
    **alike("logical_xor", 2),
    "squared_difference": lambda x, y, name=None: ops.square(x - y),
    "add_n": lambda inputs, name=None: sum(inputs[1:], inputs[0]),
    **with_names(
        {
            "reduce_mean": "mean(input_tensor=x, axis, keepdims)",
            "reduce_sum": "sum(input_tensor=x, axis, keepdims)",
            "reduce_max": "max(input_tensor=x, axis, keepdims)",
            "reduce_min": "min(input_tensor=x, axis, keepdims)",
            "reduce_prod": "prod(input_tensor=x, axis, keepdims)",
            "reduce_any": "any(input_tensor=x, axis, keepdims)",
            "reduce_all": "all(input_tensor=x, axis, keepdims)",
            "reduce_variance": "var(input_tensor=x, axis, keepdims)",
            "reduce_std": "std(input_tensor=x, axis, keepdims)",
            "reduce_logsumexp": "logsumexp(input_tensor=x, axis, keepdims)",
            "top_k": "top_k(input=x, k, sorted)",
            "tensordot": "tensordot(a=x1, b=x2, axes)",
        }
    ),
    "argmax": _place_of(ops.argmax),
    "argmin": _place_of(ops.argmin),
    "cumsum": _cumsum,
    "einsum": lambda equation, *inputs, **settings: ops.einsum(equation, *inputs),
    "l2_normalize": lambda x, axis=None, epsilon=1e-12, name=None: unit_length(x, axis, epsilon),
}
"""Functions that TensorFlow has as `tf.math.x`, and most of them as `tf.x`, too."""

MOVES: dict[str, Function] = {
    **with_names(
        {
            "concat": "concatenate(values=xs, axis)",
            "expand_dims": "expand_dims(input=x, axis)",
            "repeat": "repeat(input=x, repeats, axis)",
            "roll": "roll(input=x, shift, axis)",
            "squeeze": "squeeze(input=x, axis)",
            "stack": "stack(values=x, axis)",
            "transpose": "transpose(a=x, perm=axes, -conjugate)",
            "unstack": "unstack(value=x, num, axis)",
            "where": "where(condition, x=x1, y=x2)",
            "clip_by_value": "clip(t=x, clip_value_min=x_min, clip_value_max=x_max)",
        }
    ),
    "broadcast_to": lambda input, shape, name=None: ops.broadcast_to(input, whole_numbers(shape)),
    "cast": lambda x, dtype, name=None: as_type(x, dtype),
    "convert_to_tensor": lambda value, dtype=None, **settings: as_type(value, dtype),
    "ensure_shape": lambda x, shape, name=None: x,
    "gather": _gather,
    "matmul": _matmul,
    "norm": _norm,
    "one_hot": _one_hot,
    "pad": _pad,
    "rank": lambda input, name=None: len(input.shape),
    "reshape": lambda tensor, shape, name=None: ops.reshape(tensor, whole_numbers(shape)),
    "reverse": lambda tensor, axis, name=None: ops.flip(tensor, whole_numbers(axis)),
    "shape": lambda input, out_type=None, name=None: ops.shape(input),
    "slice": _slice,
    "sort": lambda values, axis=-1, direction="ASCENDING", name=None: (
        ops.sort(values, axis=axis)
        if direction == "ASCENDING"
        else ops.flip(ops.sort(values, axis=axis), axis)
    ),
    "split": _split,
    "tile": lambda input, multiples, name=None: ops.tile(input, whole_numbers(multiples)),
}
"""Functions that TensorFlow has as `tf.x`."""

NEURAL: dict[str, Function] = {
    **alike("elu relu relu6 selu softsign sigmoid tanh softplus"),
    **with_names(
        {
            "leaky_relu": "leaky_relu(features=x, alpha=negative_slope)",
            "moments": "moments(x, axes, -shift, keepdims)",
            "depth_to_space": "depth_to_space(input=x, block_size)",
            "space_to_depth": "space_to_depth(input=x, block_size)",
        }
    ),
    "silu": lambda features, beta=1.0: features * ops.sigmoid(beta * features),
    "swish": lambda features, beta=1.0: features * ops.sigmoid(beta * features),
    "gelu": _gelu,
    "softmax": _shares(ops.softmax),
    "log_softmax": _shares(ops.log_softmax),
    "l2_normalize": TENSORS["l2_normalize"],
    "top_k": TENSORS["top_k"],
    "bias_add": lambda value, bias, data_format=None, name=None: (
        value + bias if data_format in (None, "NHWC") else refuse("tf.nn.bias_add", data_format)
    ),
    "batch_normalization": _normalized,
    "conv2d": _convolved,
    "depthwise_conv2d": _depthwise,
    "avg_pool": _pooling(ops.average_pool),
    "avg_pool2d": _pooling(ops.average_pool),
    "max_pool": _pooling(ops.max_pool),
    "max_pool2d": _pooling(ops.max_pool),
    "embedding_lookup": lambda params, ids, max_norm=None, name=None: ops.take(params, ids, axis=0),
}

IMAGES: dict[str, Function] = {
    "resize": _resize,
    "rgb_to_grayscale": lambda images, name=None: ops.image.rgb_to_grayscale(
        images, data_format=NHWC
    ),
    "flip_left_right": lambda image: ops.flip(image, -2),
    "flip_up_down": lambda image: ops.flip(image, -3),
}


OPERATORS: dict[str, Function] = {
    "__lt__": ops.less,
    "__le__": ops.less_equal,
    "__gt__": ops.greater,
    "__ge__": ops.greater_equal,
}

FUNCTIONS: Table = {
    "tensorflow": {**TENSORS, **MOVES, "TensorArray": WrittenTensors},
    "tensorflow.math": {**TENSORS, **{name: NEURAL[name] for name in ("softmax", "log_softmax")}},
    "tensorflow.nn": NEURAL,
    "tensorflow.image": IMAGES,
    "tensorflow.compat.v1.image": {"resize": _resize_v1},
    "tensorflow.linalg": {"matmul": _matmul, "norm": _norm, "einsum": TENSORS["einsum"]},
    "tensorflow.Tensor": OPERATORS,
}
"""TensorFlow's functions by module, and operators whose right side is symbolic."""


def _shape_of(x: Any) -> Sizes:
    return Sizes(x._shape)


METHODS: dict[str, Any] = {
    "shape": property(_shape_of),
    "get_shape": _shape_of,
    "set_shape": lambda x, shape: None,
}
"""What a symbolic tensor has, as TensorFlow's tensors."""
