"""Filters choose the user's layers that are quantized; the rest stays in float."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from intact.errors import IntactError
from intact.plan.scheme import FLOAT_RULE, Rule

Filters = str | Sequence[str] | Callable[[Any], bool]
"""One or several regular expressions for layers' names, or a function of a layer."""


class LayerFilter:
    """Applies filters to layers, and remembers which of them ever matched.

    Args:
        filters: A regular expression that is searched for in layers' names, a list of them, one of
            which must match, or a function of a layer that returns a bool: as in Keras' own
            `model.quantize(filters=...)`. None chooses every layer.

    Raises:
        IntactError: Neither of these, or a pattern that is no regular expression.

    Example:

    >>> chosen = LayerFilter("^head")
    >>> chosen.rule(keras.layers.Dense(2, name="head")) is None  # by the scheme
    True
    >>> chosen.rule(keras.layers.Dense(2, name="other")).integer
    False
    """

    def __init__(self, filters: Filters | None) -> None:
        patterns: Any = [filters] if isinstance(filters, str) else filters
        self._function = patterns if callable(patterns) else None
        self._patterns: list[re.Pattern] = []
        if self._function is None and patterns is not None:
            good = isinstance(patterns, list | tuple) and patterns
            if not good or not all(isinstance(pattern, str) for pattern in patterns):
                raise IntactError(
                    "Expected `filters` to be a regular expression, a list of them, or a function "
                    f"that takes a layer and returns a bool. Received: {filters!r}."
                )
            self._patterns = [_compiled(pattern) for pattern in patterns]
        self._all = filters is None
        self._matched: set[str] = set()
        self._names: list[str] = []

    def rule(self, layer: Any) -> Rule | None:
        """The rule that keeps a layer in float, or None if the scheme decides.

        Args:
            layer: A user's layer, or an operation (`x + 1`).
        """
        if self._all or self._says_yes(layer):
            return None
        return FLOAT_RULE

    def _says_yes(self, layer: Any) -> bool:
        self._names.append(layer.name)
        if self._function:
            matching = [layer.name] if self._function(layer) else []
        else:
            matching = [p.pattern for p in self._patterns if p.search(layer.name)]
        self._matched.update(matching)
        return bool(matching)

    def check(self) -> list[str]:
        """The patterns that matched no name, once all layers have been seen.

        Raises:
            IntactError: No layer was chosen at all.
        """
        if not self._all and not self._matched:
            names = list(dict.fromkeys(self._names))
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise IntactError(
                "`filters` choose no layer, so nothing would be quantized. The layers are: "
                f"{shown}."
            )
        return [p.pattern for p in self._patterns if p.pattern not in self._matched]


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise IntactError(
            f"The filter {pattern!r} is no regular expression: {error}. Escape what is meant "
            "literally, with `re.escape`."
        ) from error
