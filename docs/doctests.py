"""An extension of griffe: the doctests below `Example:` become the section that it knows."""

import textwrap
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Renames and indents the section, which the docstrings of Keras do not indent."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            head, section, tail = obj.docstring.value.partition("Example:\n")
            if section:
                tail = textwrap.indent(tail.strip("\n"), "    ")
                obj.docstring.value = f"{head}Examples:\n{tail}"
