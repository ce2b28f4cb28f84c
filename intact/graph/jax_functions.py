"""JAX's functions and the methods of its arrays, as operations of Keras."""

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
    refuse,
    whole_numbers,
    with_names,
)
from intact.graph.items import At
from intact.numerics.tensors import to_numpy
from intact.ops.resize import AlignedResizing


def _gelu(x: Any, approximate: bool = True) -> Any:
    return ops.gelu(x, approximate=approximate)


def _leaky_relu(x: Any, negative_slope: float = 1e-2) -> Any:
    return ops.leaky_relu(x, negative_slope)


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    if ord not in (None, 2):
        return refuse("jnp.linalg.norm", ord)
    return euclidean_norm(x, axis, keepdims)


def _pad(array: Any, pad_width: Any, mode: str = "constant", **settings: Any) -> Any:
    rank, widths = len(array.shape), whole_numbers(pad_width)
    widths = ((widths, widths),) if isinstance(widths, int) else widths
    widths = (widths,) if isinstance(widths[0], int) else widths
    return ops.pad(array, widths * (rank if len(widths) == 1 else 1), mode, **settings)


def _resize(image: Any, shape: Any, method: str, antialias: bool = True, **settings: Any) -> Any:
    """`jax.image.resize` of images, at the size of whole batches."""
    sizes = whole_numbers(tuple(shape))
    smaller = any(new < old for new, old in zip(sizes[1:3], image.shape[1:3], strict=True))
    kept = len(sizes) == 4 and sizes[3] == image.shape[3]
    if not kept or (antialias and smaller) or any(settings.values()):
        return refuse("jax.image.resize", (sizes, antialias, settings))
    interpolation = {"linear": "bilinear", "cubic": "bicubic"}.get(method, method)
    return ops.image.resize(
        image, sizes[1:3], interpolation=interpolation, data_format="channels_last"
    )


def _translate(
    image: Any, shape: Any, spatial_dims: Any, scale: Any, translation: Any, method: str, **_: Any
) -> Any:
    """`jax.image.scale_and_translate`, where it resizes images whose corners stay."""
    old = np.array(image.shape[1:3], "float32")
    new = np.array(shape[1:3], "float32")
    aligned = (new - 1) / (old - 1)
    same = np.allclose(to_numpy(scale), aligned, rtol=1e-5)
    same = same and np.allclose(to_numpy(translation), 0.5 - aligned / 2, atol=1e-4)
    if method not in ("bilinear", "linear") or tuple(spatial_dims) != (1, 2) or not same:
        return refuse("scale_and_translate", (method, spatial_dims, scale, translation))
    return AlignedResizing(*map(int, shape[1:3]))(image)


REDUCTIONS: dict[str, Function] = with_names(
    {
        name: f"{name}(a=x, axis, -dtype, -out, keepdims)"
        for name in ("mean", "sum", "prod", "var", "std")
    }
    | {name: f"{name}(a=x, axis, -out, keepdims)" for name in ("max", "min", "any", "all")}
    | {name: f"{name}(a=x, axis, -out, keepdims)" for name in ("amax", "amin")}
    | {name: f"{name}(a=x, axis, -out, keepdims)" for name in ("argmax", "argmin")}
    | {"cumsum": "cumsum(a=x, axis, -dtype, -out)"}
)

MOVES: dict[str, Function] = {
    **with_names(
        {
            "repeat": "repeat(a=x, repeats, axis)",
            "squeeze": "squeeze(a=x, axis)",
            "swapaxes": "swapaxes(a=x, axis1, axis2)",
            "take": "take(a=x, indices, axis)",
        }
    ),
    "ravel": lambda a: ops.reshape(a, (-1,)),
}
"""What is both a function of JAX and a method of its arrays."""

NUMPY: dict[str, Function] = {
    **REDUCTIONS,
    **MOVES,
    **alike("abs absolute arccos arcsin arctan ceil cos cosh exp exp2 expm1 floor log log10 log1p"),
    **alike("log2 logical_not negative reciprocal round sign sin sinh sqrt square tan tanh"),
    **alike("zeros_like ones_like isnan isfinite"),
    **alike("add subtract multiply divide true_divide floor_divide mod maximum minimum power", 2),
    **alike("equal not_equal less less_equal greater greater_equal logical_and logical_or", 2),
    **alike("logical_xor arctan2 matmul dot", 2),
    **with_names(
        {
            "concatenate": "concatenate(arrays=xs, axis)",
            "expand_dims": "expand_dims(a=x, axis)",
            "flip": "flip(m=x, axis)",
            "moveaxis": "moveaxis(a=x, source, destination)",
            "roll": "roll(a=x, shift, axis)",
            "split": "split(ary=x, indices_or_sections, axis)",
            "stack": "stack(arrays=x, axis)",
            "take_along_axis": "take_along_axis(arr=x, indices, axis)",
            "tensordot": "tensordot(a=x1, b=x2, axes)",
            "tile": "tile(A=x, reps=repeats)",
            "transpose": "transpose(a=x, axes)",
            "where": "where(condition, x=x1, y=x2)",
        }
    ),
    "asarray": lambda a, dtype=None: as_type(a, dtype),
    "array": lambda a, dtype=None: as_type(a, dtype),
    "astype": lambda x, dtype: as_type(x, dtype),
    "broadcast_to": lambda array, shape: ops.broadcast_to(array, whole_numbers(tuple(shape))),
    "clip": lambda arr, min=None, max=None: clipped(arr, min, max),
    "einsum": lambda subscripts, *operands, **settings: ops.einsum(subscripts, *operands),
    "ndim": lambda a: len(a.shape),
    "pad": _pad,
    "reshape": lambda a, shape: ops.reshape(a, whole_numbers(shape)),
    "shape": lambda a: a.shape,
}

NEURAL: dict[str, Function] = {
    **alike("celu hard_sigmoid hard_silu hard_swish hard_tanh log_sigmoid relu relu6 selu sigmoid"),
    **alike("silu swish soft_sign=softsign softplus squareplus"),
    **with_names(
        {
            "elu": "elu(x, alpha)",
            "glu": "glu(x, axis)",
            "log_softmax": "log_softmax(x, axis)",
            "logsumexp": "logsumexp(a=x, axis, -b, keepdims)",
            "softmax": "softmax(x, axis)",
        }
    ),
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "one_hot": lambda x, num_classes, dtype=None, axis=-1: as_type(
        ops.one_hot(x, num_classes, axis=axis), dtype
    ),
}

LAX: dict[str, Function] = {
    **alike("abs ceil cos exp expm1 floor log log1p logistic=sigmoid neg=negative round rsqrt"),
    **alike("sign sin sqrt square stop_gradient tanh erf"),
    **alike("add sub=subtract mul=multiply div=divide max=maximum min=minimum pow=power", 2),
    "clamp": lambda min, x, max: ops.clip(x, min, max),
    **with_names(
        {
            "concatenate": "concatenate(operands=xs, dimension=axis)",
            "select": "where(pred=condition, on_true=x1, on_false=x2)",
        }
    ),
}

FUNCTIONS: Table = {
    "jax.numpy": NUMPY,
    "jax.numpy.linalg": {"norm": _norm},
    "jax.nn": NEURAL,
    "jax.lax": LAX,
    "jax.image": {"resize": _resize, "scale_and_translate": _translate},
}
"""JAX's functions by module."""


def _sized(x: Any, *shape: Any) -> Any:
    return ops.reshape(x, whole_numbers(shape[0] if len(shape) == 1 else shape))


def _turned(x: Any, *axes: Any) -> Any:
    named = axes[0] if len(axes) == 1 else axes
    return ops.transpose(x, whole_numbers(named) if named else None)


METHODS: dict[str, Any] = {
    "at": property(At),
    **REDUCTIONS,
    **MOVES,
    "astype": as_type,
    "clip": NUMPY["clip"],
    "dot": ops.dot,
    "flatten": MOVES["ravel"],
    "reshape": _sized,
    "round": lambda x: ops.round(x),
    "transpose": _turned,
    "T": property(lambda x: ops.transpose(x)),
    "mT": property(lambda x: ops.swapaxes(x, -1, -2)),
}
"""What a symbolic tensor has, as JAX's arrays."""
