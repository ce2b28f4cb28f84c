"""Which rule the layers of the canonical graph are under, and which user's layer they belong to."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from intact.plan.scheme import Rule

RuleOf = Callable[[Any], Rule | None]
"""The rule of a user's layer or operation; None leaves it to the scheme."""


class Ruling:
    """What a tracer knows of the user's layer that it is rewriting.

    Args:
        rule_of: As for `canonicalize`.
    """

    def __init__(self, rule_of: RuleOf | None) -> None:
        self._rule_of = rule_of
        self._rule: Rule | None = None
        self._inside: keras.layers.Layer | None = None
        self._settled = rule_of is None
        # Name and class of the outermost layer of the user's.
        self._owner: tuple[str, str] | None = None

    @contextlib.contextmanager
    def _asking(self, layer: Any, known: bool) -> Iterator[None]:
        """Inside a `with` block, give emitted layers the rule and the name of a user's layer.

        Args:
            layer: The layer or operation.
            known: Whether a registered op handles this layer as a whole.
        """
        outer = self._rule, self._inside, self._settled, self._owner
        self._owner = self._owner or (str(getattr(layer, "name", layer)), type(layer).__name__)
        if not self._settled:
            if isinstance(layer, keras.layers.Layer):
                self._inside = layer
            assert self._rule_of is not None
            self._rule, self._settled = self._rule_of(self._inside or layer), known
        try:
            yield
        finally:
            self._rule, self._inside, self._settled, self._owner = outer

    @contextlib.contextmanager
    def ruled(self, rule: Rule | None) -> Iterator[None]:
        """Inside a `with` block, give emitted layers a rule that overrides any other.

        Args:
            rule: The rule; None leaves it to the scheme.
        """
        outer = self._rule, self._settled
        self._rule, self._settled = rule, True
        try:
            yield
        finally:
            self._rule, self._settled = outer
