"""The examples run, and show what they say."""

import importlib.util
from pathlib import Path

import pytest

import intact
from intact.ops import base

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(request):
    """An example as a module; ops that it registers are forgotten afterwards."""
    kept = list(base.REGISTRY), dict(base._by_layer)
    spec = importlib.util.spec_from_file_location(request.param, EXAMPLES / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    base.REGISTRY[:], base._by_layer = kept[0], kept[1]


@pytest.mark.parametrize("example", ["register_your_own"], indirect=True)
def test_register_your_own(example, capsys):
    comparison = example.main()
    assert comparison.different == 0
    assert "DEPTH_TO_SPACE" in capsys.readouterr().out
    assert intact.ops.find_op(example.PixelShuffle()) is example.DepthToSpace
