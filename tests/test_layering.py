"""Imports point one way."""

import ast
from pathlib import Path

import pytest

import intact

PACKAGE = Path(intact.__file__).parent

# From the bottom up; a module may import those of lower rank, and its own folder.
RANKS = {
    "torch_kernels": -1,
    "tensorflow_kernels": -1,
    "errors": 0,
    "backend": 0,
    "kernels": 0,
    "h5check": 0,
    "paths": 0.5,
    "numerics": 1,
    "fixed_point": 2,
    "gates": 0,
    "observers": 2,
    "widths": 2,
    "schedule": 2,
    "callbacks": 3,
    "scheme": 2.5,
    "uses": 2.5,
    "graph": 2,
    "litert": 2,
    "quantized_layer": 2.5,
    "quantized_model": 3,
    "quantizers": 3,
    "lstm": 3.5,
    "schemes": 3,
    "filters": 3,
    "ops": 4,
    "canonicalize": 5,
    "input_norms": 5,
    "masked_scores": 5,
    "simplify": 5.5,
    "factors": 5,
    "plan": 6,
    "explain": 7,
    "training": 7,
    "watching": 8.5,
    "points": 8.5,
    "biases": 8.6,
    "accuracy": 8.65,
    "sources": 4,
    "calibration": 8.7,
    "keeping": 8,
    "lowering": 8,
    "page": 0,
    "report": 10,
    "bisection": 11,
    "freezing": 9,
    "recovery": 9,
    "api": 10,
    "distillation": 11,
    "check": 11,
    "choosing": 11,
    "legacy": 3,
    "demo": 11,
    "data_files": 9,
    "tfmot": 11,
    "cli": 12,
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def rank_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


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
    own = rank_name(path)
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "intact" or len(parts) == 1 or parts[1] == own:
            continue
        assert RANKS[parts[1]] < RANKS[own], f"{own} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "litert").glob("*.py")), ids=lambda p: p.name)
def test_litert_knows_no_keras(path):
    for module in imports(path):
        assert module.split(".")[0] not in ("keras", "jax", "torch", "tensorflow")
        if module.startswith("intact"):
            assert module.startswith(("intact.litert", "intact.errors"))
