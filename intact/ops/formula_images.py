"""Formulas of images: crops, borders, colours, filters, and pixels taken from other places."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor, is_symbolic, to_numpy
from intact.ops.base import Case


def _channels_last(formula: Callable[..., Any]) -> Callable[..., Any]:
    """A formula of images that have their channels last, for images of both layouts."""

    def of_any(layer: Any, x: Tensor, *others: Any, **settings: Any) -> Any:
        if layer.data_format != "channels_first":
            return formula(layer, x, *others, **settings)
        y = formula(layer, ops.transpose(x, (0, 2, 3, 1)), *others, **settings)
        return ops.transpose(y, (0, 3, 1, 2, *range(4, len(y.shape))))

    return of_any


def _margins(layer: Any, x: Tensor, sign: int) -> list[tuple[int, int]]:
    """The rows and columns to add to (or, with a sign of -1, remove from) both axes."""
    margins = []
    ends = (("top", "bottom", "height"), ("left", "right", "width"))
    for axis, (first, last, size) in enumerate(ends, 1):
        word = "padding" if sign > 0 else "cropping"
        before, after = (getattr(layer, f"{end}_{word}") for end in (first, last))
        target = getattr(layer, f"target_{size}")
        if target is not None:
            total = sign * (target - x.shape[axis])
            before = total - after if before is None else before
            after = total - before
        margins.append((before, after))
    return margins


def _cropped(layer: Any, x: Tensor) -> Tensor:
    (top, bottom), (left, right) = _margins(layer, x, -1)
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


def _padded(layer: Any, x: Tensor) -> Tensor:
    return ops.pad(x, ((0, 0), *_margins(layer, x, 1), (0, 0)))


def _hsv(layer: Any, x: Tensor) -> Tensor:
    r, g, b = ops.split(x, 3, axis=-1)
    value, least = ops.max(x, axis=-1, keepdims=True), ops.min(x, axis=-1, keepdims=True)
    span = value - least
    share = 1.0 / (6.0 * ops.where(span > 0.0, span, 1.0))
    hue = ops.where(ops.equal(value, g), share * (b - r) + 2.0 / 6.0, share * (r - g) + 4.0 / 6.0)
    hue = ops.where(ops.equal(value, r), share * (g - b), hue)
    hue = ops.where(span > 0.0, hue, 0.0)
    hue = ops.where(hue < 0.0, hue + 1.0, hue)
    saturation = span / ops.where(value > 0.0, value, 1.0)
    return ops.concatenate([hue, saturation, value], axis=-1)


def _rgb(layer: Any, x: Tensor) -> Tensor:
    hue, saturation, value = ops.split(x, 3, axis=-1)
    # The red, green and blue of a hue from 0 to 1.
    angle = (hue - ops.floor(hue)) * 6.0
    red = ops.clip(ops.abs(angle - 3.0) - 1.0, 0.0, 1.0)
    green, blue = (ops.clip(2.0 - ops.abs(angle - place), 0.0, 1.0) for place in (2.0, 4.0))
    shares = ops.concatenate([red, green, blue], axis=-1)
    return value * (1.0 - saturation + saturation * shares)


def _filtered(x: Tensor, function: Callable[..., Any], size: int, padding: str) -> Tensor:
    """A filter with zeros beyond the edges, given by its response to one bright pixel."""
    dot = np.zeros((1, 2 * size - 1, 2 * size - 1, 1), "float32")
    dot[0, size - 1, size - 1] = 1.0
    response = to_numpy(function(dot)).reshape(2 * size - 1, 2 * size - 1, 1, -1)
    first = size // 2
    kernel = response[first : first + size, first : first + size][::-1, ::-1]
    kernel = np.repeat(kernel, x.shape[-1], axis=2)
    return ops.depthwise_conv(x, np.ascontiguousarray(kernel), 1, padding, "channels_last")


def _blurred(layer: Any, x: Tensor) -> Tensor:
    size, sigma = tuple(layer.kernel_size), tuple(layer.sigma)
    return _filtered(
        x,
        lambda dot: ops.image.gaussian_blur(dot, size, sigma, "channels_last"),
        size[0],
        "same",
    )


def _edges(layer: Any, x: Tensor) -> Tensor:
    y = _filtered(x, lambda dot: ops.image.sobel_edges(dot, "channels_last"), 3, "same")
    return ops.reshape(y, (-1, *x.shape[1:], 2))


def _scaled(layer: Any, x: Tensor, shape: Any, scale: Any, translation: Any) -> Tensor:
    """Resampling along each axis, as a product with the response to each place."""
    wanted = to_numpy(shape).tolist()
    scale, translation = (np.ravel(to_numpy(part)) for part in (scale, translation))
    for dim, factor, move in zip(layer.spatial_dims, scale, translation, strict=True):
        size = x.shape[dim]
        matrix = ops.image.scale_and_translate(
            np.eye(size, dtype="float32"),
            (wanted[dim], size),
            np.array([factor], "float32"),
            np.array([move], "float32"),
            (0,),
            layer.method,
            layer.antialias,
        )
        moved = ops.matmul(ops.moveaxis(x, dim, -1), to_numpy(matrix).T)
        x = ops.moveaxis(moved, -1, dim)
    return x


def _mirrored(index: np.ndarray, size: int) -> np.ndarray:
    last = max(size - 1, 1)
    return np.abs((index + last) % (2 * last) - last)


FIXES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "constant": lambda index, size: np.clip(index, 0, size - 1),
    "nearest": lambda index, size: np.clip(index, 0, size - 1),
    "wrap": lambda index, size: index % size,
    "mirror": _mirrored,
    "reflect": lambda index, size: (_mirrored(2 * index + 1, 2 * size + 1) - 1) // 2,
}
"""By the fill mode, the pixel that stands for one beyond the edges."""


def _nodes(layer: Any, at: Any, size: int) -> list[tuple[Any, Any, Any]]:
    """The places beside a coordinate: which ones, whether they are inside, and their weights."""
    constant, mode = not is_symbolic(at), getattr(layer, "fill_mode", "constant")
    xp: Any = np if constant else ops
    if layer.interpolation == "nearest":
        low, weights = xp.round(at), [1.0]
    else:
        rest = xp.mod(at, 1.0)
        low, weights = xp.floor(at), [1.0 - rest, rest]
    low = low.astype("int32") if constant else ops.cast(low, "int32")
    nodes = []
    for step, weight in enumerate(weights):
        place, inside = low + step, True
        if mode == "constant":
            inside = xp.logical_and(place >= 0, place < size)
        fixed = FIXES[mode](place, size) if constant else ops.clip(place, 0, size - 1)
        nodes.append((fixed, inside, weight))
    return nodes


def _sampled(layer: Any, x: Tensor, rows: Any, columns: Any) -> Tensor:
    """The pixels of images at coordinates, each of which has the sizes of an image, flat."""
    height, width, channels = x.shape[1:]
    flat = ops.reshape(x, (-1, height * width * channels))
    channel = np.tile(np.arange(channels), height * width)
    total = None
    for row, inside_y, weight_y in _nodes(layer, rows, height):
        for column, inside_x, weight_x in _nodes(layer, columns, width):
            place = (row * width + column) * channels + channel
            if is_symbolic(place):
                pixels = ops.take_along_axis(flat, place, axis=1)
            else:
                pixels = ops.take(flat, place, axis=1)
            for inside in (inside_y, inside_x):
                if inside is not True:
                    pixels = ops.where(inside, pixels, float(layer.fill_value))
            part = pixels * (weight_y * weight_x)
            total = part if total is None else total + part
    return ops.reshape(total, (-1, height, width, channels))


def _affine(layer: Any, x: Tensor, transform: Any) -> Tensor:
    """Pixels taken from the coordinates to which `[a0, a1, a2, b0, b1, b2, c0, c1]` maps them."""
    height, width, channels = x.shape[1:]
    grid = np.stack(np.meshgrid(*map(np.arange, (height, width, channels)), indexing="ij"))
    places = np.concatenate([grid.reshape(3, -1), np.ones((1, height * width * channels))])
    places = places.astype("float32")
    order = np.array([[4, 3, 6, 5], [1, 0, 7, 2]])
    if is_symbolic(transform):
        matrix = ops.reshape(ops.take(transform, order.ravel(), axis=1), (-1, 2, 4))
        rows, columns = ops.unstack(ops.matmul(matrix, places), axis=1)
    else:
        rows, columns = np.ravel(to_numpy(transform))[order] @ places
    return _sampled(layer, x, rows, columns)


def _perspective(layer: Any, x: Tensor, start: Any, end: Any) -> Tensor:
    """Pixels taken from the coordinates to which a homography maps them."""
    height, width, channels = x.shape[1:]
    (u, v), (a, b) = (to_numpy(points).reshape(4, 2).T.astype("float64") for points in (start, end))
    one, zero = np.ones(4), np.zeros(4)
    equations = np.concatenate(
        [
            np.stack([a, b, one, zero, zero, zero, -u * a, -u * b], axis=1),
            np.stack([zero, zero, zero, a, b, one, -v * a, -v * b], axis=1),
        ]
    )
    h = np.linalg.solve(equations, np.concatenate([u, v]))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    below = h[6] * columns + h[7] * rows + 1.0
    places = (
        (h[3] * columns + h[4] * rows + h[5]) / below,
        (h[0] * columns + h[1] * rows + h[2]) / below,
    )
    return _sampled(layer, x, *(np.repeat(p.ravel(), channels).astype("float32") for p in places))


FORMULAS: dict[str, Callable[..., Any]] = {
    "AffineTransform": _channels_last(_affine),
    "CropImages": _channels_last(_cropped),
    "GaussianBlur": _channels_last(_blurred),
    "HSVToRGB": _channels_last(_rgb),
    "PadImages": _channels_last(_padded),
    "PerspectiveTransform": _channels_last(_perspective),
    "RGBToHSV": _channels_last(_hsv),
    "ScaleAndTranslate": _scaled,
    "SobelEdges": _channels_last(_edges),
}
"""Per operation, its formula: a function of the operation and its operands."""


def _is_batch(layer: Any, x: Tensor, *others: Any) -> bool:
    return len(x.shape) == 4 and None not in x.shape[1:]


def _takes_transform(layer: Any, x: Tensor, transform: Any) -> bool:
    if is_symbolic(transform):
        return _is_batch(layer, x) and layer.fill_mode in ("constant", "nearest")
    return _is_batch(layer, x) and np.size(to_numpy(transform)) == 8


def _takes_points(layer: Any, x: Tensor, start: Any, end: Any) -> bool:
    constant = not is_symbolic(start) and not is_symbolic(end)
    return _is_batch(layer, x) and constant and np.size(to_numpy(start)) == 8


IMAGES = "it takes a batch of images of known size"

LIMITS: dict[str, tuple[Callable[..., bool], str]] = {
    **dict.fromkeys(("CropImages", "HSVToRGB", "PadImages", "RGBToHSV"), (_is_batch, IMAGES)),
    "SobelEdges": (_is_batch, IMAGES),
    "AffineTransform": (
        _takes_transform,
        f"{IMAGES}; its transform is one constant, or one for each image, and then its fill mode "
        "is 'constant' or 'nearest'",
    ),
    "GaussianBlur": (
        lambda layer, x: (
            _is_batch(layer, x)
            and layer.kernel_size[0] == layer.kernel_size[1]
            and layer.kernel_size[0] % 2 == 1
        ),
        f"{IMAGES}, and its kernel is square, of an odd size",
    ),
    "PerspectiveTransform": (_takes_points, f"{IMAGES}, and its points are constant"),
    "ScaleAndTranslate": (
        lambda layer, x, shape, scale, translation: (
            not any(map(is_symbolic, (scale, translation)))
            and 0 not in layer.spatial_dims
            and None not in x.shape[1:]
        ),
        "its scale and translation are constant, and it leaves the batch alone",
    ),
}
"""Limits of formulas: the condition under which one applies, and the reason otherwise."""

TURN = np.array([0.9, 0.2, -0.3, -0.1, 1.1, 0.4, 0.0, 0.0], "float32")
MOVES = np.array([0.1] * 6 + [0.0] * 2, "float32")
CORNERS = np.array([[0, 0], [4, 0], [0, 3], [4, 3]], "float32")

CASES: dict[str, Case] = {
    "pad_images crop_images": Case(
        lambda: (
            lambda x: ops.image.pad_images(
                ops.image.crop_images(x, 1, 0, target_height=3, target_width=4), 0, 1, 2, 1
            )
        ),
        (5, 6, 2),
    ),
    "hsv_to_rgb": Case(lambda: lambda x: ops.image.hsv_to_rgb(x), (3, 4, 3), low=0.0),
    "rgb_to_hsv": Case(lambda: lambda x: ops.image.rgb_to_hsv(x)[..., 1:], (3, 4, 3), low=0.1),
    "gaussian_blur": Case(lambda: lambda x: ops.image.gaussian_blur(x), (5, 6, 2)),
    "sobel_edges": Case(lambda: lambda x: ops.image.sobel_edges(x)[:, 1:-1, 1:-1], (5, 6, 2)),
    "affine_transform": Case(
        lambda: lambda x, t: ops.image.affine_transform(x, t * MOVES + TURN), [(4, 5, 2), (8,)]
    ),
    "perspective_transform": Case(
        lambda: layers.Lambda(
            lambda x: ops.image.perspective_transform(x, CORNERS, CORNERS * 0.9 + 0.1),
            output_shape=(4, 5, 2),
        ),
        (4, 5, 2),
    ),
}
"""Cases, by the operations that they have; older versions of Keras lack some."""
