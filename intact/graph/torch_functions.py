"""PyTorch's functions and the methods of its tensors, as operations of Keras."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from intact.graph.function_rules import (
    Function,
    Table,
    alike,
    as_type,
    clipped,
    euclidean_norm,
    product,
    refuse,
    split,
    whole_numbers,
    with_names,
)
from intact.graph.items import assign_items, in_place
from intact.ops.resize import AlignedResizing


def _sizes(first: Any, more: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes or axes that a call passes one by one, or as one argument."""
    values = whole_numbers(first)
    return values if isinstance(values, tuple) else (values, *whole_numbers(more))


def _reshape(input: Any, shape: Any, *more: Any) -> Any:
    return ops.reshape(input, _sizes(shape, more))


def _permute(input: Any, dims: Any, *more: Any) -> Any:
    rank = len(input.shape)
    return ops.transpose(input, [axis % rank for axis in _sizes(dims, more)])


def _expand(input: Any, size: Any, *more: Any) -> Any:
    sizes = _sizes(size, more)
    old = (1,) * (len(sizes) - len(input.shape)) + tuple(input.shape)
    return ops.broadcast_to(
        input, [before if n == -1 else n for n, before in zip(sizes, old, strict=True)]
    )


def _repeat(input: Any, repeats: Any, *more: Any) -> Any:
    return ops.tile(input, _sizes(repeats, more))


def _flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    rank = len(input.shape)
    start, end = start_dim % rank, end_dim % rank
    shape = input.shape
    return ops.reshape(input, (*shape[:start], -1, *shape[end + 1 :]))


def _squeeze(input: Any, dim: Any = None) -> Any:
    rank = len(input.shape)
    axes = range(rank) if dim is None else dim if isinstance(dim, list | tuple) else (dim,)
    # PyTorch leaves axes of other sizes as they are.
    alone = tuple(axis % rank for axis in axes if input.shape[axis] == 1)
    return ops.squeeze(input, alone) if alone else input


def _chunk(input: Any, chunks: int, dim: int = 0) -> list[Any]:
    return _split(input, -(-input.shape[dim] // chunks), dim)


def _split(tensor: Any, split_size_or_sections: Any, dim: int = 0) -> list[Any]:
    sizes = whole_numbers(split_size_or_sections)
    if isinstance(sizes, int):
        whole, rest = divmod(tensor.shape[dim], sizes)
        sizes = [sizes] * whole + [rest] * (rest > 0)
    return split(tensor, sizes, dim)


def _variance(
    input: Any,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: int | None = None,
) -> Any:
    axes = (
        range(len(input.shape)) if dim is None else dim if isinstance(dim, list | tuple) else [dim]
    )
    count = int(np.prod([input.shape[axis] for axis in axes]))
    less = int(unbiased) if correction is None else correction
    variance = ops.var(input, axis=tuple(axes), keepdims=keepdim)
    return variance * (count / (count - less)) if less else variance


def _deviation(*args: Any, **kwargs: Any) -> Any:
    return ops.sqrt(_variance(*args, **kwargs))


def _extreme(largest: bool) -> Function:
    values: Callable[..., Any] = ops.max if largest else ops.min
    places: Callable[..., Any] = ops.argmax if largest else ops.argmin
    pairs: Callable[..., Any] = ops.maximum if largest else ops.minimum

    def extreme(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
        if dim is None:
            return values(input)
        if not isinstance(dim, int):
            return pairs(input, dim)
        return values(input, dim, keepdims=keepdim), places(input, dim, keepdims=keepdim)

    return extreme


def _top_k(
    input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Any, Any]:
    if dim % len(input.shape) != len(input.shape) - 1 or not largest:
        return refuse("torch.topk", (dim, largest))
    return ops.top_k(input, k, sorted)


def _norm(input: Any, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
    if p not in (2, "fro"):
        return refuse("norm", p)
    return euclidean_norm(input, dim, keepdim)


def _normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    return input / ops.maximum(_norm(input, p, dim, keepdim=True), eps)


def _gelu(input: Any, approximate: str = "none") -> Any:
    return ops.gelu(input, approximate=approximate == "tanh")


def _leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return ops.leaky_relu(input, negative_slope)


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    y = product(input, weight, turn_b=True)
    return y if bias is None else y + bias


def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - ops.mean(input, axis=axes, keepdims=True)
    y = centred * ops.rsqrt(ops.mean(ops.square(centred), axis=axes, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _pad(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    ends = whole_numbers(tuple(pad))
    # PyTorch begins with the last axis.
    pairs = [ends[at : at + 2] for at in range(0, len(ends), 2)][::-1]
    widths = [(0, 0)] * (len(input.shape) - len(pairs)) + pairs
    if mode == "constant":
        return ops.pad(input, widths, constant_values=value or 0)
    return ops.pad(input, widths, {"replicate": "edge"}.get(mode, mode))


def _shares(function: Function) -> Function:
    """A softmax or its logarithm, by default along the last axis."""

    def shares(input: Any, dim: int | None = None, dtype: Any = None, **settings: Any) -> Any:
        return function(as_type(input, dtype), axis=-1 if dim is None else dim)

    return shares


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **settings: Any) -> Any:
    """`scaled_dot_product_attention`, of which Keras has the heads at another axis."""
    if settings.pop("is_causal", False) or any(settings.values()):
        return refuse("scaled_dot_product_attention", settings)
    scores = product(query, key, turn_b=True) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores + attn_mask
    return ops.matmul(ops.softmax(scores), value)


def _interpolate(
    x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **settings: Any
) -> Any:
    """`torch.nn.functional.interpolate`, of images with the channels first."""
    if len(x.shape) != 4 or None in x.shape[2:] or settings.get("antialias"):
        return refuse("interpolate", (x.shape, settings))
    factors = scale_factor if isinstance(scale_factor, list | tuple) else (scale_factor,) * 2
    sizes = size if isinstance(size, list | tuple) else (size,) * 2
    height, width = (
        int(np.floor(old * factor)) if new is None else int(new)
        for old, new, factor in zip(x.shape[2:], sizes, factors, strict=True)
    )
    multiple = height % x.shape[2] == width % x.shape[3] == 0
    x = ops.transpose(x, (0, 2, 3, 1))
    if mode == "bilinear" and settings.get("align_corners"):
        y = AlignedResizing(height, width)(x)
    elif mode in ("bilinear", "nearest-exact"):
        y = _resized(x, (height, width), mode.removesuffix("-exact"))
    elif mode == "nearest" and multiple:
        y = _resized(x, (height, width), mode)
    else:
        return refuse("interpolate", mode)
    return ops.transpose(y, (0, 3, 1, 2))


def _resized(x: Any, size: tuple[int, int], interpolation: str) -> Any:
    """Images of another size, with half-pixel centres."""
    return ops.image.resize(x, size, interpolation=interpolation, data_format="channels_last")


BOTH: dict[str, Function] = {
    **alike("abs acos=arccos arccos asin=arcsin atan=arctan ceil cos cosh erf exp expm1 floor log"),
    **alike("log1p log2 logical_not neg=negative negative reciprocal relu round rsqrt selu"),
    **alike("sigmoid sign sin sinh sqrt square tan tanh zeros_like ones_like clone=copy"),
    **alike("add sub=subtract subtract mul=multiply multiply div=divide divide maximum", 2),
    **alike("minimum pow=power matmul bmm=matmul mm=matmul remainder=mod", 2),
    **alike("floor_divide eq=equal ne=not_equal lt=less le=less_equal gt=greater", 2),
    **alike("ge=greater_equal logical_and logical_or logical_xor atan2=arctan2", 2),
    **with_names(
        {
            "mean": "mean(input=x, dim=axis, keepdim=keepdims)",
            "sum": "sum(input=x, dim=axis, keepdim=keepdims)",
            "prod": "prod(input=x, dim=axis, keepdim=keepdims)",
            "amax": "max(input=x, dim=axis, keepdim=keepdims)",
            "amin": "min(input=x, dim=axis, keepdim=keepdims)",
            "any": "any(input=x, dim=axis, keepdim=keepdims)",
            "all": "all(input=x, dim=axis, keepdim=keepdims)",
            "argmax": "argmax(input=x, dim=axis, keepdim=keepdims)",
            "argmin": "argmin(input=x, dim=axis, keepdim=keepdims)",
            "logsumexp": "logsumexp(input=x, dim=axis, keepdim=keepdims)",
            "cumsum": "cumsum(input=x, dim=axis)",
            "transpose": "swapaxes(input=x, dim0=axis1, dim1=axis2)",
            "swapaxes": "swapaxes(input=x, axis0=axis1, axis1=axis2)",
            "unsqueeze": "expand_dims(input=x, dim=axis)",
            "roll": "roll(input=x, shifts=shift, dims=axis)",
            "index_select": "take(input=x, dim=axis, index=indices)",
            "repeat_interleave": "repeat(input=x, repeats, dim=axis)",
        }
    ),
    "chunk": _chunk,
    "clamp": lambda input, min=None, max=None: clipped(input, min, max),
    "clip": lambda input, min=None, max=None: clipped(input, min, max),
    "flatten": _flatten,
    "flip": lambda input, dims, *more: ops.flip(input, _sizes(dims, more)),
    "gather": lambda input, dim, index: ops.take_along_axis(input, index, axis=dim),
    "masked_fill": lambda input, mask, value: ops.where(mask, value, input),
    "max": _extreme(True),
    "min": _extreme(False),
    "norm": _norm,
    "permute": _permute,
    "reshape": _reshape,
    "softmax": _shares(ops.softmax),
    "log_softmax": _shares(ops.log_softmax),
    "split": _split,
    "squeeze": _squeeze,
    "std": _deviation,
    "tile": _repeat,
    "topk": _top_k,
    "unbind": lambda input, dim=0: list(ops.unstack(input, axis=dim)),
    "var": _variance,
}
"""What is both a function of PyTorch and a method of its tensors."""

FUNCTIONAL: dict[str, Function] = {
    **alike("celu hardsigmoid=hard_sigmoid hardswish=hard_swish hardtanh=hard_tanh"),
    **alike("logsigmoid=log_sigmoid sigmoid softsign tanh tanhshrink=tanh_shrink"),
    "relu": lambda input, inplace=False: ops.relu(input),
    "relu6": lambda input, inplace=False: ops.relu6(input),
    "selu": lambda input, inplace=False: ops.selu(input),
    "silu": lambda input, inplace=False: ops.silu(input),
    "elu": lambda input, alpha=1.0, inplace=False: ops.elu(input, alpha),
    "gelu": _gelu,
    "glu": lambda input, dim=-1: ops.glu(input, dim),
    "interpolate": _interpolate,
    "layer_norm": _layer_norm,
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "log_softmax": BOTH["log_softmax"],
    "mish": lambda input, inplace=False: input * ops.tanh(ops.softplus(input)),
    "normalize": _normalize,
    "one_hot": lambda tensor, num_classes: ops.one_hot(tensor, num_classes, dtype="int32"),
    "pad": _pad,
    "scaled_dot_product_attention": _attention,
    "softmax": BOTH["softmax"],
    "softplus": lambda input, beta=1.0, threshold=20.0: ops.softplus(input * beta) / beta,
}

FUNCTIONS: Table = {
    "torch": {
        **BOTH,
        **with_names(
            {
                "cat": "concatenate(tensors=xs, dim=axis)",
                "concat": "concatenate(tensors=xs, dim=axis)",
                "stack": "stack(tensors=x, dim=axis)",
                "where": "where(condition, input=x1, other=x2)",
            }
        ),
        "einsum": lambda equation, *operands: ops.einsum(equation, *operands),
    },
    "torch.nn.functional": FUNCTIONAL,
}
"""PyTorch's functions by module."""

CHANGES: dict[str, Any] = {
    "add": ops.add,
    "sub": ops.subtract,
    "mul": ops.multiply,
    "truediv": ops.divide,
    "floordiv": ops.floor_divide,
    "mod": ops.mod,
}
"""What changes a tensor, by the name of Python's operator."""

METHODS: dict[str, Any] = {
    **BOTH,
    **{f"__i{name}__": in_place(function) for name, function in CHANGES.items()},
    **{f"{name}_": in_place(function) for name, function in CHANGES.items()},
    "__setitem__": assign_items,
    "clamp_": in_place(ops.clip),
    "div_": in_place(ops.divide),
    "relu_": in_place(ops.relu),
    "bool": lambda x: ops.cast(x, "bool"),
    "contiguous": lambda x: x,
    "detach": ops.stop_gradient,
    "dim": lambda x: len(x.shape),
    "expand": _expand,
    "float": lambda x: ops.cast(x, "float32"),
    "int": lambda x: ops.cast(x, "int32"),
    "repeat": _repeat,
    "size": lambda x, dim=None: x.shape if dim is None else x.shape[dim],
    "to": lambda x, dtype: x if isinstance(dtype, str) else as_type(x, dtype),
    "type": as_type,
    "type_as": lambda x, other: ops.cast(x, other.dtype),
    "view": _reshape,
    "mT": property(lambda x: ops.swapaxes(x, -1, -2)),
    "device": "cpu",
    "requires_grad": False,
}
"""What a symbolic tensor has, as PyTorch's tensors."""
