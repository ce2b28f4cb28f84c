"""Programs of steps on TensorFlow, by two loops that XLA compiles. Needs TensorFlow."""

import functools
from typing import Any

import keras
import tensorflow as tf

from intact.numerics.step_gradients import StepGradients
from intact.numerics.step_program import Numbers, StepProgram
from intact.numerics.step_split import split


def run(program: StepProgram, numbers: list[Numbers], sequences: list, states: list) -> Any:
    """As `intact.numerics.step_loops.run`."""
    parts = split(program)
    tensors = [parts.numbers(numbers), parts.sequences(sequences), states]
    flat = [tf.convert_to_tensor(x, "float32") for x in _leaves(tensors)]
    # XLA compiles for each number of steps, so a number that varies is left to TensorFlow.
    compiled = sequences[0].shape[0] is not None
    results = _loop(parts.program, compiled).run(tensors, flat)
    count = len(parts.program.finals)
    outputs = results[count : count + len(parts.program.outputs)]
    ends = results[count + len(parts.program.outputs) :]
    return results[:count], outputs, parts.ends(ends)


@functools.lru_cache(maxsize=256)
def _loop(program: StepProgram, compiled: bool) -> "Loop":
    """The loop of a program, which is compiled once for each shape."""
    return Loop(program, compiled)


class Loop:
    """The two loops of a program.

    Args:
        program: The program.
        compiled: Whether XLA compiles the loops.
    """

    def __init__(self, program: StepProgram, compiled: bool) -> None:
        self.program = program
        self.gradients = StepGradients(program)
        self.structure: Any = None
        self.graph = tf.function(self._forward, autograph=False, jit_compile=compiled)
        self.back = tf.function(self._backward, autograph=False, jit_compile=compiled)

    def run(self, tensors: Any, flat: list[Any]) -> list[Any]:
        """The final states, what is collected, and the smallest and largest raw values.

        Args:
            tensors: Numbers, sequences and states.
            flat: The same, as a list of tensors.
        """
        self.structure = keras.tree.map_structure(lambda x: x is not None, tensors)

        @tf.custom_gradient
        def function(*flat: Any) -> Any:
            # A tape would prepare gradients of its own.
            results, kept = self.graph(*map(tf.stop_gradient, flat))

            def grad(*gradients: Any) -> Any:
                count = len(self.program.finals) + len(self.program.outputs)
                return self.back(flat, kept, gradients[:count])

            return results, grad

        return list(function(*flat))

    def _packed(self, flat: Any) -> Any:
        rest = iter(flat)
        return keras.tree.map_structure(lambda known: next(rest) if known else None, self.structure)

    def _forward(self, *flat: Any) -> tuple[list[Any], Any]:
        """The results, and what the gradients need."""
        program = self.program
        numbers, sequences, states = self._packed(flat)

        def step(before: list[Any], now: list[Any]) -> tuple[list[Any], list[Any]]:
            values = program.begin(now, before)
            program.forward(values, numbers)
            outputs = [values[place] for place in program.outputs]
            return [values[place] for place in program.finals], [*before, *outputs]

        shapes = [x.shape for x in states]
        shapes += [(states[0].shape[0], program.sizes[place]) for place in program.outputs]
        finals, collected = _scan(step, states, sequences, shapes)
        before, outputs = collected[: len(states)], collected[len(states) :]
        # Raw values are computed again, as keeping them would take the loop longer.
        values = program.begin(sequences, before)
        raws = program.forward(values, numbers)
        ends = [tf.stack([tf.reduce_min(raw), tf.reduce_max(raw)]) for raw in raws]
        slopes = self.gradients.slopes(numbers, values, raws)
        return [*finals, *outputs, *ends], (slopes, self.gradients.operands(values))

    def _backward(self, flat: Any, kept: Any, gradients: Any) -> list[Any]:
        """The gradients of all tensors."""
        program, (all_slopes, operands) = self.program, kept
        numbers, sequences, _ = self._packed(flat)
        finals, of_outputs = gradients[: len(program.finals)], gradients[len(program.finals) :]
        transposed = self.gradients.transposed(numbers)
        varying = [index for index, x in enumerate(all_slopes) if len(x.shape) > 2]

        def step(after: list[Any], now: list[Any]) -> tuple[list[Any], list[Any]]:
            slopes = list(all_slopes)
            for index, slope in zip(varying, now, strict=False):
                slopes[index] = slope
            row, before, products = self.gradients.backward(
                transposed, slopes, now[len(varying) :], after
            )
            return before, [*row, *products]

        along = [all_slopes[index] for index in varying]
        batch = finals[0].shape[0]
        ends = [*program.sequences, *(x.target for x in self.gradients.products)]
        shapes = [(batch, program.sizes[place]) for place in ends]
        turned = [tf.reverse(x, [0]) for x in (*along, *of_outputs)]
        of_states, columns = _scan(step, list(finals), turned, shapes)
        columns = [tf.reverse(x, [0]) for x in columns]
        count = len(sequences)
        trained = self.gradients.of_trained(numbers, operands, columns[count:])
        of_numbers = [
            keras.tree.map_structure(_zeros, own)._replace(trained=part)
            for own, part in zip(numbers, trained, strict=True)
        ]
        return _leaves([of_numbers, columns[:count], of_states])


def _leaves(tensors: Any) -> list[Any]:
    """The tensors of a structure, which may have None in it."""
    return [x for x in keras.tree.flatten(tensors) if x is not None]


def _zeros(x: Any) -> Any:
    return None if x is None else tf.zeros_like(x)


def _scan(body: Any, states: Any, sequences: Any, shapes: Any) -> tuple[list[Any], list[Any]]:
    """The states after the last step, and what the steps give.

    Args:
        body: From the states and the parts of the sequences, the new states and what to collect.
        states: The first states.
        sequences: Tensors `(steps, ...)`.
        shapes: The shapes of what is collected.
    """
    count = sequences[0].shape[0] or tf.shape(sequences[0])[0]
    parts = [
        tf.TensorArray("float32", count, element_shape=x.shape[1:]).unstack(x) for x in sequences
    ]
    arrays = [tf.TensorArray("float32", count, element_shape=shape) for shape in shapes]

    def following(place: Any, states: Any, arrays: Any) -> Any:
        new, outputs = body(list(states), [part.read(place) for part in parts])
        new = [tf.ensure_shape(after, x.shape) for after, x in zip(new, states, strict=True)]
        pairs = zip(arrays, outputs, strict=True)
        return place + 1, new, [array.write(place, x) for array, x in pairs]

    _, states, arrays = tf.while_loop(
        lambda place, *_: place < count,
        following,
        (tf.constant(0), list(states), arrays),
        maximum_iterations=count,
    )
    return list(states), [array.stack() for array in arrays]
