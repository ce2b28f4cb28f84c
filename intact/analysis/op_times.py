"""How long each op of a file takes by itself."""

from intact.errors import IntactError
from intact.litert.runtime import LiteRTModel
from intact.litert.timing import spans
from intact.targets.micro import single_ops

SECONDS = 0.004
"""How long each op is measured."""


def op_latencies(content: bytes) -> dict[int, float]:
    """Measure the ops of a file's first graph, each as a file of its own, on one thread.

    The runtime computes several ops together where it can, so that the sum is not the file's time.

    Args:
        content: The file's bytes.

    Returns:
        By index of the op, the seconds of the shortest run. An op that does not run alone is left
        out.
    """
    times = {}
    for index, file in enumerate(single_ops(content)):
        try:
            times[index] = min(spans([LiteRTModel(file)], SECONDS)[0])
        except IntactError:
            continue
    return times
