"""Programs of steps on JAX, by two scans: one forward and one back. Needs JAX."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from intact.numerics.step_gradients import StepGradients
from intact.numerics.step_program import Numbers, StepProgram
from intact.numerics.step_split import split


def run(program: StepProgram, numbers: list[Numbers], sequences: list, states: list) -> Any:
    """As `intact.numerics.step_loops.run`."""
    parts = split(program)
    tensors = parts.numbers(numbers), parts.sequences(sequences), states
    arrays = jax.tree.map(partial(jnp.asarray, dtype="float32"), tensors)
    finals, outputs, ends = _loop(parts.program, *arrays)
    return finals, outputs, parts.ends(ends)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(program: StepProgram, numbers: Any, sequences: Any, states: Any) -> Any:
    return _forward(program, numbers, sequences, states)[0]


def _forward(program: StepProgram, numbers: Any, sequences: Any, states: Any) -> tuple[Any, Any]:
    """The results, and what the gradients need."""
    step_gradients = StepGradients(program)

    def step(before: list[Any], now: list[Any]) -> tuple[list[Any], Any]:
        values = program.begin(now, before)
        program.forward(values, numbers)
        outputs = [values[place] for place in program.outputs]
        return [values[place] for place in program.finals], (before, outputs)

    finals, (before, outputs) = jax.lax.scan(step, states, sequences)
    # Raw values are computed again, as keeping them would take the loop longer.
    values = program.begin(sequences, before)
    raws = program.forward(values, numbers)
    ends = [jnp.stack([jnp.min(raw), jnp.max(raw)]) for raw in raws]
    slopes = step_gradients.slopes(numbers, values, raws)
    return (finals, outputs, ends), (numbers, slopes, step_gradients.operands(values))


def _backward(program: StepProgram, kept: Any, gradients: Any) -> tuple[Any, Any, Any]:
    """The gradients of numbers, sequences and first states."""
    numbers, all_slopes, operands = kept
    of_finals, of_outputs, _ = gradients
    step_gradients = StepGradients(program)
    transposed = step_gradients.transposed(numbers)
    along = [slope if slope.ndim > 2 else None for slope in all_slopes]

    def step(after: list[Any], now: Any) -> tuple[list[Any], Any]:
        parts, of_outputs = now
        pairs = zip(parts, all_slopes, strict=True)
        slopes = [same if part is None else part for part, same in pairs]
        row, before, products = step_gradients.backward(transposed, slopes, of_outputs, after)
        return before, (row, products)

    now = along, of_outputs
    of_states, (of_sequences, of_products) = jax.lax.scan(step, of_finals, now, reverse=True)
    trained = step_gradients.of_trained(numbers, operands, of_products)
    of_numbers = [
        jax.tree.map(jnp.zeros_like, own)._replace(trained=own_trained)
        for own, own_trained in zip(numbers, trained, strict=True)
    ]
    return of_numbers, of_sequences, of_states


_loop.defvjp(_forward, _backward)
