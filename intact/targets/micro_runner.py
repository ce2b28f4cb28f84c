"""Runs files on TFLite Micro, in a process of its own: `python micro_runner.py FOLDER ARENA`.

For every `NAME.tflite` in the folder, it writes `NAME.npz` with the outputs for the samples in
`NAME.in.npz`, or for one sample of zeros. The interpreter's log goes to stderr, behind a line with
the file's name.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def run(path: Path, arena: int) -> None:
    """Run one file.

    Args:
        path: The file.
        arena: Bytes of the arena.
    """
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(path.read_bytes(), arena_size=arena)
    samples = path.with_suffix(".in.npz")
    if samples.exists():
        inputs = list(np.load(samples).values())
    else:
        details = every(interpreter.get_input_details)
        inputs = [np.zeros((1, *detail["shape"]), detail["dtype"]) for detail in details]
    outputs: list[list[np.ndarray]] = []
    for sample in range(len(inputs[0]) if inputs else 1):
        for index, values in enumerate(inputs):
            interpreter.set_input(values[sample], index)
        interpreter.invoke()
        outputs.append(every(interpreter.get_output))
    interpreter.print_allocations()
    stacked = [np.stack(values) for values in zip(*outputs, strict=True)]
    np.savez(path.with_suffix(".npz"), *stacked)


def every(get: Callable[[int], Any]) -> list[Any]:
    """All values of a method of the interpreter, which does not tell their number.

    Args:
        get: Takes an index.

    Returns:
        The values in order.
    """
    values: list[Any] = []
    while True:
        try:
            values.append(get(len(values)))
        except IndexError:
            return values


def main() -> None:
    """Run all files of the folder that have no result yet."""
    for path in sorted(Path(sys.argv[1]).glob("*.tflite")):
        if path.with_suffix(".done").exists():
            continue
        # Before the run: a file that kills the process is not tried again.
        path.with_suffix(".done").touch()
        print(f"@{path.stem}", file=sys.stderr, flush=True)
        try:
            run(path, int(sys.argv[2]))
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
