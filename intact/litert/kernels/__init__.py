"""The kernel table: one row for each kernel of LiteRT that intact knows.

The writer, `verify`, `inspect`, `check` and the pages of the documentation read it. What integer
kernels require was measured on ai-edge-litert 2.3.0, where they run on the tools of the targets:
`benchmarks/targets.py kernels` repeats that.
"""

from intact.litert.kernels.comparisons import COMPARISONS
from intact.litert.kernels.functions import FUNCTIONS
from intact.litert.kernels.moves import MOVES
from intact.litert.kernels.products import PRODUCTS
from intact.litert.kernels.row import Kernel

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel for kernel in (*COMPARISONS, *FUNCTIONS, *MOVES, *PRODUCTS)
}
"""The rows by the kernels' names in the schema."""


def get_kernel(name: str) -> Kernel:
    """The row of a kernel; an empty one if the table has none.

    Args:
        name: Its name in the schema.

    Example:

    >>> get_kernel("SOFTMAX").fixed["int8"]
    (0.00390625, -128)
    """
    return KERNELS.get(name) or Kernel(name)
