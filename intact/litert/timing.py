"""How long a LiteRT file takes."""

import contextlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intact.errors import IntactError
from intact.litert.runtime import LiteRTModel, load_litert
from intact.names import Kernels
from intact.tables import Report, Table


@dataclass(frozen=True, repr=False)
class Timing(Report):
    """What `benchmark` returns; printing it gives a sentence.

    Args:
        best: Shortest time of a run, in seconds.
        median: Median of the runs.
        slow: Nine of ten runs are faster.
        runs: How many runs there were.
        threads: Threads of the runtime.
        kernels: Its kernels.

    Example:

    >>> print(Timing(best=1e-3, median=1.25e-3, slow=2e-3, runs=800, threads=1, kernels="default"))
    1.250 ms for one sample (median of 800 runs; best 1.000 ms, 90 % within 2.000 ms)
    1 thread, default kernels
    """

    best: float
    median: float
    slow: float
    runs: int
    threads: int
    kernels: str

    def parts(self) -> list[str | Table]:
        """The times, and what ran."""
        best, median, slow = (f"{1e3 * t:.3f} ms" for t in (self.best, self.median, self.slow))
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        runs = f"median of {self.runs} runs; best {best}, 90 % within {slow}"
        return [f"{median} for one sample ({runs})", f"{threads}, {self.kernels} kernels"]


def benchmark(
    file: str | os.PathLike | bytes,
    threads: int = 1,
    seconds: float = 1.0,
    kernels: Kernels = "default",
) -> Timing:
    """Measure how long a LiteRT file takes for one sample on this machine.

    Args:
        file: Path of a `.tflite` file, or its bytes.
        threads: Threads that the runtime may use.
        seconds: How long to measure, after a run to warm up.
        kernels: As for `load_litert`.

    Returns:
        The times; print it.

    Raises:
        IntactError: There is no such file, it is not a LiteRT file that runs, or there is no
            time to measure in.

    Example:

    >>> import intact, keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> benchmark(intact.export(model), seconds=0.01).runs > 0
    True
    """
    if threads < 1 or seconds <= 0:
        raise IntactError(
            "Expected at least one thread and more than 0 seconds. "
            f"Received: threads={threads}, seconds={seconds}."
        )
    model = load_litert(file, threads, kernels)
    times = spans([model], seconds)[0]
    best, median, slow = (float(np.quantile(times, q)) for q in (0, 0.5, 0.9))
    return Timing(best, median, slow, len(times), threads, kernels)


def processor() -> str:
    """The name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def spans(models: Sequence[LiteRTModel], seconds: float) -> list[list[float]]:
    """The run times of files, measured in turns, so that other load slows all alike.

    Args:
        models: The files, loaded.
        seconds: How long to measure, for each of them.

    Returns:
        For each file, the seconds of its runs: at least one.
    """
    for model in models:
        # This sets the inputs and warms up, so that only the runtime is timed.
        model.run_on_zeros()
    times_of: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + seconds * len(models)
    while not times_of[-1] or time.perf_counter() < end:
        for model, times in zip(models, times_of, strict=True):
            start = time.perf_counter()
            model.interpreter.invoke()
            times.append(time.perf_counter() - start)
    return times_of
