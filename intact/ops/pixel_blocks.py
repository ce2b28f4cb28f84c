"""Layers that move blocks of pixels to channels and back."""

import keras
from keras import ops

from intact.numerics.tensors import Tensor
from intact.ops.function_layer import FunctionLayer


@keras.saving.register_keras_serializable("intact")
class DepthToSpace(FunctionLayer):
    """Channels become square blocks of pixels, channels last.

    Args:
        block_size: Height and width of a block.

    Example:

    >>> DepthToSpace(2).compute_output_shape((None, 3, 3, 8))
    (None, 6, 6, 2)
    """

    block_size: int

    def call(self, x: Tensor) -> Tensor:
        """The same values, in larger images of fewer channels."""
        _, height, width, channels = ops.shape(x)
        size, rest = self.block_size, channels // self.block_size**2
        x = ops.reshape(x, (-1, height, width, size, size, rest))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, height * size, width * size, rest))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = shape
        size = self.block_size
        if channels is not None and channels % size**2:
            raise ValueError(f"{channels} channels do not divide into blocks of {size} x {size}.")
        grown = (None if n is None else n * size for n in (height, width))
        return (batch, *grown, None if channels is None else channels // size**2)


@keras.saving.register_keras_serializable("intact")
class SpaceToDepth(DepthToSpace):
    """Square blocks of pixels become channels, channels last.

    Args:
        block_size: Height and width of a block.
    """

    def call(self, x: Tensor) -> Tensor:
        """The same values, in smaller images of more channels."""
        _, height, width, channels = ops.shape(x)
        size = self.block_size
        x = ops.reshape(x, (-1, height // size, size, width // size, size, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, height // size, width // size, size * size * channels))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = shape
        size = self.block_size
        if any(n is not None and n % size for n in (height, width)):
            raise ValueError(f"{height} x {width} does not divide into blocks of {size} x {size}.")
        shrunk = (None if n is None else n // size for n in (height, width))
        return (batch, *shrunk, None if channels is None else channels * size**2)
