"""What the peers' scripts share: the cost of a file, and training steps on request.

It imports nothing that a peer's environment may lack.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STEPS = 3


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure a block: seconds on the clock, those of all cores together, and memory in MiB.

    The memory is the peak in the block, less what the process held before it ("before").
    """
    cost: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts again from here.
    before, start, work = _mebibytes("VmRSS"), time.perf_counter(), time.process_time()
    yield cost
    cost["seconds"] = time.perf_counter() - start
    cost["before"] = before
    cost["core_seconds"] = time.process_time() - work
    cost["mebibytes"] = _mebibytes("VmHWM") - before


def write(out: str, content: bytes, cost: dict[str, float]) -> None:
    """Write a file, and beside it what it cost."""
    Path(out).write_bytes(content)
    Path(f"{out}.json").write_text(json.dumps(cost))


def serve(steps: dict[str, Callable[[], object]]) -> None:
    """Answer each line, the name of a step, with its seconds of processor time.

    Writes "ready" after a first step of each, and ends with the input.
    """
    for step in steps.values():
        step()
    print("ready", flush=True)
    while True:
        try:
            step = steps[input()]
        except EOFError:
            return
        start = time.process_time()
        for _ in range(STEPS):
            step()
        print((time.process_time() - start) / STEPS, flush=True)


def _mebibytes(field: str) -> float:
    line = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if line is None:
        raise OSError(f"/proc/self/status has no {field}; this script needs Linux.")
    return int(line[1]) / 1024
