"""Calls of loops: in inference, without rounding, and in training."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from intact.graph.view import Node
from intact.layers.base import QuantizedLayer
from intact.layers.direct_calls import filled, filler, leaves
from intact.layers.fake_quantize import FakeQuantize, typed
from intact.layers.program_runs import ProgramRun
from intact.layers.quantized import Quantized
from intact.layers.quantized_weights import QuantizedWeights
from intact.layers.tracked_range import Clamp
from intact.numerics.accumulator import Accumulator, accumulator
from intact.numerics.affine import QTensor, Scaled, as_qtensor, first_part, unquantized
from intact.numerics.backend_kernels import TORCH, exact_convolution, extremes, round_clip
from intact.numerics.exact import inverse_of
from intact.numerics.forward import no_gradients
from intact.numerics.light_ops import ops
from intact.numerics.numbers import from_number, number_ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scanning import joined, scan
from intact.numerics.step_program import Limits
from intact.numerics.tensors import Tensor
from intact.ops.base import Op, Weighted
from intact.ops.loop import zeros_of
from intact.ops.registry import get_op
from intact.quantizers.means import MeanSize
from intact.quantizers.observers import Range, following
from intact.quantizers.replicas import of_all_replicas
from intact.rounding.kernel_rounding import KernelRounding

Call = Callable[[Node, tuple[Any, ...]], Any]
"""Makes a call of a step."""


class Run:
    """A call of a loop in inference, or in calibration.

    Args:
        loop: The loop.
    """

    training = False

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.watched: list[Any] = []
        self.seen: list[Tensor] = []
        self.weights: dict[int, Any] = {}
        self.fillers: dict[int, Any] = {}

    def run(self, inputs: list[Any]) -> list[Any]:
        """What the loop returns."""
        self.prepare()
        return self.finish(*self.scanned(*self.begin(inputs)))

    def prepare(self) -> None:
        """Compute what all steps have in common."""
        for node in self.loop.nodes:
            layer = node.layer
            if _is_integer(layer) and id(layer) not in self.weights:
                self.weights[id(layer)] = layer.quantized_weights(training=self.training)

    def begin(self, inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        """The sequences, and the states before the first step."""
        loop, count = self.loop, self.loop.form.sequences
        values = dict(_pairs(loop.first, inputs[count:]))
        self._run(loop.start_nodes, values, self.start)
        starts = iter(loop.started)
        x = first_part(inputs[0])
        states = []
        for is_input, symbol in zip(loop.form.starts, loop.states, strict=True):
            if is_input:
                states.append(_of(next(starts), values))
            else:
                states.append(self.zeros(symbol, x))
        return inputs[:count], states

    def zeros(self, symbol: Any, x: Tensor) -> Any:
        """The zero state, as a step reads it."""
        zeros = zeros_of(first_part(symbol), x)
        if not isinstance(symbol, list | tuple):
            return zeros
        return QTensor(zeros, *self.params(symbol))

    def params(self, symbol: Any) -> tuple[Any, Any, Any]:
        """Scale, zero point and whole of a state."""
        loop = self.loop
        return self.params_of(first_part(loop.ends[loop.form.joins + loop.index_of(symbol)]))

    def params_of(self, tensor: Any) -> tuple[Any, Any, Any]:
        """Scale, zero point and whole of a step's tensor, which are those of its quantizer."""
        node = self.loop.source(tensor)
        if node is None:
            return ops.ones(()), ops.zeros(()), ops.ones((), "bool")
        return self.params_by(node)

    def params_by(self, node: Node) -> tuple[Any, Any, Any]:
        """Scale, zero point and whole of what a quantizer returns."""
        layer = node.layer
        if layer.observing:
            return unquantized(ops.zeros(()))[1:]
        grid, one = layer.grid(), ops.ones((), "float32")
        if layer.fixed is not None:
            return grid.scale, grid.zero_point, one > 0
        ready = ops.convert_to_tensor(layer.count)[node.kwargs.get("slot", 0)] > 0
        scale = ops.where(ready, grid.scale, one)
        return scale, ops.where(ready, grid.zero_point, 0.0 * one), ready

    def scanned(self, sequences: list[Any], states: list[Any]) -> tuple[list[Any], list[Any]]:
        """The final states, and the outputs of all steps."""
        loop, joins = self.loop, self.loop.form.joins
        self.kept = kept = [_rest(x) for x in sequences], [_rest(x) for x in states]

        def body(before: list[Any], now: list[Any]) -> tuple[list[Any], list[Any]]:
            now = [_with(x, rest) for x, rest in zip(now, kept[0], strict=True)]
            before = [_with(x, rest) for x, rest in zip(before, kept[1], strict=True)]
            values = dict(_pairs([*loop.sequences, *loop.states], [*now, *before]))
            seen = self.begin_step()
            self._run(loop.nodes, values, self.call)
            ends = [_of(first_part(end), values) for end in loop.ends]
            watched = [values[id(tensor)] for tensor in self.watched]
            return ends[joins:], [*ends[:joins], *seen, *watched]

        first, along = map(first_part, states), list(map(first_part, sequences))
        final, outputs = scan(body, [*first], along, loop.form.backwards)
        self.seen = outputs[joins:]
        outputs = [joined(x, loop.form.turned) for x in outputs[:joins]]
        return final, outputs

    def begin_step(self) -> list[Tensor]:
        """Begin a step; the list will have what the step shows to observers."""
        return []

    def finish(self, final: list[Any], outputs: list[Any]) -> list[Any]:
        """What the loop returns, of values."""
        results = [_with(x, rest) for x, rest in zip(final, self.kept[1], strict=True)]
        if not outputs:
            return results
        end = self.loop.ends[0]
        rest = self.params_of(end[0]) if isinstance(end, list | tuple) else None
        return [_with(outputs[0], rest), *results]

    def start(self, node: Node, args: tuple[Any, ...]) -> Any:
        """Make a call that converts a first state."""
        return node.layer.call(*args, training=self.training, **node.kwargs)

    def call(self, node: Node, args: tuple[Any, ...]) -> Any:
        """Make a call of a step."""
        layer: Any = node.layer
        if isinstance(layer, FakeQuantize):
            return self.quantized(node, *args)
        if _is_integer(layer):
            return layer.compute(args[0], self.weights[id(layer)], self.training)
        if isinstance(layer, QuantizedWeights):
            return layer.call(*args, **{**node.kwargs, "training": self.training})
        if isinstance(layer, QuantizedLayer):
            return layer.call(*args, **node.kwargs)
        return layer(*args, **node.kwargs)

    def quantized(self, node: Node, *args: Any) -> Any:
        """Make the call of a quantizer."""
        return node.layer.call(*args, training=False, **node.kwargs)

    def _run(self, nodes: list[Node], values: dict[int, Any], call: Call) -> None:
        for node in nodes:
            fill = self.fillers.get(id(node))
            if fill is None:
                fill = self.fillers[id(node)] = filler(node.args)
            results = call(node, fill(values))
            if isinstance(results, tuple):
                values.update(zip(map(id, node.outputs), leaves(results), strict=False))
            else:
                values[id(node.outputs[0])] = results


class UnroundedRun(Run):
    """A call of a loop without any rounding."""

    def prepare(self) -> None:
        pass

    def params_by(self, node: Node) -> tuple[Any, Any, Any]:
        return unquantized(ops.zeros(()))[1:]

    def start(self, node: Node, args: tuple[Any, ...]) -> Any:
        return self.call(node, args)

    def call(self, node: Node, args: tuple[Any, ...]) -> Any:
        if isinstance(node.layer, QuantizedLayer):
            return node.layer.unrounded(*args, **node.kwargs)
        return node.layer(*args, **node.kwargs)


class RangingRun(UnroundedRun):
    """A call of a loop with rounded weights, which shows observers the values to quantize."""

    training = True

    def begin_step(self) -> list[Tensor]:
        self.step_seen: list[Tensor] = []
        return self.step_seen

    def call(self, node: Node, args: tuple[Any, ...]) -> Any:
        if isinstance(node.layer, FakeQuantize):
            result = node.layer.unrounded(*args, **node.kwargs)
            if node.layer.fixed is None:
                low, high = extremes(ops.stop_gradient(result.values))
                size = MeanSize().look(ops.stop_gradient(result.values))
                self.step_seen.append(ops.stack([low, high, size.total / size.count]))
            return result
        return Run.call(self, node, args)


class TrainingRun(Run):
    """A call of a loop that trains."""

    training = True

    def run(self, inputs: list[Any]) -> list[Any]:
        self.prepare()
        self.grids: dict[int, tuple[Any, Any]] = {}
        self.roundings: dict[int, _Rounding] = {}
        self.callers: dict[int, Callable[..., Any]] = {}
        begun = self.begin(inputs)
        for node in self.loop.quantizers:
            node.layer.check_agreement(node.kwargs.get("slot", 0))
        self.find_first(*begun)
        for node in self.loop.nodes:
            if isinstance(node.layer, FakeQuantize):
                rounding = self.roundings[id(node)] = _Rounding(node)
                self.grids[id(node.layer)] = rounding.pair
        sequences, states = begun
        states = [
            self.in_range(state, symbol)
            for state, symbol in zip(states, self.loop.states, strict=True)
        ]
        program = self.loop.program
        if program is not None and self.has_numbers(sequences):
            self.kept = [_rest(x) for x in sequences], [_rest(x) for x in states]
            return self.finish(*ProgramRun(self, program, sequences).run(states))
        results = self.finish(*self.scanned(sequences, states))
        self.observe()
        return results

    def has_numbers(self, sequences: list[Any]) -> bool:
        """Whether the numbers of a program have no gradient; on torch, whether they are here."""
        if self.loop.reads_trained_scales:
            return False
        return not TORCH or all(rounding.once for rounding in self.roundings.values())

    def find_first(self, sequences: list[Any], states: list[Any]) -> None:
        """Find ranges by steps that are not rounded, if there are none."""
        calls = self.loop.quantizers
        if not calls:
            return
        counts = [ops.convert_to_tensor(n.layer.count)[n.kwargs.get("slot", 0)] for n in calls]
        ready = ops.min(ops.stack(counts)) > 0

        if TORCH and bool(ready):
            return
        # No gradients reach a choice, so that compilers need not prepare any.
        fixed = keras.tree.map_structure(ops.stop_gradient, [sequences, states, self.weights])

        def ranges() -> Tensor:
            run = RangingRun(self.loop)
            *tensors, run.weights = fixed
            run.scanned(*([_unquantized(x) for x in part] for part in tensors))
            seen = ops.stack(run.seen, axis=1)
            parts = [ops.min(seen[..., 0], 0), ops.max(seen[..., 1], 0), ops.mean(seen[..., 2], 0)]
            return ops.stop_gradient(ops.stack(parts))

        if not TORCH:
            seen = ops.cond(ready, lambda: ops.zeros((3, len(calls))), ranges)
        else:
            with no_gradients():
                seen = ranges()
        for index, node in enumerate(calls):
            _begin_range(node.layer, node.kwargs.get("slot", 0), seen[:, index], ready)

    def in_range(self, state: Any, symbol: Any) -> Any:
        """A first state in the scale in which a step reads it."""
        if not isinstance(state, QTensor):
            return state
        scale, zero_point, _ = self.params(symbol)
        values = state.values * (state.scale * inverse_of(scale))
        return QTensor(values, scale, zero_point, ops.ones((), "bool"))

    def params_by(self, node: Node) -> tuple[Any, Any, Any]:
        if not self.grids:
            return unquantized(ops.zeros(()))[1:]
        return (*self.grids[id(node.layer)], ops.ones((), "bool"))

    def begin_step(self) -> list[Tensor]:
        self.step_seen: list[Tensor] = []
        return self.step_seen

    def call(self, node: Node, args: tuple[Any, ...]) -> Any:
        if id(node) not in self.callers:
            self.callers[id(node)] = self.caller(node)
        return self.callers[id(node)](*args)

    def caller(self, node: Node) -> Callable[..., Any]:
        """The call of a node, prepared for all steps."""
        layer: Any = node.layer
        if not _is_integer(layer):
            make = super().call
            return lambda *args: make(node, args)
        op: Any = get_op(layer.layer)
        if type(op).call is Op.call:
            # Keras' way of calling a layer takes longer than what moves values.
            move = layer.layer.call
            return lambda x: QTensor(move(x[0]), *x[1:])
        if type(op).call is not Weighted.call or layer.wide:
            weights = self.weights[id(layer)]
            return lambda inputs: layer.compute(inputs, weights, True)

        def products(x: Any) -> Accumulator:
            x = QTensor(*x)
            kernel, acc = self.common(node, lambda: self.biased(op, layer, x))
            with exact_convolution():
                return acc._replace(values=op.products(layer.layer, x.values, kernel))

        return products

    def biased(self, op: Any, layer: Any, x: QTensor) -> tuple[Tensor, Accumulator]:
        """The kernel of a layer, and its sums without values, which are those of all steps."""
        kernel, scale = self.weights[id(layer)]["kernel"]
        acc = accumulator(None, x.scale, scale, whole=x.whole)
        return op.with_bias(layer.layer, kernel, acc, shares=False)

    def common(self, node: Node, compute: Callable[[], Any]) -> Any:
        """What all steps have in common; other backends than torch compute it in each step."""
        if not TORCH:
            return compute()
        if id(node) not in self.weights:
            self.weights[id(node)] = compute()
        return self.weights[id(node)]

    def quantized(self, node: Node, *args: Any) -> Any:
        rounding = self.roundings[id(node)]
        scaled, values = rounding.rounded(args[0])
        if rounding.observes:
            self.step_seen.append(rounding.shown(scaled))
        scale, zero_point = rounding.pair
        return QTensor(values, scale, zero_point, rounding.whole)

    def observe(self) -> None:
        """Let ranges follow the values of all steps."""
        roundings = [r for r in self.roundings.values() if r.observes]
        for rounding, seen in zip(roundings, self.seen, strict=True):
            scaled = Scaled(seen, rounding.unit if TORCH else 1.0)
            node, clamp = rounding.node, rounding.clamp if TORCH else Clamp()
            node.layer._observe(node.kwargs.get("slot", 0), scaled, [], clamp, None)


class _Rounding:
    """How a quantizer rounds in all steps of a call.

    Args:
        node: The call of the quantizer in a step.
    """

    def __init__(self, node: Node) -> None:
        layer = self.layer = node.layer
        self.node = node
        self.kernel_rounding = node.kwargs.get("kernel_rounding", "real")
        self.clamp = Clamp(*(node.kwargs.get(name) for name in Clamp._fields))
        self.observes = layer.fixed is None and layer.trainable
        plain = not (layer.learns or layer.rule.signs)
        self.xp = number_ops(ops.convert_to_tensor(layer.scale)) if plain else ops
        count = int(np.prod([size or 1 for size in node.outputs[0].shape[1:]]))
        self.grid = layer.grid(count, None, self.xp)
        self.pair = from_number(self.grid.scale), from_number(self.grid.zero_point)
        self.whole = ops.ones((), "bool")
        self.unit: Any = 1.0
        rule: Any = KernelRounding.registry.find(self.kernel_rounding)
        self.sign = float(getattr(rule, "sign", 1))
        self.once = TORCH and plain and not (layer.spec.stochastic or rule.in_training)
        self.clip: Any = None

    def rounded(self, pending: Any) -> tuple[Scaled, Tensor]:
        """Real values, and the whole numbers that they are rounded to.

        Args:
            pending: What the quantizer is called with.
        """
        layer = self.layer
        rule, pending = typed(self.kernel_rounding, pending)
        scaled = rule.scaled(pending)
        if not self.once:
            return scaled, layer._rounded(rule, pending, scaled, self.grid, self.clamp, self.xp)
        if self.clip is None:
            # The unit is the same in all steps.
            self.unit = scaled.unit
            factor, low, high, *passes = self.limits(self.unit)
            self.clip = low, high, factor, tuple(passes)
        return scaled, round_clip(scaled.values, *self.clip)

    def limits(self, unit: Any) -> Limits:
        """How values are rounded.

        Args:
            unit: The real value of one step of theirs.
        """
        layer, xp = self.layer, self.xp
        first = layer.first_grid(self.grid)
        bounds = layer.bounds(first, self.clamp, xp)
        passes = layer.passes(first, self.clamp, xp)
        factor = xp.convert_to_tensor(unit) * inverse_of(first.scale, xp)
        numbers = factor, *bounds, *passes
        return Limits(*(map(float, numbers) if xp is numpy_ops else numbers))

    def shown(self, scaled: Scaled) -> Tensor:
        """What the quantizer's range follows: of torch, values in their unit, without a clamp."""
        if TORCH:
            self.unit = scaled.unit
            return ops.stop_gradient(scaled.values)
        real = ops.stop_gradient(self.clamp.real(scaled.real()))
        return real if self.layer.learns else ops.stack(extremes(real))


def _unquantized(x: Any) -> Any:
    """The real values of a `QTensor` in its type; any other tensor as it is."""
    return unquantized(x[0] * x[1]) if isinstance(x, list | tuple) else x


def _begin_range(layer: FakeQuantize, slot: int, seen: Tensor, ready: Tensor) -> None:
    """Set the range of a slot to the first data, unless there is one."""
    names = [*Range._fields, *(["size"] if layer.learns else [])]
    first = Range(seen[0], seen[1], ops.ones(()))
    first = of_all_replicas(following(layer.spec.momentum), first, ops)
    values = [first.minimum, first.maximum, ops.ones(()), seen[2]]
    here = ops.convert_to_tensor(np.arange(layer.slots) == slot)
    here = ops.logical_and(here, ops.logical_not(ready))
    new = [
        ops.where(here, value, layer._value(name))
        for name, value in zip(names, values, strict=False)
    ]
    layer._assign(Range(*new[:3]), ops)
    if layer.learns:
        layer.size.assign(new[3])


def _is_integer(layer: Any) -> bool:
    return isinstance(layer, Quantized) and not isinstance(layer, QuantizedWeights)


def _rest(x: Any) -> Any:
    """The parts of a `QTensor` but its values; None of any other tensor."""
    return tuple(x[1:]) if isinstance(x, list | tuple) else None


def _with(values: Any, rest: Any) -> Any:
    """The reverse of `_rest`."""
    return values if rest is None else QTensor(values, *rest)


def _pairs(symbols: list[Any], tensors: list[Any]) -> list[tuple[int, Any]]:
    """The ids of symbols, beside the tensors that they stand for."""
    flat = [keras.tree.flatten(symbols), leaves(list(tensors))]
    return [(id(symbol), tensor) for symbol, tensor in zip(*flat, strict=True)]


def _of(symbol: Any, values: dict[int, Any]) -> Any:
    """The tensors that symbols stand for."""
    return as_qtensor(filled(list(symbol) if isinstance(symbol, tuple) else symbol, values))
