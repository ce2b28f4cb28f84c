"""Lets the C library give back the memory of large arrays."""

import contextlib
import ctypes
import math
import sys
import threading
from collections.abc import Iterator
from typing import Any

LARGE = 2**29
"""The size in bytes of a model's float weights beyond which nothing copies all of them."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's settings (`man mallopt`)."""

SEPARATE = 2**17
"""The size in bytes from which an array has pages of its own: where glibc begins."""

MOST = 2**25
"""The largest such size, to which glibc comes by itself as large arrays are freed."""

_lock = threading.Lock()
_inside = 0


def is_large(model: Any) -> bool:
    """Whether a copy of a model's weights, or a float file of them, takes too much memory.

    Args:
        model: A Keras model; nothing else is large.
    """
    variables = getattr(model, "variables", ())
    return sum(4 * math.prod(variable.shape) for variable in variables) > LARGE


@contextlib.contextmanager
def separate_pages(model: Any) -> Iterator[None]:
    """A context in which arrays of a large model have pages of their own, and give them back.

    glibc takes arrays of up to 32 MB from its heap, once one of that size has been freed. Each
    layer of a large model has some, for as long as it is made or computed. Smaller arrays that live
    longer settle in the holes that they leave, so that the next layer's do not fit, and the heap
    grows by as much as the model's weights. The holes from before, which making the float model
    leaves, are given back first; within such a context, one of its own for each stage gives back
    what the stage before left. Other C libraries are left as they are.

    Args:
        model: The model. One that is small changes nothing, because pages take time.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" and is_large(model) else None
    if not hasattr(library, "mallopt"):
        yield
        return
    assert library is not None
    _enter(library, 1)
    try:
        yield
    finally:
        _enter(library, -1)


def _enter(library: ctypes.CDLL, more: int) -> None:
    """Count the contexts that are open, in whatever thread; the last one ends the settings."""
    global _inside
    with _lock:
        _inside += more
        library.mallopt(MMAP_THRESHOLD, SEPARATE if _inside else MOST)
        if not _inside:
            library.mallopt(TRIM_THRESHOLD, 2 * MOST)
        library.malloc_trim(0)
