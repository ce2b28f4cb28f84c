"""The examples in docstrings run, and everything public has one."""

import doctest
import importlib
import inspect
import pkgutil

import keras
import numpy as np
import pytest

import intact
from intact import ops

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(intact.__path__, "intact.")
    if "__main__" not in name
)
PUBLIC = sorted(
    name
    for name in intact.__all__
    if inspect.isclass(getattr(intact, name)) or inspect.isfunction(getattr(intact, name))
)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("short_timings")
def test_examples_run(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    # What an example may take for granted.
    names = {"keras": keras, "layers": keras.layers, "np": np, "intact": intact}
    registry = list(ops.REGISTRY)
    kinds = [(kind, dict(kind)) for kind in (intact.Quantizer.registry, intact.Observer.registry)]
    try:
        failed, _ = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    finally:
        ops.REGISTRY[:] = registry
        for kind, before in kinds:
            kind.clear()
            kind.update(before)
    assert not failed


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    value = getattr(intact, name)
    text = inspect.getdoc(value)
    assert text
    assert text.split("\n")[0].endswith(".")
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        assert ">>> " in text, f"{name} has no example"
