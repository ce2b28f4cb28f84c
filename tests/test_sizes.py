"""Files and functions that one can read in a sitting."""

import ast
from pathlib import Path

import pytest

import intact

PACKAGE = Path(intact.__file__).parent
FILE, FUNCTION = 500, 40
"""The most lines of a file, and of a function without its docstring and signature."""

# What is longer, and why. A name leaves this list with the change that makes it shorter.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def functions(path: Path):
    """`(name, lines)` of each function; its docstring and signature do not count."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            yield node.name, lines


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_sizes(path):
    place = str(path.relative_to(PACKAGE))
    lines = len(path.read_text().splitlines())
    assert (lines > FILE) == (place in LONG_FILES), f"{place} has {lines} lines"
    for name, size in functions(path):
        key = f"{place}:{name}"
        assert (size > FUNCTION) == (key in LONG_FUNCTIONS), f"{key} has {size} lines"
