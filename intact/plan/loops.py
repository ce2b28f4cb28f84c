"""The ranges of loops: a step reads its states in the ranges in which the step before wrote them.

The layers of a step are in a model of their own. So no range is shared between a step and what is
around its loop: sequences come in the range that they have, and first states are converted.
"""

from typing import TYPE_CHECKING

import keras

from intact.graph.view import Node
from intact.numerics.tensors import is_whole
from intact.ops.states import Zeros
from intact.plan.plan import RangePlan, Step

if TYPE_CHECKING:
    from intact.plan.planner import _Planner


class LoopPlanner:
    """Plans the ranges of one loop.

    Args:
        planner: The planner of the model.
        opening: The node at which the loop begins.
        step: Its step.
    """

    def __init__(self, planner: "_Planner", opening: Node, step: Step) -> None:
        self.planner = planner
        self.opening, self.step = opening, step
        self.name = opening.layer.loop
        self.form = opening.layer.form
        self.states: list[RangePlan] = []

    def open(self) -> None:
        """Give ranges to what a step reads."""
        planner, opening, count = self.planner, self.opening, self.form.sequences
        if self.step.integer:
            for outer in opening.inputs:
                if not is_whole(outer):
                    planner._range_of(outer, opening)
            for outer, inner in zip(opening.inputs[:count], opening.outputs[:count], strict=True):
                if not is_whole(outer):
                    planner.tensor_range[id(inner)] = planner.tensor_range[id(outer)]
            planner.loop = self.name
            for inner in opening.outputs[count:]:
                state = planner._new_range(inner.name, planner._spec(opening))
                state.open = True
                planner.tensor_range[id(inner)] = state
                self.states.append(state)
        planner.loop = self.name
        self.step.quantized = [id(t) in planner.tensor_range for t in opening.outputs]

    def close(self, node: Node, step: Step) -> None:
        """Let states come out in the ranges in which they go in.

        Args:
            node: The loop.
            step: Its step.
        """
        planner, joins = self.planner, self.form.joins
        for index, state in enumerate(self.states, joins):
            self._carry(node, step, index, state)
        place = self.form.sequences
        for state, is_input in zip(self.states, self.form.starts, strict=False):
            if is_input:
                source = planner._range_of(self.opening.inputs[place], self.opening)
                name = f"{self.name}_{place}"
                site = planner._site(name, planner._root(state), _rounding(source, state))
                self.step.requantize[place] = site
                place += 1
        planner.loop = ""
        ends = [planner.tensor_range.get(id(t)) for t in node.inputs]
        ends = [*ends[:joins], *(self.states or ends[joins:])]
        for outer, end in zip(node.outputs, ends, strict=True):
            if end is not None:
                planner.tensor_range[id(outer)] = planner._root(end)
        step.quantized = [end is not None for end in ends]

    def _carry(self, node: Node, step: Step, index: int, state: RangePlan) -> None:
        """Unite the range of a state after a step with that before it, or convert the state."""
        planner, state = self.planner, self.planner._root(state)
        end = planner.tensor_range.get(id(node.inputs[index]))
        if end is not None:
            end = planner._root(end)
            if end.loop == state.loop and planner._merge(end, state):
                return
        rounding = "real" if end is None else _rounding(end, state)
        state.open = False
        step.requantize[index] = planner._site(f"{self.name}_state_{index}", state, rounding)


def begin_states(planner: "_Planner") -> None:
    """Give the zeros before a first step that is written out the range of the state after it.

    Args:
        planner: The planner of the model.
    """
    for node in planner.nodes:
        if isinstance(node.layer, Zeros) and planner.steps[id(node)].integer:
            _begin(planner, node.outputs[0])


def _begin(planner: "_Planner", zeros: keras.KerasTensor) -> None:
    for reader in planner.graph.consumers(zeros):
        calls = [other for other in planner.nodes if other.layer is reader.layer]
        if len(calls) < 2 or calls[0] is not reader:
            continue
        places = [n for n, tensor in enumerate(reader.inputs) if tensor is zeros]
        state = planner.tensor_range.get(id(calls[1].inputs[places[0]]))
        if state is not None:
            own, state = planner._root(planner.tensor_range[id(zeros)]), planner._root(state)
            if own is not state and not planner._merge(state, own) and len(own.sites) == 1:
                # Every range contains zero, even a fixed one.
                planner._join(state, own)
            return


def _rounding(source: RangePlan, target: RangePlan) -> str:
    """The rounding of a conversion from one range to another."""
    same = source.spec.activation_dtype == target.spec.activation_dtype
    return "requantize" if same else "convert"
