"""The LSTM that keeps its state: how LiteRT's integer kernel computes it, and its quantizer.

The rules of the kernel UNIDIRECTIONAL_SEQUENCE_LSTM, of 8-bit values and weights and a cell of 16
bits, measured on ai-edge-litert 2.3.0 (all its kernels compute the same). Per step:

* The sums with the inputs, bias included, and those with the hidden state are each brought to
  int16 of 3 integer bits, in fixed point and rounded twice; each time the result saturates.
* Sigmoid and tanh are those of `intact.rounding.int16_tables`.
* Products of two numbers of 16 bits are rounded half away from zero; the sum of the two that
  make the new cell saturates. The cell's scale is a power of two, from 2^-15 to 2^-9.
* The product of the output gate and the cell's tanh is brought to the output's scale, in fixed
  point; that is the hidden state, and the output.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np

from intact.numerics.affine import Affine
from intact.numerics.backend_kernels import TENSORFLOW, inverse, round_clip
from intact.numerics.exact import binary_exponent
from intact.numerics.fixed_point import multiplier, multiply, rounding_shift
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import straight_through
from intact.numerics.tensors import Tensor, symbols
from intact.rounding.int16_tables import (
    GATE_BITS,
    HIGH,
    LOW,
    OFFSET,
    cell_tables,
    sigmoid_table,
    tanh_table,
)
from intact.rounding.kernel_rounding import KernelRounding

GATES = ("input", "forget", "cell", "output")
"""The gates, in the order of Keras' weights and of the kernel's inputs."""


class Sums(NamedTuple):
    """The parts of an LSTM's integer sums.

    Args:
        inputs: Sums of products with the inputs, whole numbers (batch, steps, 4, units).
        bias: Whole numbers (4, units), in the units of these sums.
        input_scale: Scale of the inputs.
        weight_scale: Scale of the inputs' weights, one or (4, 1).
        recurrent: The recurrent weights, whole numbers (units, 4, units).
        recurrent_scale: Their scale, one or (4, 1).
    """

    inputs: Tensor
    bias: Tensor
    input_scale: Tensor
    weight_scale: Tensor
    recurrent: Tensor
    recurrent_scale: Tensor

    @classmethod
    def symbolic(cls, shape: tuple[int | None, ...]) -> "Sums":
        """Their form in a graph.

        Args:
            shape: (batch, steps, units).
        """
        batch, steps, units = shape
        gates, one = (len(GATES), units), (None, 1)
        return cls(*symbols((batch, steps, *gates), gates, (), one, (units, *gates), one))


class Steps(NamedTuple):
    """The hidden states and cells of an LSTM's steps, (batch, steps, units)."""

    hidden: Tensor
    cell: Tensor

    @property
    def last(self) -> "State":
        """The state after the last step."""
        return State(self.hidden[:, -1], self.cell[:, -1])


class State(NamedTuple):
    """The state between two steps, (batch, units) each."""

    hidden: Tensor
    cell: Tensor


class StateKeeper:
    """A layer that keeps a state between calls, in the variables `hidden` and `cell`."""

    hidden: Any
    cell: Any

    def keep(self, state: State) -> None:
        """Keep a state for the next call, without a gradient.

        Args:
            state: The state.
        """
        for variable, value in zip((self.hidden, self.cell), state, strict=True):
            variable.assign(ops.stop_gradient(value))

    def reset_state(self) -> None:
        """Reset hidden state and cell to zero, like LiteRT's `reset_all_variables`."""
        for variable in (self.hidden, self.cell):
            variable.assign(np.zeros(variable.shape, "float32"))


def in_float(inputs: Tensor, recurrent: Tensor, before: State) -> Steps:
    """All steps of an LSTM in float (Hochreiter & Schmidhuber, 1997).

    Args:
        inputs: The sums of products with the inputs, with the bias, (batch, steps, 4, units).
        recurrent: The recurrent weights, (units, 4, units).
        before: The state before.

    Returns:
        The steps.

    Example:

    >>> zeros = ops.zeros((1, 2))
    >>> made = in_float(ops.zeros((1, 5, 4, 2)), ops.zeros((2, 4, 2)), State(zeros, zeros + 1.0))
    >>> tuple(made.hidden.shape), float(made.last.cell[0, 0])
    ((1, 5, 2), 0.03125)
    """

    def step(state: Any, now: Tensor) -> Any:
        hidden, cell = state
        i, f, g, o = _gates(now + _product(hidden, recurrent))
        cell = ops.sigmoid(f) * cell + ops.sigmoid(i) * ops.tanh(g)
        hidden = ops.sigmoid(o) * ops.tanh(cell)
        return (hidden, cell), (hidden, cell)

    return _scan(step, before, inputs)


def in_integers(
    sums: Sums, before: State, scale: Tensor, zero_point: Tensor, cell_scale: Tensor
) -> Steps:
    """All steps as the integer kernel computes them.

    Args:
        sums: The sums; they get no gradient.
        before: The state before, real values.
        scale: Scale of the hidden state, which is the output.
        zero_point: Its zero point.
        cell_scale: Scale of the cell, a power of two.

    Returns:
        The steps in whole numbers, float32: the hidden state less its zero point.
    """
    sums = Sums(*(ops.stop_gradient(part) for part in sums))
    hidden, cell, scale = (ops.stop_gradient(x) for x in (*before, scale))
    gate_unit = 2.0 ** (15 - GATE_BITS)
    by_input = multiplier(sums.weight_scale * sums.input_scale * gate_unit, 1.0, 1.0)
    by_hidden = multiplier(sums.recurrent_scale * scale * gate_unit, 1.0, 1.0)
    by_output = multiplier(inverse(scale) * 2.0**-30, 1.0, 1.0)
    bits = binary_exponent(cell_scale) + 15
    sigmoid, tanh = (ops.convert_to_tensor(t()) for t in (sigmoid_table, tanh_table))
    size = len(sigmoid_table())
    of_cell = ops.reshape(ops.convert_to_tensor(cell_tables()), (-1, size))
    of_cell = ops.take(of_cell, bits, axis=0)
    low, high = -128 - zero_point, 127 - zero_point
    whole = ops.cast(sums.inputs, "int32") + ops.cast(sums.bias, "int32")
    inputs = ops.clip(multiply(whole, by_input), LOW, HIGH)
    start = (
        ops.clip(ops.round(hidden * inverse(scale)), low, high),
        ops.cast(ops.clip(ops.round(cell * inverse(cell_scale)), LOW, HIGH), "int32"),
    )
    fifteen = ops.ones_like(bits) * 15

    def step(state: Any, now: Tensor) -> Any:
        hidden, cell = state
        more = multiply(ops.cast(_product(hidden, sums.recurrent), "int32"), by_hidden)
        i, f, g, o = _gates(ops.clip(now + more, LOW, HIGH) + OFFSET)
        i, f, o = (ops.take(sigmoid, gate) for gate in (i, f, o))
        kept = rounding_shift(f * cell, fifteen)
        cell = ops.clip(kept + rounding_shift(i * ops.take(tanh, g), 15 + bits), LOW, HIGH)
        product = multiply(o * ops.take(of_cell, cell + OFFSET), by_output)
        hidden = ops.clip(ops.cast(product, "float32"), low, high)
        return (hidden, cell), (hidden, cell)

    steps = _scan(step, start, inputs)
    return Steps(steps.hidden, ops.cast(steps.cell, "float32"))


def _scan(step: Any, before: Any, inputs: Tensor) -> Steps:
    inputs = ops.transpose(inputs, (1, 0, 2, 3))
    _, outputs = ops.scan(step, tuple(before), inputs)
    return Steps(*(ops.transpose(x, (1, 0, 2)) for x in outputs))


def _product(hidden: Tensor, recurrent: Tensor) -> Tensor:
    """The products with the hidden state, (batch, 4, units)."""
    units = recurrent.shape[0]
    flat = ops.matmul(hidden, ops.reshape(recurrent, (units, 4 * units)))
    return ops.reshape(flat, (-1, 4, units))


def _gates(sums: Tensor) -> list[Tensor]:
    return [sums[:, gate] for gate in range(4)]


class Run:
    """One call of an LSTM: its sums, and the steps that are computed on demand.

    Args:
        sums: The sums.
        before: The state before, real values.
        cell_scale: Scale of the cell.
    """

    def __init__(self, sums: Sums, before: State, cell_scale: Tensor) -> None:
        self.sums, self.before, self.cell_scale = sums, before, cell_scale
        self._real: Steps | None = None
        self._whole: Steps | None = None

    @property
    def real(self) -> Steps:
        """The steps in float, with the rounded weights."""
        # TensorFlow's tensors cannot leave the branch in which they were computed.
        if self._real is None or TENSORFLOW:
            self._real = self._in_float()
        return self._real

    def _in_float(self) -> Steps:
        sums = self.sums
        unit = sums.input_scale * sums.weight_scale
        inputs = (sums.inputs + sums.bias) * unit
        return in_float(inputs, sums.recurrent * sums.recurrent_scale, self.before)

    def whole(self, params: Affine) -> Steps:
        """The steps in integers; `params` are the output's, the same at every call."""
        if self._whole is None or TENSORFLOW:
            scale, zero_point = params.scale, params.zero_point
            self._whole = in_integers(self.sums, self.before, scale, zero_point, self.cell_scale)
        return self._whole


class LSTMRounding(KernelRounding):
    """The steps of the kernel UNIDIRECTIONAL_SEQUENCE_LSTM; the pending result is a `Run`."""

    name = "lstm"
    takes = Sums
    in_training: ClassVar[bool] = True

    def output_shape(self, pending: Any) -> tuple[int | None, ...]:
        batch, steps, _, units = pending.inputs.shape
        return batch, steps, units

    def real(self, pending: Any) -> Tensor:
        return pending.real.hidden

    def quantize(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        smooth = pending.real.hidden * inverse(params.scale)
        return round_clip(straight_through(pending.whole(params).hidden, smooth), low, high)
