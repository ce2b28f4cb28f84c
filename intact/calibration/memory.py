"""Lets the C library give back the memory of large arrays."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's settings (`man mallopt`)."""

SEPARATE = 2**20
"""The size in bytes from which an array has pages of its own."""

MOST = 2**25
"""The largest such size, to which glibc comes by itself as large arrays are freed."""


@contextlib.contextmanager
def separate_pages(needed: bool) -> Iterator[None]:
    """A context in which large arrays have pages of their own, which go back when they are freed.

    glibc takes arrays of up to 32 MB from its heap, once one of that size has been freed. Each
    layer of a large model has some, for as long as it is computed. Smaller arrays that live longer
    settle in the holes that they leave, so that the next layer's do not fit, and the heap grows by
    more than half of the model's weights. Other C libraries are left as they are.

    Args:
        needed: Whether the model is that large: pages of their own take time.
    """
    library = ctypes.CDLL(None) if needed and sys.platform == "linux" else None
    mallopt = getattr(library, "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, SEPARATE)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, MOST)
        mallopt(TRIM_THRESHOLD, 2 * MOST)
