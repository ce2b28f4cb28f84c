"""Imports point one way."""

import ast
from pathlib import Path

import pytest

import intact

PACKAGE = Path(intact.__file__).parent

# From the bottom up; a module may import those of lower rank, and its own room. A module that
# does not stand where its room does has a row of its own.
RANKS = {
    "errors": 0,
    "backend": 0,
    "memory": 0,
    "conversion": 0.5,
    "paths": 0.5,
    "registry": 0.5,
    "tables": 0,
    "progress": 0,
    "testing": 16,
    "keras_files.h5check": 0,
    "keras_files.activations": 0,
    "names": 0,
    "registration": 17,
    "numerics": 1,
    "litert": 1,
    "targets": 2,
    "rounding.int16_tables": 1,
    "graph.view": 2,
    "quantizers": 3,
    "layers.schedule": 2,
    "callbacks": 3,
    "plan.scheme": 4,
    "schemes": 5,
    "plan.filters": 5,
    "keras_files": 5,
    "calibration.sources": 5,
    "rounding": 6,
    "layers.base": 5,
    "layers.direct_calls": 6,
    "layers.outline": 6,
    "layers.sharing": 6,
    "layers.tracked_range": 6,
    "layers.quantized_model": 7,
    "layers.fake_quantize": 7,
    "layers.stateful": 8,
    "ops": 8,
    "graph": 9,
    "plan": 10,
    "layers": 11,
    "lowering": 12,
    "analysis.explanation": 11,
    "calibration": 13,
    "recovery": 14,
    "api": 14,
    "analysis": 15,
    "targets.checking": 16,
    "search": 16,
    "tfmot": 16,
    "cli": 17,
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def rank_name(module: str) -> str:
    """The row of a module, such as "litert.reader"."""
    return module if module in RANKS else module.split(".")[0]


def imports(path: Path):
    """Modules imported at run time; those only for type checkers do not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = room(path)
    for module in imports(path):
        package, _, name = module.partition(".")
        if package == "intact" and name and rank_name(name) != own:
            assert RANKS[rank_name(name)] < RANKS[own], f"{own} imports {module}"


def room(path: Path) -> str:
    """The row of a file's module."""
    return rank_name(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if room(path) in ("litert", "targets")],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_litert_and_targets_know_no_keras(path):
    below = (
        "intact.litert",
        "intact.errors",
        "intact.names",
        "intact.tables",
        "intact.paths",
        f"intact.{room(path)}",
    )
    for module in imports(path):
        assert module.split(".")[0] not in ("keras", "jax", "torch", "tensorflow")
        if module.startswith("intact"):
            assert module.startswith(below)
