"""Data on disk: `.npy` and `.npz` files, and folders of images."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

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
    check_data_path(path)
    if path.is_dir():
        data: Any = _read_images(path, inputs, samples)
    else:
        data = _read_arrays(path, inputs, array)
    named = data if isinstance(data, dict) else {path.name: data}
    prepared = {name: _prepare(name, value, mean, std, samples) for name, value in named.items()}
    return prepared if isinstance(data, dict) else prepared[path.name]


def count_samples(path: Path, inputs: dict[str, Shape], array: str | None = None) -> int:
    """How many samples there are on disk.

    Args:
        path: As for `load_data`.
        inputs: As for `load_data`.
        array: As for `load_data`.

    Raises:
        InvalidDataError: There is no such data, or it is damaged.
    """
    check_data_path(path)
    if path.is_dir():
        return len(_images(path))
    data = _read_arrays(path, inputs, array)
    first = next(iter(data.values())) if isinstance(data, dict) else data
    return len(first) if first.ndim else 0


def _images(path: Path) -> list[Path]:
    """The images in a folder and its subfolders."""
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
    if not files:
        raise InvalidDataError(f"The folder {str(path)!r} has no images ({', '.join(IMAGES)}).")
    return files


def _prepare(
    name: str,
    values: np.ndarray,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    samples: int | None,
) -> np.ndarray:
    if not values.ndim or not len(values):
        raise InvalidDataError(f"The data in {name!r} is empty.")
    if values.dtype.kind not in "biuf":
        raise InvalidDataError(f"Expected numbers in {name!r}. Received: {values.dtype}.")
    values = values[_chosen(len(values), samples)]
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


def _chosen(count: int, samples: int | None) -> np.ndarray:
    """Indices of some samples, evenly spread, because files are often sorted by class."""
    if samples is None or samples >= count:
        return np.arange(count)
    return np.arange(samples) * count // samples


def _read_arrays(path: Path, inputs: dict[str, Shape], array: str | None) -> Any:
    try:
        with path.open("rb") as file:
            content = np.load(file)
            if isinstance(content, np.ndarray):
                return content
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


def _read_images(path: Path, inputs: dict[str, Shape], samples: int | None) -> np.ndarray:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InvalidDataError(
            "Images are read by Pillow, which is not installed. "
            "Run `pip install 'keras-intact[images]'`."
        ) from error
    shapes = list(inputs.values())
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise InvalidDataError(
            f"{str(path)!r} is a folder of images, and the model takes {inputs}. "
            "Pass a .npz file with an array for each input."
        )
    _, height, width, channels = shapes[0]
    first = channels not in (1, 3) and shapes[0][1] in (1, 3)
    if first:
        _, channels, height, width = shapes[0]
    files = _images(path)
    images = []
    for place in _chosen(len(files), samples):
        image = _open_image(files[place], "L" if channels == 1 else "RGB")
        if height and width:
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(image).reshape(image.height, image.width, -1))
    if len({image.shape for image in images}) > 1:
        raise InvalidDataError(
            "The model takes images of any size, but one batch needs images of one size. "
            f"Resize those in {str(path)!r}."
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
