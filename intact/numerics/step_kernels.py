"""What the instructions of a step compute with: the same functions on each backend."""

from typing import Any

from intact.numerics.backend_kernels import TORCH

if TORCH:
    from intact.numerics import torch_step_kernels as own
else:
    from intact.numerics import keras_step_kernels as own  # type: ignore[no-redef]

kernels: Any = own
