"""Which layer loses the accuracy: quantized up to a layer, and float from there on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from intact.calibration.sources import Arrays, check_batch
from intact.errors import IntactError, InvalidDataError
from intact.graph.view import with_outputs
from intact.layers.alignment import Point, Reference, as_real, find_points
from intact.layers.quantized_model import is_quantized
from intact.layers.ranges import check_calibrated
from intact.layers.stateful import refuse_stream
from intact.progress import Progress
from intact.tables import Report, Table


@dataclass(frozen=True, repr=False)
class Bisection(Report):
    """What `bisect` returns; printing it says it in words.

    Args:
        layer: The first layer with which more is lost than was allowed; None if there is none.
        metric: What the scores are.
        float_score: The score of the float model.
        score: The score with all layers quantized.
        before: With all layers before that one quantized.
        after: With that one, too.
        alone: With that one only.
        tried: The layers that were tried, with the scores up to them.

    Example:

    >>> found = Bisection("conv_3", "accuracy", 0.92, 0.85, 0.918, 0.86, alone=0.87)
    >>> print(found)
    Lost at 'conv_3'.
    accuracy  layers in integers
      0.9200  none
      0.9180  those before 'conv_3'
      0.8600  'conv_3', too
      0.8500  all
      0.8700  'conv_3' alone
    It loses this by itself: give it more bits, or keep it in float.
    """

    layer: str | None
    metric: str
    float_score: float
    score: float
    before: float
    after: float
    alone: float | None = None
    tried: tuple[tuple[str, float], ...] = ()

    @property
    def by_itself(self) -> bool:
        """Whether quantizing this layer alone causes at least half of the loss."""
        lost = self.before - self.after
        return self.alone is not None and self.float_score - self.alone >= lost / 2

    def parts(self) -> list[str | Table]:
        """The layer, the scores, and what to do."""
        rows = [(self.float_score, "none"), (self.score, "all")]
        if self.layer is None:
            head, tail = "No layer loses more than was allowed.", []
        else:
            name = repr(self.layer)
            head = f"Lost at {name}."
            rows[1:1] = [(self.before, f"those before {name}"), (self.after, f"{name}, too")]
            if self.alone is not None:
                rows.append((self.alone, f"{name} alone"))
            tail = [
                "It loses this by itself: give it more bits, or keep it in float."
                if self.by_itself
                else "By itself it loses little: what the layers before have lost counts here."
            ]
        cells = [(f"{score:.4f}".rjust(8), text) for score, text in rows]
        width = max(len(self.metric), 8)
        heading = (self.metric.rjust(width), "layers in integers")
        return [head, Table([heading, *((a.rjust(width), b) for a, b in cells)], None), *tail]


def bisect(
    model: keras.Model,
    float_model: keras.Model,
    x: Arrays,
    y: Any = None,
    metric: Callable[[Any], float] | None = None,
    drop: float = 0.01,
    batch_size: int = 32,
    verbose: int = 1,
) -> Bisection:
    """Find the first layer where a quantized model loses accuracy.

    The model runs with its layers quantized up to one of them, and the float model's from
    there on; the layer is found by halving, in about log2(layers) runs over the data. A second
    look says whether that layer loses it by itself, or what came before adds up there.

    Args:
        model: The quantized model, calibrated.
        float_model: The float model that it was made from.
        x: Inputs, an array or several, samples first; some hundred samples.
        y: Classes of the samples, whole numbers. The score is then the accuracy.
        metric: Or a function from the model's outputs (an array, or a list of several) to a
            score; higher is better. Without both, the score is the share of samples that have
            the float model's top-1; and of models that do not classify, 1 less the size of the
            outputs' error relative to the float model's outputs.
        drop: How much of the float model's score may be lost.
        batch_size: How many samples run at once.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        What was found; print it.

    Raises:
        InvalidDataError: The data does not fit the model.
        NotCalibratedError: The quantized model has seen no data.
        IntactError: The models do not belong together.

    Example:

    >>> import intact
    >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    >>> q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    >>> print(bisect(q, model, x, drop=0.5, verbose=0).layer)
    None
    """
    arrays = _checked(model, x)
    reference = Reference(model, float_model)
    points = find_points(model)
    real = {id(p): as_real(_call(p)) for p in points}

    def outputs(replaced: dict[Point, Any]) -> Any:
        runner = with_outputs(model, reference.mixed(replaced))
        data = arrays if len(arrays) > 1 else arrays[0]
        return runner.predict(data, batch_size=batch_size, verbose=0)

    expected = outputs({})
    name, score = _score(expected, y, metric)
    runs = int(np.ceil(np.log2(max(len(points), 2)))) + 2
    bar = Progress("Looking for the layer where accuracy is lost", runs, verbose)

    def tried(chosen: list[Point]) -> float:
        value = score(outputs({p: real[id(p)] for p in chosen}))
        bar.add(1)
        return value

    whole, allowed = score(expected), score(expected) - drop
    low, high = -1, len(points) - 1
    scores = {-1: whole, high: tried(points)}
    while high - low > 1 and scores[high] < allowed:
        middle = (low + high) // 2
        scores[middle] = tried(points[: middle + 1])
        low, high = (low, middle) if scores[middle] < allowed else (middle, high)
    last = len(points) - 1
    steps = tuple((points[i].name, scores[i]) for i in sorted(scores) if i >= 0)
    if scores[high] >= allowed:
        bar.update(runs, finalize=True)
        return Bisection(None, name, whole, scores[last], whole, scores[last], None, steps)
    point = points[high]
    _, alone = reference.alone(points)[high]
    own = score(outputs({point: alone}))
    bar.update(runs, finalize=True)
    return Bisection(point.name, name, whole, scores[last], scores[low], scores[high], own, steps)


def _checked(model: keras.Model, x: Any) -> list[np.ndarray]:
    """The data, if the model can be bisected on it."""
    if not is_quantized(model):
        raise IntactError(
            "Pass the quantized model first, then the float model that it was made from."
        )
    check_calibrated(model, "looking for where it loses accuracy")
    refuse_stream(model, "`bisect`")
    return check_batch(x, model.inputs)


def _call(point: Point) -> Any:
    return point.kernel.outputs


def _score(
    expected: Any, y: Any, metric: Callable[[Any], float] | None
) -> tuple[str, Callable[[Any], float]]:
    """What is scored, and the function from outputs to the score."""
    if metric is not None:
        return getattr(metric, "__name__", "score"), lambda outputs: float(metric(outputs))
    first = expected[0] if isinstance(expected, list) else expected
    classifies = first is expected and first.ndim == 2 and first.shape[1] > 1
    if y is not None:
        classes = np.asarray(y).reshape(-1)
        if not classifies or len(classes) != len(first):
            raise InvalidDataError(
                f"`y` has {len(classes)} classes, and the outputs have the shape "
                f"{getattr(expected, 'shape', None)}. Pass one class for each sample of a model "
                "that classifies, or a `metric`."
            )
        return "accuracy", lambda outputs: float((outputs.argmax(1) == classes).mean())
    if classifies:
        best = first.argmax(1)
        return "same top-1", lambda outputs: float((outputs.argmax(1) == best).mean())

    def closeness(outputs: Any) -> float:
        pairs = zip(keras.tree.flatten(outputs), keras.tree.flatten(expected), strict=True)
        sums = np.sum([[np.sum((a - b) ** 2.0), np.sum(b**2.0)] for a, b in pairs], axis=0)
        return 1.0 - float(np.sqrt(sums[0] / max(sums[1], 1e-30)))

    return "closeness", closeness
