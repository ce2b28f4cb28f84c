"""Calibration over shards: each is observed by itself, and what they gave is merged.

Any engine that maps and reduces does the rest: a pool of processes, Dask, Beam, a queue of jobs.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from intact.calibration.accuracy import warn_of_losses
from intact.calibration.biases import BiasPass, State, without_corrections
from intact.calibration.calibration import RangePass, look, observed_layers, observing
from intact.calibration.sources import FEW, Data, Source
from intact.errors import IntactError, InvalidDataError
from intact.layers.ranges import refuse_nested
from intact.layers.stateful import refuse_stream
from intact.layers.tracked_range import TrackedRange
from intact.memory import separate_pages
from intact.names import ObserverName
from intact.numerics.tensors import to_numpy
from intact.paths import write_whole
from intact.progress import Progress
from intact.quantizers.observers import Observer, get_observer

Part = Literal["ranges", "biases"]
"""What a pass over the data finds."""

HEADER = ("part", "model", "observer", "observers", "shards")
"""The fields of `Observations` that a file has as text."""

PASSES: dict[str, Any] = {"ranges": RangePass, "biases": lambda model, _: BiasPass(model)}


@dataclass(frozen=True)
class Observations:
    """What a model's observers saw of a shard of the data, or of several.

    It is plain data: it can be pickled, saved, and sent to another process.

    Args:
        part: What it was observed for.
        model: A digest of the model that was observed.
        observer: The settings of the observer that all ranges have, or None for the scheme's.
        observers: The settings of each observer.
        states: The state of each, as arrays.
        few: A few samples, an array for each input.
        shards: Which shards these are, of how many, such as `(1, 8)`; empty where it was not said.

    Example:

    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model)
    >>> shard = observe(q, np.eye(4, dtype="float32"), verbose=0)
    >>> shard.save("first.obs")
    >>> merged = Observations.load("first.obs").merge(shard)
    >>> len(merged.states) == len(shard.states)
    True
    """

    part: Part
    model: str
    observer: dict[str, Any] | None
    observers: tuple[dict[str, Any], ...]
    states: tuple[tuple[np.ndarray, ...], ...]
    few: tuple[np.ndarray, ...]
    shards: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        shards = (
            f", shards {', '.join(f'{n}/{of}' for n, of in self.shards)}" if self.shards else ""
        )
        return f"<Observations: {self.part} of {len(self.states)} tensors{shards}>"

    def merge(self, other: "Observations") -> "Observations":
        """What both shards are like together, whichever comes first.

        Args:
            other: The observations of another shard.

        Returns:
            Observations of both.

        Raises:
            IntactError: They are of different models or parts, or an observer's state depends on
                the order of the data; or they have a shard in common.
        """
        if (self.part, self.model) != (other.part, other.model):
            raise IntactError(
                "Cannot merge observations of different models or parts. Received: "
                f"{self.part} of model {self.model[:8]}, {other.part} of model {other.model[:8]}. "
                "Observe each shard with the same file of the quantized model."
            )
        if (self.observer, self.observers) != (other.observer, other.observers):
            raise IntactError(
                "Cannot merge what different observers saw. Pass the same `observer` for each "
                "shard."
            )
        twice = set(self.shards) & set(other.shards)
        if twice:
            raise IntactError(f"Received shard {_named(twice)} twice. Merge each shard once.")
        states = tuple(
            tuple(map(np.asarray, rule.merge(rule.state_type(*a), rule.state_type(*b))))
            for rule, a, b in zip(_rules(self), self.states, other.states, strict=True)
        )
        both = [np.concatenate(pair) for pair in zip(self.few, other.few, strict=True)]
        shards = tuple(sorted(self.shards + other.shards))
        return replace(self, states=states, few=_fewest(both), shards=shards)

    def missing(self) -> list[tuple[int, int]]:
        """The shards that are not among these, where it was said how many there are."""
        counts = {count for _, count in self.shards}
        every = [(number, count) for count in counts for number in range(1, count + 1)]
        return sorted(set(every) - set(self.shards))

    def save(self, path: str | os.PathLike) -> None:
        """Write them to a file.

        Args:
            path: The file.
        """
        header = {name: getattr(self, name) for name in HEADER}
        arrays = {f"state/{i}/{j}": a for i, s in enumerate(self.states) for j, a in enumerate(s)}
        arrays |= {f"few/{i}": array for i, array in enumerate(self.few)}
        content = io.BytesIO()
        text = np.frombuffer(json.dumps(header).encode(), "uint8")
        np.savez_compressed(content, allow_pickle=False, header=text, **arrays)
        write_whole(content.getvalue(), path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Observations":
        """Read them from a file.

        Args:
            path: What `save` wrote.

        Raises:
            InvalidDataError: The file is none of these, or damaged.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as content:
                header = json.loads(content["header"].tobytes())
                header["observers"] = tuple(header["observers"])
                header["shards"] = tuple(map(tuple, header["shards"]))
                count = len(header["observers"])
                states = tuple(_numbered(content, f"state/{i}") for i in range(count))
                return cls(**header, states=states, few=_numbered(content, "few"))
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InvalidDataError(
                f"{str(path)!r} has no observations that can be read. Expected a file that "
                "`Observations.save` or `intact calibrate --state` wrote."
            ) from error


def observe(
    model: keras.Model,
    data: Data,
    steps: int | None = None,
    batch_size: int = 32,
    observer: ObserverName | Observer | None = None,
    part: Part = "ranges",
    shard: tuple[int, int] | None = None,
    verbose: int = 1,
) -> Observations:
    """Observe a shard of the data, without a change of the model.

    No more than one batch is in memory at once, if the data comes so: from a generator, a data
    set, or an array on disk (`np.load(path, mmap_mode="r")`).

    Args:
        model: What `quantize_model` returned: the same one, or the same file, for each shard.
        data: As for `calibrate`.
        steps: How many batches to take at most.
        batch_size: Samples per batch, for arrays.
        observer: As for `calibrate`; any but "moving_average", which depends on the order.
        part: What to observe for. Correcting biases takes a round of its own, before the ranges:
            observe "biases" in all shards, `apply` them, and observe "ranges" with the new model.
        shard: Which shard this is, of how many, from `(1, n)` to `(n, n)`. Then `merge` refuses a
            shard that comes twice, and `apply` one that is missing.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        The observations, to be merged with those of other shards, and applied.

    Raises:
        IntactError: The model has nothing to observe, or keeps a state, or there is no such shard.
        InvalidDataError: The shard is empty, not finite, or wrongly shaped.

    Example:

    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model)
    >>> x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    >>> shards = [observe(q, part, verbose=0) for part in np.split(x, [20, 70])]
    >>> q = apply(q, shards)
    """
    if part not in PASSES:
        raise IntactError(f"Expected part 'ranges' or 'biases'. Received: {part!r}.")
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise IntactError(f"Expected a shard from (1, n) to (n, n). Received: {shard!r}.")
    refuse_nested(model, "observing")
    refuse_stream(model, "observing shards")
    source = Source(data, steps, batch_size, model.inputs, once=True)
    bar = Progress("Observing", source.total(1), verbose)
    digest = _digest(model, part)
    before = State(model, weights=False)
    try:
        with observing(model), separate_pages(model):
            sweep = PASSES[part](model, observer)
            if not sweep.watches:
                raise IntactError(
                    f"Model {model.name!r} has nothing to observe for {part!r}. Make a quantized "
                    "model first: `q = intact.quantize_model(model)`."
                )
            states = look(model, sweep.watches, source, bar)
    finally:
        before.restore()
    if bar.target is None:
        bar.update(source.taken, finalize=True)
    own = None if observer is None else _settings(get_observer(observer))
    observers = tuple(_settings(rule) for _, rule in sweep.watches)
    arrays = tuple(tuple(map(np.asarray, state)) for state in states)
    shards = () if shard is None else (shard,)
    return Observations(part, digest, own, observers, arrays, _fewest(source.few), shards)


def apply(model: keras.Model, observations: Observations | Iterable[Observations]) -> keras.Model:
    """Calibrate a model by what was observed in shards of the data.

    Args:
        model: The quantized model that was observed.
        observations: Those of all shards, in any order; or of those that were merged before.

    Returns:
        The model itself, with the ranges (or the corrected biases) of all the data.

    Raises:
        IntactError: There are no observations, or they are of another model, or a shard is missing.

    Warns:
        AccuracyWarning: As `calibrate`, once the ranges are set.

    Example:

    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model)
    >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    >>> q = apply(q, [observe(q, x[:10], verbose=0), observe(q, x[10:], verbose=0)])
    >>> file = intact.export(q)
    """
    shards = [observations] if isinstance(observations, Observations) else list(observations)
    if not shards:
        raise IntactError("There are no observations to apply. Observe at least one shard.")
    merged = functools.reduce(Observations.merge, shards)
    missing = merged.missing()
    if missing:
        raise IntactError(
            f"Missing: shard {_named(missing)}. Observe all shards of the data and pass them."
        )
    if merged.model != _digest(model, merged.part):
        raise IntactError(
            f"The observations are of another model than {model.name!r}, or its weights have "
            "changed since. Observe all shards with the model that they are applied to."
        )
    fresh = not any(layer.calibrated for layer in observed_layers(model))
    before = State(model, weights=False)
    try:
        observer = None if merged.observer is None else get_observer(merged.observer)
        sweep = PASSES[merged.part](model, observer)
        sweep.apply(
            [rule.state_type(*s) for rule, s in zip(_rules(merged), merged.states, strict=True)]
        )
    except BaseException:
        before.restore()
        raise
    if merged.part == "ranges":
        warn_of_losses(model, list(merged.few), fresh)
    return model


def _named(shards: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{number}/{count}" for number, count in sorted(shards))


def _settings(observer: Observer) -> dict[str, Any]:
    """An observer as plain data, as a file gives it back."""
    return dict(json.loads(json.dumps(observer.get_config())))


def _rules(observations: Observations) -> list[Observer]:
    return [get_observer(settings) for settings in observations.observers]


def _digest(model: keras.Model, part: Part) -> str:
    """What tells a model from others: its graph, and its weights, but for the ranges."""
    tracked = [layer for layer in model.layers if isinstance(layer, TrackedRange)]
    ranges = {id(variable) for layer in tracked for variable in layer.weights}
    digest = hashlib.sha256(json.dumps([layer.name for layer in model.layers]).encode())
    # Correcting the biases begins with those from before any correction.
    with without_corrections(model) if part == "biases" else contextlib.nullcontext():
        for variable in model.variables:
            if id(variable) not in ranges:
                digest.update(to_numpy(variable).tobytes())
    return digest.hexdigest()


def _fewest(few: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """A few of some samples, the same ones in whatever order these come."""
    arrays = [np.asarray(array) for array in few]
    samples = [b"".join(array[n].tobytes() for array in arrays) for n in range(len(arrays[0]))]
    keys = [hashlib.sha256(sample).digest() for sample in samples]
    chosen = sorted(range(len(keys)), key=keys.__getitem__)[:FEW]
    return tuple(array[chosen] for array in arrays)


def _numbered(content: Any, name: str) -> tuple[np.ndarray, ...]:
    """The arrays `name/0`, `name/1` and so on of a file."""
    names = [key for key in content.files if key.rpartition("/")[0] == name]
    return tuple(content[f"{name}/{i}"] for i in range(len(names)))
