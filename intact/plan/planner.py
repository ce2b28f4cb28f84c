"""Where quantization happens: decided once, before anything is trained.

`make_plan` reads a canonical model and a scheme and returns pure data. Training builds
from it and lowering follows what was built; neither decides anything again.
"""

from collections import Counter
from dataclasses import replace

import keras

from intact.errors import IntactError
from intact.graph.view import Graph, Node, output_names, signature_names, view
from intact.ops.base import AllSame, Fixed, NotQuantized, Observed, Op, SameAsInput, computes_whole
from intact.ops.loop import Loop, Opening, opened
from intact.ops.registry import find_op, get_op
from intact.ops.relu import Clamp, relu_bounds
from intact.ops.whole import Cast
from intact.plan.factors import Factors
from intact.plan.kernel_types import (
    _as_kernels_have_it,
    _as_op_has_it,
    _fixed_input,
    _has_one_scale,
    _taken_in,
    _without_kernel,
    _without_type,
)
from intact.plan.loops import LoopPlanner, begin_states
from intact.plan.plan import BY_CHOICE, InputStats, Plan, RangePlan, Site, States, Step
from intact.plan.scheme import Rule, Scheme, TensorSpec
from intact.schemes import SCHEMES


def make_plan(
    model: keras.Model,
    scheme: Scheme,
    allow_float: bool = False,
    input_stats: InputStats | None = None,
    fold_batch_norm: bool = False,
    states: States | None = None,
) -> Plan:
    """Decide for every node and tensor of a canonical model how it is quantized.

    Args:
        model: What `canonicalize` returned.
        scheme: The rules.
        allow_float: Keep in float what has no integer form, rather than refuse it.
        input_stats: As for `quantize_model`.
        fold_batch_norm: As for `quantize_model`.
        states: As for `quantize_model`.

    Returns:
        The plan.

    Raises:
        IntactError: A layer cannot be quantized as a rule says.

    Example:

    >>> from intact.schemes import SCHEMES
    >>> from intact.graph.canonicalize import canonicalize
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu", name="a")])
    >>> plan = make_plan(canonicalize(model), SCHEMES["int8"])
    >>> [(step.name, step.op, step.type, step.output_range) for step in plan.steps]
    [('a', 'Dense', 'int8', '-'), ('a_relu', 'ReLU', 'int8', 'a_relu')]
    """
    stats = input_stats or {}
    planner = _Planner(opened(view(model)), scheme, allow_float, stats, fold_batch_norm)
    return planner.plan(_state_tensors(model, states or {}))


def _state_tensors(
    model: keras.Model, states: States
) -> list[tuple[keras.KerasTensor, keras.KerasTensor]]:
    """The input and output that stand for each state."""
    inputs = {tensor.name: tensor for tensor in model.inputs}
    outputs = dict(zip(output_names(model), model.outputs, strict=True))
    outputs |= dict(zip(signature_names(model), model.outputs, strict=True))
    pairs = []
    named = isinstance(states, dict) and states.keys() <= inputs.keys()
    if not named or not {*states.values()} <= outputs.keys():
        raise IntactError(
            "Expected `states` to map names of inputs to names of outputs. Received: "
            f"{states!r}. Inputs: {[*inputs]}. Outputs: {[*outputs]}."
        )
    for source, target in states.items():
        if inputs[source].shape != outputs[target].shape:
            raise IntactError(
                f"State {source!r} has the shape {inputs[source].shape}, and output {target!r}, "
                f"which is fed back to it, {outputs[target].shape}. Let them be the same."
            )
        pairs.append((inputs[source], outputs[target]))
    return pairs


class _Planner:
    def __init__(
        self,
        graph: Graph,
        scheme: Scheme,
        allow_float: bool,
        input_stats: InputStats,
        fold_batch_norm: bool,
    ) -> None:
        self.graph = graph
        self.scheme = scheme
        self.allow_float = allow_float
        self.input_stats = dict(input_stats)
        self.fold_batch_norm = fold_batch_norm
        self.nodes = [node for node in graph.nodes if not node.is_input]
        self.calls = Counter(id(node.layer) for node in self.nodes)
        self.refused: dict[str, tuple[str, str]] = {}
        self.steps = {id(node): self._step(node) for node in self.nodes}
        self._raise_refused()
        self.merged: dict[int, RangePlan] = {}
        self.sites: list[Site] = []
        self.tensor_range: dict[int, RangePlan] = {}
        self.layer_range: dict[int, RangePlan] = {}
        self.entries: dict[int, Site] = {}
        self.exits: dict[int, Site] = {}
        # The name of the loop that is being planned, and the loop.
        self.loop = ""
        self.loops: list[LoopPlanner] = []

    def plan(self, states: list[tuple[keras.KerasTensor, keras.KerasTensor]]) -> Plan:
        for node in self.nodes:
            step = self.steps[id(node)]
            if isinstance(node.layer, Opening):
                self.loops.append(LoopPlanner(self, node, step))
                self.loops[-1].open()
            elif isinstance(node.layer, Loop):
                self.loops[-1].close(node, step)
            elif step.integer and not (step.folds or step.fused):
                self._refuse(node.layer, step, _without_type(get_op(node.layer), step))
                if step.integer:
                    self._place(node, step)
        self._raise_refused()
        for tensor in self.graph.outputs:
            producer = self.graph.producer(tensor)
            if producer.is_input and "float" in tensor.dtype and self._rule(producer.layer).integer:
                self._range_of(tensor, producer)
            self._widen_output(tensor, producer)
        quantized = [t.name for t in self.graph.inputs if id(t) in self.entries]
        unknown = sorted(set(self.input_stats) - set(quantized))
        if unknown:
            raise IntactError(
                f"`input_stats` names {unknown}, which are no quantized inputs. "
                f"Quantized inputs: {quantized}."
            )
        for source, target in states:
            self._feed_back(source, target)
        begin_states(self)
        ranges = self._number_slots()
        factors = Factors(self.graph, lambda node: self.steps[id(node)].integer)
        for node in self.nodes:
            of_output = self.steps[id(node)].site
            if of_output and not of_output.range.fixed:
                of_output.products = factors.products(node.outputs[0])
        steps = [self.steps[id(node)] for node in self.nodes]
        layers = [node.layer for node in self.nodes if not getattr(node.layer, "own_rule", None)]
        # Presets have rules for layers that most models lack.
        unused = [] if self.scheme in SCHEMES.values() else self.scheme.unused_rules(layers)
        return Plan(self.scheme.name, steps, ranges, self.entries, self.exits, unused)

    def _number_slots(self) -> list[RangePlan]:
        """The ranges that are left after all merges; each of their sites gets a slot."""
        sites: dict[int, list[Site]] = {}
        for site in self.sites:
            site.range = self._root(site.range)
            members = sites.setdefault(id(site.range), [])
            site.slot = len(members)
            members.append(site)
        return [members[0].range for members in sites.values()]

    def _step(self, node: Node) -> Step:
        layer = node.layer
        op = get_op(layer)
        rule = self._rule(layer)
        if computes_whole(op, node.inputs, node.outputs):
            return Step(layer.name, op.name, False, whole=node.outputs[0].dtype)
        step = Step(layer.name, op.name, rule.integer, activations=rule.activations)
        if rule.weights is None:
            by_layer = getattr(layer, "own_rule", None) is not None
            step.integer, step.why_float = False, BY_CHOICE[by_layer]
            return step
        if not rule.integer and not any(weight.dynamic for weight in op.weights.values()):
            step.activations = None
        if any(weight.kernels or not step.activations for weight in op.weights.values()):
            step.weights = _as_kernels_have_it(layer, op, rule.weights, step.activations)
        reason = None
        if rule.integer:
            reason = op.refuse(layer, [tensor.shape for tensor in node.inputs])
        self._refuse(layer, step, reason or _without_kernel(op, step))
        return step

    def _rule(self, layer: keras.layers.Layer) -> Rule:
        """The rule of a canonical layer, with 8 bits where its kernels do not take 16."""
        return _as_op_has_it(self._asked_rule(layer), find_op(layer))

    def _asked_rule(self, layer: keras.layers.Layer) -> Rule:
        """The layer's own rule, or else the scheme's."""
        return getattr(layer, "own_rule", None) or self.scheme.rule_for(layer)

    def _refuse(self, layer: keras.layers.Layer, step: Step, reason: str | None) -> None:
        """Where there is a reason, keep the layer in float, and note if that is not allowed."""
        if reason and not self.allow_float:
            self.refused[layer.name] = f"{type(layer).__name__} {layer.name!r}", reason
        if reason:
            step.integer, step.why_float, step.weights = False, reason, None

    def _raise_refused(self) -> None:
        """Raise one error for all layers that cannot be quantized, if there are any."""
        if not self.refused:
            return
        name, (what, reason) = next(iter(self.refused.items()))
        keep = "pass `allow_float=True`, or a rule"
        rule = f"`intact.Rule({name!r}, weights=None, activations=None)`"
        if len(self.refused) == 1:
            raise IntactError(
                f"{what} cannot be quantized: {reason}. Change the layer, or keep it in float: "
                f"{keep}: {rule}."
            )
        lines = "\n  ".join(f"{what}: {reason}" for what, reason in self.refused.values())
        raise IntactError(
            f"{len(self.refused)} of the {len(self.calls)} layers cannot be quantized:\n  {lines}\n"
            f"Change them, or keep them in float: {keep} for each, such as {rule}."
        )

    def _spec(self, node: Node) -> TensorSpec:
        """How the output of an integer node is quantized."""
        spec = self._rule(node.layer).activations
        assert spec is not None
        return spec

    # Ranges ---------------------------------------------------------------------------

    def _root(self, range_plan: RangePlan) -> RangePlan:
        while id(range_plan) in self.merged:
            range_plan = self.merged[id(range_plan)]
        return range_plan

    def _new_range(
        self,
        name: str,
        spec: TensorSpec,
        fixed: Fixed | None = None,
        pair: tuple[float, float] | None = None,
    ) -> RangePlan:
        pair = pair or spec.rule.fixed(spec.bits)
        if fixed:
            # The kernel prescribes the scale, whatever the rule says.
            wide = spec.activation_dtype == "int16"
            pair = (2.0**-15, 0.0) if wide else (fixed.scale, float(fixed.zero_point))
            spec = TensorSpec(16 if wide else 8, kind=spec.kind)
        return RangePlan(name, spec, pair, loop=self.loop)

    def _site(self, name: str, range_plan: RangePlan, kernel_rounding: str) -> Site:
        site = Site(range_plan, 0, kernel_rounding)
        range_plan.sites.append(name)
        self.sites.append(site)
        return site

    def _merge(self, into: RangePlan, other: RangePlan) -> bool:
        """Make two ranges one, unless one is fixed or serves as a clamp; whether they are one."""
        if into is other:
            return True
        if into.loop != other.loop:
            return False
        if into.open or other.open:
            return self._join(into, other) if other.open else self._join(other, into)
        if into.fixed or other.fixed:
            return into.fixed == other.fixed and into.fixed is not None and self._join(into, other)
        if into.private or other.private or into.spec != other.spec:
            return False
        return self._join(into, other)

    def _join(self, into: RangePlan, other: RangePlan) -> bool:
        self.merged[id(other)] = into
        into.sites.extend(other.sites)
        return True

    def _range_of(self, tensor: keras.KerasTensor, reader: Node) -> RangePlan:
        """The range of a tensor that an integer node reads, or of an input that is an output."""
        if id(tensor) not in self.tensor_range:
            # A model input, or the output of a float node: quantized on the way in.
            producer = self.graph.producer(tensor)
            source = producer.layer.name
            spec = self.scheme.inputs or _taken_in(self._spec(reader))
            pair = None
            if producer.is_input and tensor.name in self.input_stats:
                pair = _fixed_input(tensor.name, self.input_stats[tensor.name], spec)
            range_plan = self._new_range(source, spec, pair=pair)
            self.entries[id(tensor)] = self._site(source, range_plan, "real")
            self.tensor_range[id(tensor)] = range_plan
        return self._root(self.tensor_range[id(tensor)])

    # Nodes ----------------------------------------------------------------------------

    def _place(self, node: Node, step: Step) -> None:
        op = get_op(node.layer)
        spec = self._spec(node)
        inputs = {
            index: self._range_of(tensor, node)
            for index, tensor in enumerate(node.inputs)
            if index not in op.plain
        }
        for index, range_plan in inputs.items():
            if range_plan.spec.activation_dtype != spec.activation_dtype:
                # A kernel takes one type, so the input is converted.
                name = f"{node.layer.name}_input_{index}"
                inputs[index] = self._new_range(name, _taken_in(spec))
                step.requantize[index] = self._site(name, inputs[index], "convert")
        if isinstance(op.output, NotQuantized):
            return
        if isinstance(op.output, SameAsInput):
            for tensor in node.outputs:
                self.tensor_range[id(tensor)] = inputs[0]
        elif isinstance(op.output, AllSame):
            self.tensor_range[id(node.outputs[0])] = self._unify(node, step, inputs)
        else:
            fixed = op.output if isinstance(op.output, Fixed) else None
            chain = self._chain(node, op)
            range_plan = self._new_range(node.layer.name, self._output_spec(chain), fixed)
            self._close_chain(chain, op, range_plan)

    def _unify(self, node: Node, step: Step, inputs: dict[int, RangePlan]) -> RangePlan:
        """One range for all inputs; an input that cannot share it is requantized."""
        first, *rest = inputs.values()
        own = [r for r in (first, *rest) if r.loop == self.loop]
        free = [r for r in own if not (r.fixed or r.private)]
        same = all(r is first for r in rest)
        pair = first.fixed
        if same or (pair and all(r.fixed == pair for r in rest)):
            common = first
        elif free:
            common = free[0]
        else:
            # The layer's own name is that of its output.
            common = self._new_range(f"{node.layer.name}_input", self._spec(node))
        for index, range_plan in inputs.items():
            range_plan, into = self._root(range_plan), self._root(common)
            alike = range_plan.loop != into.loop and range_plan.fixed == into.fixed is not None
            if not alike and not self._merge(into, range_plan):
                name = f"{node.layer.name}_input_{index}"
                into.open = False
                step.requantize[index] = self._site(name, common, "requantize")
        return common

    def _feed_back(self, source: keras.KerasTensor, target: keras.KerasTensor) -> None:
        """Give a state's input and output the same range."""
        entry, output_range = self.entries.get(id(source)), self.tensor_range.get(id(target))
        if entry is None or output_range is None:
            what = f"input {source.name!r}" if entry is None else f"output {target.name!r}"
            raise IntactError(
                f"State {source.name!r} cannot be fed back as integers: {what} is not quantized. "
                "Remove it from `states`, or quantize the layer next to it."
            )
        common, output_range = self._root(entry.range), self._root(output_range)
        if not self._merge(common, output_range):
            same = common.spec.activation_dtype == output_range.spec.activation_dtype
            rounding = "requantize" if same else "convert"
            self.exits[id(target)] = self._site(f"{source.name}_output", common, rounding)

    def _widen_output(self, tensor: keras.KerasTensor, node: Node) -> None:
        """Convert a model's output to the type of its rule, if its kernel has 8 bits only."""
        rule = self._asked_rule(node.layer)
        range_plan = self.tensor_range.get(id(tensor))
        if range_plan is None or rule.activations is None or self._rule(node.layer) is rule:
            return
        wide = self._new_range(f"{node.layer.name}_output", rule.activations)
        self.exits[id(tensor)] = self._site(wide.name, wide, "convert")

    def _chain(self, node: Node, op: Op) -> list[Node]:
        """A node with the batch norm and the activation that become part of its kernel."""
        chain = [node]
        if not isinstance(op.output, Observed):
            return chain
        following = self._follower(node)
        if following and op.folds_batch_norm:
            other = get_op(following.layer)
            if other.folds_into_weights(following.layer, node.outputs[0].shape):
                chain.append(following)
        following = self._follower(chain[-1])
        if following and op.fuses and self._clamp(following) is not None:
            chain.append(following)
        return chain

    def _clamp(self, node: Node) -> tuple[float | None, float | None] | None:
        """The limits of a node that can fuse into the kernel before it, or None.

        Kernels fuse a ReLU. The range enforces other limits, or a MAXIMUM and a MINIMUM do.
        """
        layer, spec = node.layer, self._spec(node)
        if isinstance(layer, Clamp) and (spec.bits < 8 or spec.rule.name != "range"):
            return None
        return _limits(layer)

    def _output_spec(self, chain: list[Node]) -> TensorSpec:
        """How the output of a chain is quantized.

        The layers are one kernel, so one rule counts: the one that comes first in the scheme.
        The type is that of the first layer, because a kernel takes one type.
        """
        dtype = self._spec(chain[0]).activation_dtype
        first = min(chain, key=lambda node: self._place_in_scheme(node.layer))
        spec = self._spec(first)
        spec = spec if spec.activation_dtype == dtype else self._spec(chain[0])
        if isinstance(get_op(chain[0].layer), Cast):
            spec = self.scheme.inputs or _taken_in(spec)
            return replace(spec, whole=spec.rule.name == "range")
        limit = getattr(chain[0].layer, "range_limit", None)
        if limit and spec.limit is None and spec.activation_dtype != "int16":
            spec = replace(spec, limit=limit(spec.bits))
        return spec

    def _place_in_scheme(self, layer: keras.layers.Layer) -> int:
        """The index of a layer's rule in the scheme; -1 for a rule of its own."""
        if getattr(layer, "own_rule", None):
            return -1
        rule = self.scheme.rule_for(layer)
        return next(i for i, known in enumerate((*self.scheme.rules, rule)) if known is rule)

    def _close_chain(self, chain: list[Node], op: Op, range_plan: RangePlan) -> None:
        """Merge batch norm and activation into the op, and quantize the output."""
        node, last = chain[0], chain[-1]
        step = self.steps[id(node)]
        lower, upper = _limits(node.layer) or (None, None)
        for following in chain[1:]:
            clamp = self._clamp(following)
            if clamp is None:
                self._fold(node, following)
            else:
                (lower, upper), self.steps[id(following)].fused = clamp, True
        for part in chain:
            self.steps[id(part)].activations = range_plan.spec
        range_plan.name = last.layer.name
        if range_plan.spec.rule.signs and lower is not None and lower >= 0:
            raise IntactError(
                f"Cannot binarize the output of ReLU {range_plan.name!r} with quantizer "
                f"{range_plan.spec.rule.name!r}: its sign is constant. Remove the ReLU, or choose "
                "another quantizer, such as 'pact' with 1 bit."
            )
        # Kernels clamp at 0 or 6. Every other limit has to be an end of the range.
        kernel_clamps = lower in (None, 0.0) and upper in (None, 6.0)
        range_plan.private = op.own_range or op.clamps_by_range or not kernel_clamps
        dtype = step.weights.dtype if step.weights else "int8"
        rounding = op.rounding(node.layer, dtype, node.inputs)
        site = self._site(range_plan.name, range_plan, rounding)
        site.lower, site.upper = lower, upper
        self.steps[id(last)].site = site
        self.tensor_range[id(last.outputs[0])] = range_plan
        if getattr(last.layer, "one_range", False):
            self._share_range(last.layer, range_plan)

    def _fold(self, node: Node, norm: Node) -> None:
        """Fold a batch norm into the op before it."""
        step, other = self.steps[id(node)], self.steps[id(norm)]
        other.folds = True
        step.keeps_norm = self._trains_on(node, norm)
        if step.keeps_norm or _has_one_scale(step.weights):
            # One scale for all channels has no room for a factor per channel.
            step.takes_in, other.fused = norm.layer.name, True

    def _share_range(self, layer: keras.layers.Layer, range_plan: RangePlan) -> None:
        """Give all calls of a layer the range of its first call."""
        first = self._root(self.layer_range.setdefault(id(layer), range_plan))
        if first is not range_plan:
            first.private |= range_plan.private
            self._join(first, range_plan)

    def _trains_on(self, node: Node, norm: Node) -> bool:
        """Whether a batch norm trains as a part of the op's weights."""
        once = all(self.calls[id(call.layer)] == 1 for call in (node, norm))
        is_norm = isinstance(norm.layer, keras.layers.BatchNormalization)
        return self.fold_batch_norm and once and is_norm and bool(self.steps[id(node)].weights)

    def _follower(self, node: Node) -> Node | None:
        following = self.graph.sole_consumer(node.outputs[0])
        if following is None or not self.steps[id(following)].integer:
            return None
        return following


def _limits(layer: keras.layers.Layer) -> tuple[float | None, float | None] | None:
    """The limits of a ReLU or a clamp; None for any other layer."""
    return (layer.lower, layer.upper) if isinstance(layer, Clamp) else relu_bounds(layer)
