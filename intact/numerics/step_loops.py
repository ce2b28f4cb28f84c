"""Runs the program of a step for each step of sequences."""

from collections.abc import Sequence
from typing import Any

from intact.numerics.backend_kernels import JAX, TORCH
from intact.numerics.step_program import Numbers, StepProgram

if TORCH:
    from intact.numerics import torch_step_loop as own
elif JAX:
    from intact.numerics import jax_step_loop as own  # type: ignore[no-redef]
else:
    from intact.numerics import tensorflow_step_loop as own  # type: ignore[no-redef]

loop: Any = own


def run(
    program: StepProgram,
    numbers: Sequence[Numbers],
    sequences: Sequence[Any],
    states: Sequence[Any],
) -> tuple[list[Any], list[Any], list[Any]]:
    """Run a program for each step of sequences.

    Args:
        program: The program.
        numbers: The numbers of each instruction.
        sequences: Tensors of shape `(steps, batch, size)`.
        states: The first states, `(batch, size)`.

    Returns:
        `(finals, outputs, ends)`: the states after the last step, what is collected of all steps,
        and of each instruction that rounds the smallest and the largest raw value, which have no
        gradient.
    """
    finals, outputs, ends = loop.run(program, list(numbers), list(sequences), list(states))
    return finals, outputs, ends
