"""Functions of the backends for images, as layers, while a user's `call` runs.

Keras has no function for what they do, so portable code calls the backend's own. Such a function
takes no symbolic tensor.
"""

import contextlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.numerics.tensors import is_symbolic, to_numpy
from intact.ops.resize import AlignedResizing


def _refuse(name: str, settings: Any) -> Any:
    raise NotImplementedError(f"`{name}` has no symbolic form with {settings}")


def _torch_interpolate(
    x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **settings: Any
) -> Any:
    """`torch.nn.functional.interpolate`, of images with the channels first."""
    if len(x.shape) != 4 or None in x.shape[2:] or settings.get("antialias"):
        return _refuse("interpolate", (x.shape, settings))
    factors = scale_factor if isinstance(scale_factor, list | tuple) else (scale_factor,) * 2
    sizes = size if isinstance(size, list | tuple) else (size,) * 2
    height, width = (
        int(np.floor(old * factor)) if new is None else int(new)
        for old, new, factor in zip(x.shape[2:], sizes, factors, strict=True)
    )
    x = ops.transpose(x, (0, 2, 3, 1))
    if mode == "bilinear" and settings.get("align_corners"):
        y = AlignedResizing(height, width)(x)
    elif mode in ("bilinear", "nearest-exact"):
        y = _resized(x, (height, width), mode.removesuffix("-exact"))
    elif mode == "nearest" and height % x.shape[1] == width % x.shape[2] == 0:
        y = _resized(x, (height, width), mode)
    else:
        return _refuse("interpolate", mode)
    return ops.transpose(y, (0, 3, 1, 2))


def _resized(x: Any, size: tuple[int, int], interpolation: str) -> Any:
    """Images of another size, with half-pixel centres."""
    return ops.image.resize(x, size, interpolation=interpolation, data_format="channels_last")


def _tf_resize(
    images: Any, size: Any, method: str = "bilinear", align_corners: bool = False, **settings: Any
) -> Any:
    """`tf.compat.v1.image.resize` with `align_corners`; no other form of Keras has its centres."""
    if method != "bilinear" or not align_corners:
        return _refuse("resize", (method, align_corners))
    return AlignedResizing(*map(int, size))(images)


def _jax_translate(
    image: Any, shape: Any, spatial_dims: Any, scale: Any, translation: Any, method: str, **_: Any
) -> Any:
    """`jax.image.scale_and_translate`, where it resizes images whose corners stay."""
    old = np.array(image.shape[1:3], "float32")
    new = np.array(shape[1:3], "float32")
    aligned = (new - 1) / (old - 1)
    same = np.allclose(to_numpy(scale), aligned, rtol=1e-5)
    same = same and np.allclose(to_numpy(translation), 0.5 - aligned / 2, atol=1e-4)
    if method not in ("bilinear", "linear") or tuple(spatial_dims) != (1, 2) or not same:
        return _refuse("scale_and_translate", (method, spatial_dims, scale, translation))
    return AlignedResizing(*map(int, shape[1:3]))(image)


SYMBOLIC: dict[str, tuple[tuple[str, str, Callable[..., Any]], ...]] = {
    "torch": (("torch.nn.functional", "interpolate", _torch_interpolate),),
    "tensorflow": (("tensorflow.compat.v1.image", "resize", _tf_resize),),
    "jax": (("jax.image", "scale_and_translate", _jax_translate),),
}
"""By backend, the functions: module, name, and what stands for it if a tensor is symbolic."""


@contextlib.contextmanager
def symbolic_functions() -> Iterator[None]:
    """Inside a `with` block, let functions of the backend take symbolic tensors."""
    with contextlib.ExitStack() as stack:
        for path, name, symbolic in SYMBOLIC.get(keras.backend.backend(), ()):
            module = pkgutil.resolve_name(path)
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, _either(getattr(module, name), symbolic))
        yield


def _either(function: Callable[..., Any], symbolic: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is another one where its first argument is symbolic."""

    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        return (symbolic if is_symbolic(x) else function)(x, *args, **kwargs)

    return call
