"""Runs the steps of a loop that trains by their program."""

from typing import Any

from intact.graph.view import Node
from intact.layers.loop_programs import LoopProgram, Origin, Recipe
from intact.numerics.affine import QTensor, Scaled, first_part
from intact.numerics.light_ops import ops
from intact.numerics.scanning import joined
from intact.numerics.step_loops import run
from intact.numerics.step_program import Numbers, Products, Shifted
from intact.numerics.tensors import Tensor
from intact.ops.registry import get_op


class ProgramRun:
    """One call of a loop that trains, by its program.

    Args:
        training: The `TrainingRun`, with the roundings of all quantizers.
        program: The program.
        sequences: The sequences.
    """

    def __init__(self, training: Any, program: LoopProgram, sequences: list[Any]) -> None:
        self.training = training
        self.loop = training.loop
        self.program = program
        self.sequences = sequences
        self.units: list[Any] = []

    def run(self, states: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
        """The final states and what is collected; ranges follow.

        Args:
            states: The first states.
        """
        form = self.loop.form
        numbers = self.numbers()
        along = [_by_step(first_part(x), form.backwards) for x in self.sequences]
        parts = [along[index][..., part] for index, part in self.program.parts]
        first = [ops.reshape(first_part(x), (-1, x[0].shape[-1])) for x in states]
        finals, outputs, ends = run(self.program.program, numbers, parts, first)
        self.observe(ends)
        shapes = [first_part(end).shape[1:] for end in self.loop.ends]
        finals = [
            ops.reshape(x, (-1, *shape))
            for x, shape in zip(finals, shapes[form.joins :], strict=True)
        ]
        outputs = [joined(ops.expand_dims(x, 2), form.turned) for x in outputs]
        return finals, outputs

    def scale(self, origin: Origin | None) -> Any:
        """The scale of a value.

        Args:
            origin: Where it comes from.
        """
        if isinstance(origin, int):
            return self.sequences[origin].scale
        assert isinstance(origin, Node)
        return self.training.grids[id(origin.layer)][0]

    def numbers(self) -> list[Numbers]:
        """What all steps have in common, of each instruction."""
        results: list[Numbers] = []
        for recipe in self.program.recipes:
            if isinstance(recipe.instruction, Products):
                results.append(self.of_products(recipe))
                continue
            if isinstance(recipe.instruction, Shifted):
                unit, fixed = 1.0, tuple(map(ops.stop_gradient, results[-1].trained[1:]))
            else:
                unit, fixed = self.of_operands(recipe)
            limits = None
            if recipe.quantizer is not None:
                limits = self.training.roundings[id(recipe.quantizer)].limits(unit)
                self.units.append(unit)
            results.append(Numbers((), fixed, limits))
        return results

    def of_operands(self, recipe: Recipe) -> tuple[Any, tuple[Any, ...]]:
        """The unit of an instruction's results, and its fixed numbers."""
        scales = [self.scale(origin) for origin in recipe.origins if origin is not None]
        if recipe.quantizer is None:
            # In inference the scales of a choice are one and the same.
            return None, (scales[0] / scales[1],) if len(scales) == 2 else ()
        rounding = self.training.roundings[id(recipe.quantizer)]
        return recipe.instruction.unit(scales, rounding.sign)

    def of_products(self, recipe: Recipe) -> Numbers:
        """The kernel of products, and by what they go on."""
        assert recipe.weighted is not None
        layer: Any = recipe.weighted.layer
        x = QTensor(None, self.scale(recipe.origins[0]), None, ops.ones((), "bool"))
        kernel, acc = self.training.biased(get_op(layer.layer), layer, x)
        factor = acc.input_scale * acc.weight_scale
        return Numbers((kernel, factor, acc.bias * factor))

    def observe(self, ends: list[Tensor]) -> None:
        """Let ranges follow the values of all steps.

        Args:
            ends: The smallest and the largest raw value of each instruction that rounds.
        """
        calls = [recipe.quantizer for recipe in self.program.recipes if recipe.quantizer]
        for node, unit, both in zip(calls, self.units, ends, strict=True):
            rounding = self.training.roundings[id(node)]
            if rounding.observes:
                layer: Any = node.layer
                scaled = Scaled(both, unit)
                layer._observe(node.kwargs.get("slot", 0), scaled, [], rounding.clamp, None)


def _by_step(x: Tensor, backwards: bool) -> Tensor:
    """A sequence `(batch, steps, size)`, or with an axis of 1, as `(steps, batch, size)`."""
    x = ops.swapaxes(ops.cast(x, "float32"), 0, 1)
    return ops.flip(x, axis=0) if backwards else x
