"""Programs of steps on PyTorch, which runs them op by op. Needs PyTorch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from intact.numerics.step_gradients import StepGradients
from intact.numerics.step_program import Numbers, StepProgram

BLOCK = 2**17
"""How many values the gradients of several steps compute at once: what a cache holds."""


def run(
    program: StepProgram,
    numbers: Sequence[Numbers],
    sequences: Sequence[Any],
    states: Sequence[Any],
) -> tuple[Any, Any, Any]:
    """As `intact.numerics.step_loops.run`, of limits that are numbers."""
    numbers = [own if own.limits is None else _with_factor(own, own.limits) for own in numbers]
    trained = [tensor for own in numbers for tensor in own.trained]
    counts = len(sequences), len(states)
    results = Loop.apply(program, numbers, counts, *sequences, *states, *trained)
    first = len(program.finals)
    ends = first + len(program.outputs)
    return results[:first], results[first:ends], results[ends:]


def _with_factor(own: Numbers, limits: Any) -> Numbers:
    """Numbers whose factor is a tensor."""
    return own._replace(limits=limits._replace(factor=torch.tensor(limits.factor)))


class Loop(torch.autograd.Function):
    """Runs a program for each step."""

    @staticmethod
    def forward(ctx: Any, program: Any, numbers: Any, counts: Any, *tensors: Any) -> Any:
        """The final states, what is collected, and the smallest and largest raw values.

        Args:
            ctx: Torch's.
            program: The program.
            numbers: The numbers of each instruction.
            counts: How many tensors are sequences, and how many are states.
            *tensors: The sequences `(steps, batch, size)`, the first states, and the trained
                numbers of all instructions.
        """
        sequences = tensors[: counts[0]]
        states: Sequence[Any] = tensors[counts[0] : sum(counts)]
        steps, batch = sequences[0].shape[:2]
        sizes = [program.sizes[x.target] for x in program.rounding]
        raws = [sequences[0].new_empty((steps, batch, size)) for size in sizes]
        places = iter(raws)
        outs = [next(places).unbind() if x.rounds else [None] * steps for x in program.instructions]
        parts = zip(*(x.unbind() for x in sequences), strict=True)
        before, outputs = [], []
        for now, out in zip(parts, zip(*outs, strict=True), strict=True):
            before.append(states)
            values = program.begin(now, states)
            program.forward(values, numbers, out)
            states = [values[place] for place in program.finals]
            outputs.append([values[place] for place in program.outputs])
        ctx.program, ctx.numbers, ctx.counts = program, numbers, counts
        ctx.save_for_backward(*sequences, *map(torch.stack, zip(*before, strict=True)), *raws)
        ends = [torch.stack(torch.aminmax(raw)) for raw in raws]
        ctx.mark_non_differentiable(*ends)
        # Torch wants no tensor that was an input.
        finals = [x.view_as(x) for x in states]
        return *finals, *map(torch.stack, zip(*outputs, strict=True)), *ends

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients of the tensors."""
        program, numbers, counts = ctx.program, ctx.numbers, ctx.counts
        count = len(program.finals)
        states: Sequence[Any] = gradients[:count]
        of_outputs = gradients[count : count + len(program.outputs)]
        needed = ctx.needs_input_grad[3 + sum(counts) :]
        steps, batch, _ = ctx.saved_tensors[0].shape
        size = max(1, BLOCK // (batch * max(program.sizes)))
        step_gradients = StepGradients(program)
        transposed = step_gradients.transposed(numbers)
        blocks, total = [], None
        for start in range(0, steps, size)[::-1]:
            part = slice(start, start + size)
            saved = [x[part] for x in ctx.saved_tensors]
            values = program.begin(saved[: counts[0]], saved[counts[0] : sum(counts)])
            raws = saved[sum(counts) :]
            program.replay(values, raws, numbers)
            slopes = step_gradients.slopes(numbers, values, raws)
            along = [_by_step(x, len(raws[0])) for x in (*slopes, *(g[part] for g in of_outputs))]
            rows = []
            for now in list(zip(*along, strict=True))[::-1]:
                both = now[: len(slopes)], now[len(slopes) :]
                row, states, products = step_gradients.backward(transposed, *both, states)
                rows.append((*row, *products))
            columns = [torch.stack(column[::-1]) for column in zip(*rows, strict=True)]
            blocks.append(columns[: counts[0]])
            operands = step_gradients.operands(values)
            flat = step_gradients.of_trained(numbers, operands, columns[counts[0] :], needed)
            trained = [g for group in flat for g in group]
            total = trained if total is None else list(map(_sum, total, trained))
        of_sequences = [torch.cat(column[::-1]) for column in zip(*blocks, strict=True)]
        return None, None, None, *of_sequences, *states, *(total or [])


def _by_step(x: Any, steps: int) -> Sequence[Any]:
    """The parts of a tensor for each step; a scalar is the same in all."""
    return x.unbind() if x.ndim > 2 else [x] * steps


def _sum(a: Any, b: Any) -> Any:
    return None if a is None else a + b
