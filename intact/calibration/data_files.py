"""Data on disk: `.npy` and `.npz` files, and folders of images."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from intact.errors import InvalidDataError
from intact.paths import check_data_path

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
"""The suffixes of image files."""

Shape = tuple[int | None, ...]


def load_data(
    path: Path,
    inputs: dict[str, Shape],
    array: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    samples: int | None = None,
) -> Any:
    """Samples for a model, from a file or a folder.

    Args:
        path: A `.npy` file; a `.npz` file with one array, or one for each input, named after
            it; or a folder of images, which are resized and cropped to the input's size.
        inputs: Names and shapes of the model's inputs, samples first.
        array: Which array of a `.npz` file to take.
        mean: Subtracted from the values: one number, or one per channel.
        std: What the values are then divided by, likewise.
        samples: How many samples to take at most, evenly from all.

    Returns:
        An array; or a dict of arrays, if there are several inputs.

    Raises:
        InvalidDataError: There is no such data, it is damaged, empty, not finite, or does not
            fit the inputs.

    Example:

    >>> np.save("x.npy", np.arange(12, dtype="uint8").reshape(3, 4))
    >>> load_data(Path("x.npy"), {"x": (None, 4)}, mean=(4.0,), std=(2.0,), samples=1)
    array([[-2. , -1.5, -1. , -0.5]], dtype=float32)
    """
    data = DiskData(path, inputs, array, mean, std)
    return data.read(chosen(len(data), samples))


class DiskData:
    """Samples in a file or a folder, read when they are asked for.

    Args:
        path: As for `load_data`; so are the others.
    """

    def __init__(
        self,
        path: Path,
        inputs: dict[str, Shape],
        array: str | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        check_data_path(path)
        self.path, self.inputs = path, inputs
        self.mean, self.std = mean, std
        self.images = _images(path, inputs) if path.is_dir() else None
        self.arrays: Any = None if path.is_dir() else _read_arrays(path, inputs, array)

    def __len__(self) -> int:
        if self.images is not None:
            return len(self.images)
        arrays = self.arrays
        first = next(iter(arrays.values())) if isinstance(arrays, dict) else arrays
        return len(first) if first.ndim else 0

    def read(self, places: np.ndarray) -> Any:
        """Some of the samples.

        Args:
            places: Which.

        Returns:
            An array; or a dict of arrays, if there are several inputs.
        """
        if self.images is not None:
            files = [self.images[place] for place in places]
            return _prepare(self.path.name, _read_images(files, self.inputs), self.mean, self.std)
        if isinstance(self.arrays, dict):
            parts = self.arrays.items()
            return {name: self._prepared(name, value, places) for name, value in parts}
        return self._prepared(self.path.name, self.arrays, places)

    def batches(self, places: np.ndarray, batch_size: int) -> Iterator[Any]:
        """Some of the samples, read batch by batch.

        Args:
            places: Which.
            batch_size: How many at once.
        """
        for first in range(0, len(places), batch_size):
            yield self.read(places[first : first + batch_size])

    def _prepared(self, name: str, values: Any, places: np.ndarray) -> np.ndarray:
        if not values.ndim or not len(values):
            raise InvalidDataError(f"The data in {name!r} is empty.")
        if len(values) <= places.max(initial=-1):
            raise InvalidDataError(
                f"All inputs need the same number of samples. Received: {len(values)} in {name!r}."
            )
        return _prepare(name, np.asarray(values[places]), self.mean, self.std)


def _images(path: Path, inputs: dict[str, Shape]) -> list[Path]:
    """The images in a folder and its subfolders, for a model that takes images."""
    shapes = list(inputs.values())
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise InvalidDataError(
            f"{str(path)!r} is a folder of images, and the model takes {inputs}. "
            "Pass a .npz file with an array for each input."
        )
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
    if not files:
        raise InvalidDataError(f"The folder {str(path)!r} has no images ({', '.join(IMAGES)}).")
    return files


def _prepare(
    name: str,
    values: np.ndarray,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise InvalidDataError(f"Expected numbers in {name!r}. Received: {values.dtype}.")
    if mean or std:
        # Floats are scaled, too, because the caller asks for it.
        for what, numbers in (("mean", mean), ("std", std)):
            if numbers and len(numbers) not in (1, values.shape[-1]):
                raise InvalidDataError(
                    f"Expected one {what}, or one for each of the {values.shape[-1]} channels. "
                    f"Received: {len(numbers)}."
                )
        by = np.array(std or 1.0, "float32")
        values = (values.astype("float32") - np.array(mean or 0.0, "float32")) / by
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InvalidDataError(f"The data in {name!r} has values that are NaN or infinite.")
    return values


def chosen(count: int, samples: int | None) -> np.ndarray:
    """Indices of some samples, evenly spread, because files are often sorted by class.

    Args:
        count: How many there are.
        samples: How many to take at most.
    """
    if samples is None or samples >= count:
        return np.arange(count)
    return np.arange(samples) * count // samples


def _read_arrays(path: Path, inputs: dict[str, Shape], array: str | None) -> Any:
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX:
                # An array that lies in a file of its own is read where it is used.
                return np.load(path, mmap_mode="r")
            file.seek(0)
            content = np.load(file)
            # Any zip archive passes for a .npz file.
            packed = [n for n in content.zip.namelist() if n.endswith(".npy")]
            names = [n.removesuffix(".npy") for n in packed]
            if not names:
                raise ValueError
            if array is None and set(inputs) <= set(names):
                wanted = list(inputs)
            else:
                wanted = [array] if array is not None else names
            if len(wanted) != len(inputs) or (len(wanted) > 1 and wanted != list(inputs)):
                raise InvalidDataError(
                    f"{str(path)!r} has the arrays {', '.join(names)}, and the model "
                    f"the inputs {', '.join(inputs)}. Say which to take with `--array NAME`, or "
                    "name the arrays after the inputs."
                )
            if wanted[0] not in names:
                raise InvalidDataError(
                    f"{str(path)!r} has no array {wanted[0]!r}, but {', '.join(names)}."
                )
            arrays = {name: content[name] for name in wanted}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InvalidDataError(f"{str(path)!r} is not a .npy or .npz file of numbers.") from error
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def _read_images(files: list[Path], inputs: dict[str, Shape]) -> np.ndarray:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InvalidDataError(
            "Images are read by Pillow, which is not installed. "
            "Run `pip install 'keras-intact[images]'`."
        ) from error
    (shape,) = inputs.values()
    _, height, width, channels = shape
    first = channels not in (1, 3) and shape[1] in (1, 3)
    if first:
        _, channels, height, width = shape
    images = []
    for file in files:
        image = _open_image(file, "L" if channels == 1 else "RGB")
        if height and width:
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(image).reshape(image.height, image.width, -1))
    if len({image.shape for image in images}) > 1:
        raise InvalidDataError(
            "The model takes images of any size, but one batch needs images of one size. "
            f"Resize those in {str(files[0].parent)!r}."
        )
    batch = np.stack(images)
    return batch.transpose(0, 3, 1, 2) if first else batch


def _open_image(path: Path, mode: str) -> Any:
    """An image of Pillow, upright and of a mode."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert(mode)
    except Image.DecompressionBombError as error:
        raise InvalidDataError(
            f"The image {str(path)!r} is too large: {error}. Make it smaller first."
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidDataError(f"{str(path)!r} is not an image that can be read.") from error
