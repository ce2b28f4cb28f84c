"""Mixed precision: chooses fine and coarse schemes for layers under a budget."""

import glob
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras

from intact.api import export, quantize_model
from intact.calibration.calibration import find_ranges
from intact.calibration.sources import Data, collect
from intact.errors import IntactError
from intact.graph.canonicalize import canonicalize
from intact.graph.simplify import simplify
from intact.graph.view import data_inputs, view
from intact.layers.fake_quantize import FakeQuantize
from intact.litert.runtime import load_litert
from intact.names import SchemeName
from intact.ops.loop import layers_of, opened
from intact.plan.planner import make_plan
from intact.plan.scheme import Rule, Scheme, TensorSpec
from intact.schemes import SCHEMES
from intact.search.measures import Metric, agreement, latencies, top1
from intact.search.sensitivity import sensitivity

Specs = tuple[TensorSpec | None, TensorSpec | None]
"""How weights and activations are quantized."""

BUDGETS = ("size", "latency", "accuracy")


def mixed(
    model: keras.Model,
    data: Data,
    budget: dict[str, float],
    labels: Any = None,
    choices: Sequence[SchemeName] = ("int4", "int8", "int16x8", "float32"),
    steps: int | None = None,
    batch_size: int = 32,
    verbose: int = 1,
) -> Scheme:
    """Choose a scheme for each layer, under a budget.

    Layers are ranked by `sensitivity`. A ladder leads from all layers in the coarsest choice to all
    in the finest; on each rung one more layer becomes finer, the most damaging first. For an
    accuracy, the lowest rung that reaches it is chosen; for a limit of size or latency, the highest
    rung within it. Rungs are measured on files, as LiteRT
    runs them, and found by bisection.

    Args:
        model: A float Keras model.
        data: As for `calibrate`; accuracy is measured on it, too.
        budget: One or more of: "size", the largest file, in bytes, or as a share of the float
            file where it is at most 1; "latency", in milliseconds for one run of a batch of 1
            on one thread, on this machine; "accuracy", the smallest share of the samples
            whose largest output is the label's, or the float model's where there are no
            labels.
        labels: Labels of the samples, whole numbers or one-hot.
        choices: Names of presets, from coarse to fine. Kernels of 16 bits are slower than
            those of float on most CPUs: leave "int16x8" out where latency counts.
        steps: How many batches to take at most.
        batch_size: Samples that run at once.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        The scheme, for `quantize_model`; print it.

    Raises:
        IntactError: A budget is unknown, or no rung keeps it.
        InvalidDataError: The data is empty, not finite, or wrongly shaped.

    Example:

    >>> x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> print(mixed(model, x, {"accuracy": 0.9}, choices=("int8", "float32"), verbose=0))
    mixed
      all layers: weights int8, activations int8
    """
    unknown = [name for name in budget if name not in BUDGETS]
    if unknown or not budget:
        raise IntactError(
            f"A budget is a dict of one or more of {', '.join(BUDGETS)}. Received: {budget!r}."
        )
    missing = [name for name in choices if name not in SCHEMES]
    if missing or not choices:
        raise IntactError(f"Expected names of presets as choices. Received: {choices!r}.")
    ladder = _Ladder(model, data, labels, choices, steps, batch_size, verbose)
    return ladder.choose(dict(budget))


class _Ladder:
    """Schemes from the coarsest to the finest, with the measurements of each."""

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        labels: Any,
        choices: Sequence[SchemeName],
        steps: int | None,
        batch_size: int,
        verbose: int,
    ) -> None:
        self.model, self.choices, self.batch_size = model, choices, batch_size
        self.verbose = verbose
        arrays = collect(data, steps, batch_size, data_inputs(model))
        self.data = arrays if len(arrays) > 1 else arrays[0]
        self.real = export(model)
        expected = load_litert(self.real).predict(self.data)
        self.metric: Metric = agreement(expected) if labels is None else top1(labels)
        self.groups = _groups(model)
        self.rules = [_rules(model, SCHEMES[name]) for name in choices]
        self.top = (len(choices) - 1) * len(self.groups)
        self.files: dict[int, bytes] = {}
        self.rankings: dict[int, list[str]] = {}

    def choose(self, budget: dict[str, float]) -> Scheme:
        """The rung that a budget asks for."""
        if budget.get("size", 2) <= 1:
            budget["size"] *= len(self.real)
        limits: dict[str, float] = {
            name: budget[name] for name in ("size", "latency") if name in budget
        }
        if "accuracy" in budget:
            wanted = budget["accuracy"]
            rung = self._first(lambda rung: self._accuracy(rung) >= wanted)
            if rung is None:
                self._refuse("accuracy", self._accuracy(self.top), wanted)
        else:
            beyond = self._first(lambda rung: not self._within(rung, limits))
            rung = self.top if beyond is None else beyond - 1
        assert rung is not None
        for name, limit in limits.items():
            cost = self._cost(max(rung, 0), name)
            if rung < 0 or cost > limit:
                self._refuse(name, cost, limit)
        return self._scheme(rung)

    def _refuse(self, name: str, reached: float, wanted: float) -> None:
        raise IntactError(
            f"No scheme of the choices {', '.join(self.choices)} keeps the budget: the nearest "
            f"has {name} {reached:g}, and {wanted:g} was asked for. Change the budget, or the "
            "choices."
        )

    def _first(self, holds: Callable[[int], bool]) -> int | None:
        """The lowest rung for which a condition holds that also holds for all rungs above it."""
        size = len(self.groups)
        ends = [*range(0, self.top + 1, size)]
        end = next((rung for rung in ends if holds(rung)), None)
        if not end:
            return end
        low, high = end - size, end
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high

    def _within(self, rung: int, limits: dict[str, float]) -> bool:
        return all(self._cost(rung, name) <= limit for name, limit in limits.items())

    def _cost(self, rung: int, name: str) -> float:
        file = self._file(rung)
        return len(file) if name == "size" else latencies([file])[0].best

    def _accuracy(self, rung: int) -> float:
        return self.metric(load_litert(self._file(rung)).predict(self.data))

    def _file(self, rung: int) -> bytes:
        if rung not in self.files:
            q = quantize_model(self.model, self._scheme(rung))
            if any(isinstance(layer, FakeQuantize) for layer in q.layers):
                find_ranges(q, self.data, batch_size=self.batch_size, verbose=self.verbose)
            self.files[rung] = export(q)
        return self.files[rung]

    def _scheme(self, rung: int) -> Scheme:
        """The scheme of a rung: one rule for each layer that differs from most layers."""
        coarse, count = divmod(rung, len(self.groups))
        finer = set(self._ranking(coarse)[:count]) if count else set()
        rules = {
            name: self.rules[coarse + (leader in finer)][name]
            for leader, names in self.groups.items()
            for name in names
        }
        common = Counter(rules.values()).most_common(1)[0][0]
        own = [
            Rule(glob.escape(name), weights, activations)
            for name, (weights, activations) in rules.items()
            if (weights, activations) != common
        ]
        return Scheme("mixed", (*own, Rule(None, *common)))

    def _ranking(self, coarse: int) -> list[str]:
        """The layers that head a group, the most damaging under a choice first."""
        if coarse not in self.rankings:
            result = sensitivity(
                self.model,
                self.data,
                self.choices[coarse],
                batch_size=self.batch_size,
                allow_float=True,
                verbose=self.verbose,
            )
            ranked = [entry.name for entry in result.layers if entry.name in self.groups]
            rest = [name for name in self.groups if name not in ranked]
            self.rankings[coarse] = [*ranked, *rest]
        return self.rankings[coarse]


def _groups(model: keras.Model) -> dict[str, list[str]]:
    """Per layer that becomes a separate op, its name and those of the layers merged into it."""
    canonical = simplify(canonicalize(model), SCHEMES["int8"])
    graph = opened(view(canonical))
    plan = make_plan(canonical, SCHEMES["int8"], allow_float=True)
    nodes = [node for node in graph.nodes if not node.is_input]
    leaders: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for node, step in zip(nodes, plan.steps, strict=True):
        follows = step.folds or step.fused
        leader = leaders[graph.producer(node.inputs[0]).layer.name] if follows else step.name
        leaders[step.name] = leader
        groups.setdefault(leader, [])
        if step.name not in groups[leader]:
            groups[leader].append(step.name)
    return groups


def _rules(model: keras.Model, scheme: Scheme) -> dict[str, Specs]:
    """Per layer, how a preset quantizes it; a layer without a kernel for it stays in float."""
    canonical = simplify(canonicalize(model), scheme)
    plan = make_plan(canonical, scheme, allow_float=True)
    specs: dict[str, Specs] = {}
    known_layers = layers_of(canonical)
    for step in plan.steps:
        rule = scheme.rule_for(known_layers[step.name])
        stays = step.why_float and rule.integer
        specs[step.name] = (None, None) if stays else (rule.weights, rule.activations)
    return specs
