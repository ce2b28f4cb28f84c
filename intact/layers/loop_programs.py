"""Loops whose steps train as a program, with gradients by hand (`intact.numerics.step_program`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import layers

from intact.graph.view import Node
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.quantized import Quantized
from intact.numerics.affine import first_part
from intact.numerics.step_program import (
    Choice,
    Instruction,
    Part,
    Product,
    Products,
    Same,
    Shifted,
    Sigmoid,
    StepProgram,
    Sum,
    Tanh,
)
from intact.ops.base import Op, Weighted
from intact.ops.elementwise import AddRounding, Binary, MultiplyRounding
from intact.ops.logic import Where
from intact.ops.moves import RESHAPES
from intact.ops.registry import get_op
from intact.ops.relu import Requantizing
from intact.ops.slicing import Slice
from intact.rounding.curves import SigmoidRounding, TanhRounding
from intact.rounding.kernel_rounding import AccumulatorRounding, ConvertRounding, KernelRounding

Origin = Node | int
"""Where a value's scale comes from: the call of a quantizer, or the index of a sequence."""


@dataclass
class Recipe:
    """An instruction, and where its numbers come from.

    Args:
        instruction: The instruction.
        origins: Of each operand, where its scale comes from; None of truth values.
        quantizer: The call that rounds, if it does.
        weighted: The call of the layer with the weights, if there are any.
    """

    instruction: Instruction
    origins: tuple[Origin | None, ...]
    quantizer: Node | None = None
    weighted: Node | None = None


@dataclass
class LoopProgram:
    """The program of a loop's steps.

    Args:
        program: The program.
        recipes: Its instructions, and where their numbers come from.
        parts: For each of its sequences, the loop's sequence, and which of its values they are.
    """

    program: StepProgram
    recipes: list[Recipe]
    parts: list[tuple[int, slice]]


class NoProgramError(Exception):
    """A step has an operation that no instruction stands for."""


def program_of(loop: Any) -> LoopProgram | None:
    """The program of a loop's steps; None if an operation has no instruction.

    Args:
        loop: The `QuantizedLoop`.
    """
    try:
        return _Writer(loop).write()
    except NoProgramError:
        return None


@dataclass
class _Writer:
    """Writes the program of a loop.

    Args:
        loop: The loop.
    """

    loop: Any
    sizes: list[int] = field(default_factory=list)
    origins: list[Origin | None] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    pending: dict[int, tuple[Node, tuple[int, ...]]] = field(default_factory=dict)
    recipes: list[Recipe] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    parts: list[tuple[int, slice]] = field(default_factory=list)

    def write(self) -> LoopProgram:
        """The program."""
        loop = self.loop
        for index, symbol in enumerate(loop.sequences):
            is_truth = first_part(symbol).dtype == "bool"
            place = self.place(symbol, None if is_truth else index)
            self.sequences.append(place)
            self.parts.append((index, slice(None)))
        ends = loop.ends[loop.form.joins :]
        states = [
            self.place(symbol, self.quantizer_of(end))
            for symbol, end in zip(loop.states, ends, strict=True)
        ]
        for node in loop.nodes:
            self.take(node)
        outputs = [self.operand(end) for end in loop.ends[: loop.form.joins]]
        finals = [self.operand(end) for end in ends]
        program = StepProgram(
            [recipe.instruction for recipe in self.recipes],
            self.sizes,
            self.sequences,
            states,
            outputs,
            finals,
        )
        return LoopProgram(program, self.recipes, self.parts)

    def place(self, symbol: Any, origin: Origin | None) -> int:
        """A new place, for a tensor of one row for each sample.

        Args:
            symbol: The symbolic tensor, or the parts of a `QTensor`.
            origin: Where its scale comes from.
        """
        is_quantized = isinstance(symbol, list | tuple)
        values = first_part(symbol)
        *ones, size = values.shape[1:]
        needed(is_quantized == (origin is not None))
        needed(ones in ([], [1]) and isinstance(size, int))
        self.sizes.append(size)
        self.origins.append(origin)
        self.places[id(values)] = len(self.sizes) - 1
        return len(self.sizes) - 1

    def quantizer_of(self, end: Any) -> Node:
        """The call of the quantizer whose range a state has."""
        source = self.loop.source(first_part(end))
        needed(source is not None)
        return source

    def operand(self, symbol: Any) -> int:
        """The place of a tensor that there is already."""
        values = first_part(symbol)
        needed(id(values) in self.places)
        return self.places[id(values)]

    def take(self, node: Node) -> None:
        """Write the instruction of a call; or keep it for the quantizer behind it."""
        layer: Any = node.layer
        if isinstance(layer, FakeQuantize):
            self.round(node)
            return
        needed(isinstance(layer, Quantized) and type(layer).call is Quantized.call)
        op, inner = get_op(layer.layer), layer.layer
        call = type(op).call
        args = node.args[0]
        if call is Weighted.call:
            plain = isinstance(inner, layers.Dense) and not layer.wide and layer.norm is None
            needed(plain)
            self.keep(node, [self.operand(args)])
        elif call is Binary.call:
            a, b = map(self.operand, args)
            needed(self.sizes[a] == self.sizes[b])
            self.keep(node, [a, b])
        elif call is Requantizing.call:
            self.keep(node, [self.operand(args)])
        elif call is Where.call:
            self.choose(node)
        else:
            needed(call is Op.call)
            self.move(node, inner)

    def keep(self, node: Node, operands: Sequence[int]) -> None:
        """Keep a call for the quantizer that rounds its result."""
        self.pending[id(node.outputs[0])] = node, tuple(operands)

    def choose(self, node: Node) -> None:
        """Write a choice between two tensors."""
        a, b, condition = map(self.operand, node.args[0])
        needed(self.origins[condition] is None and self.sizes[condition] == 1)
        needed(self.sizes[a] == self.sizes[b])
        target = self.place(list(node.outputs), self.origins[b])
        self.write_down(Choice(target, (a, b, condition)))

    def move(self, node: Node, inner: Any) -> None:
        """Write what moves values: a part of the last axis; of one row, a reshape does nothing."""
        source = self.operand(node.args[0])
        if isinstance(inner, RESHAPES):
            target = self.place(list(node.outputs), self.origins[source])
            needed(self.sizes[target] == self.sizes[source])
            del self.sizes[target], self.origins[target]
            self.places[id(node.outputs[0])] = source
            return
        needed(type(inner) is Slice)
        start, stop, _ = inner.key[-1].indices(self.sizes[source])
        target = self.place(list(node.outputs), self.origins[source])
        needed(self.sizes[target] == stop - start)
        if source in self.sequences:
            # A part of all steps at once.
            index, _ = self.parts[self.sequences.index(source)]
            self.sequences.append(target)
            self.parts.append((index, slice(start, stop)))
        else:
            self.write_down(Part(target, (source,), start, stop))

    def round(self, node: Node) -> None:
        """Write the instruction of an operation and the quantizer behind it."""
        layer: Any = node.layer
        rule: Any = KernelRounding.registry.find(node.kwargs.get("kernel_rounding", "real"))
        needed(not (layer.learns or layer.rule.signs or layer.spec.stochastic or rule.in_training))
        source, operands = self.pending.get(id(first_tensor(node)), (None, ()))
        needed(source is not None)
        make = instruction_of(rule, len(operands))
        weighted: Any = source
        is_weighted = type(get_op(weighted.layer.layer)).call is Weighted.call
        needed((make is Shifted) == is_weighted)
        if is_weighted:
            self.sizes.append(first_tensor(node).shape[-1])
            self.origins.append(None)
            products = len(self.sizes) - 1
            origins = tuple(self.origins[place] for place in operands)
            self.recipes.append(Recipe(Products(products, operands), origins, None, weighted))
            operands = (products,)
        target = self.place(list(node.outputs), node)
        self.write_down(make(target, operands), node)

    def write_down(self, instruction: Instruction, *nodes: Node | None) -> None:
        """Add an instruction."""
        origins = tuple(self.origins[place] for place in instruction.sources)
        self.recipes.append(Recipe(instruction, origins, *nodes))


def needed(condition: object) -> None:
    """Give up unless a condition holds."""
    if not condition:
        raise NoProgramError


def first_tensor(node: Node) -> Any:
    """The first tensor that a call of a quantizer takes."""
    return keras.tree.flatten(node.args[0])[0]


def instruction_of(rule: Any, operands: int) -> Callable[..., Instruction]:
    """The instruction of an operation whose results are rounded in some way.

    Args:
        rule: The `KernelRounding`.
        operands: How many operands there are.
    """
    kind = type(rule)
    if operands == 2:
        needed(kind.scaled in (AddRounding.scaled, MultiplyRounding.scaled))
        return Sum if kind.scaled is AddRounding.scaled else Product
    if kind.scaled is AccumulatorRounding.scaled:
        return Shifted
    if kind.scaled is ConvertRounding.scaled:
        return Same
    needed(kind in (SigmoidRounding, TanhRounding))
    return Sigmoid if kind is SigmoidRounding else Tanh
