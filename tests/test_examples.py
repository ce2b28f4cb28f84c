"""The examples run, and show what they say."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from small import host, lossy, quantizers

import intact
from intact.ops import registry

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(request):
    """An example as a module; ops that it registers are forgotten afterwards."""
    kept = list(registry.REGISTRY), dict(registry._by_layer)
    spec = importlib.util.spec_from_file_location(request.param, EXAMPLES / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    registry.REGISTRY[:], registry._by_layer = kept[0], kept[1]


@pytest.mark.parametrize("example", ["register_your_own"], indirect=True)
def test_register_your_own(example, capsys):
    comparison = example.main()
    assert comparison.different == 0
    assert "DEPTH_TO_SPACE" in capsys.readouterr().out
    assert isinstance(intact.ops.find_op(example.PixelShuffle()), example.DepthToSpace)


@pytest.mark.parametrize("example", ["own_weighted_layer"], indirect=True)
def test_own_weighted_layer(example):
    assert isinstance(intact.ops.find_op(example.Projection(2)), example.main())


@pytest.fixture
def run(request):
    """What an example's `main` returns; quantizers that it registers are forgotten."""
    path = EXAMPLES / f"{request.param}.py"
    assert len(path.read_text().splitlines()) <= 40
    kept = dict(intact.Quantizer.registry)
    spec = importlib.util.spec_from_file_location(request.param, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.main()
    intact.Quantizer.registry.clear()
    intact.Quantizer.registry.update(kept)


@lossy
@pytest.mark.parametrize("run", ["own_quantizer"], indirect=True)
def test_own_quantizer(run):
    q, comparison = run
    assert comparison.different == 0
    ((n, _),) = q.get_layer("dense").quantized_weights().values()
    assert set(np.abs(host(n)).ravel()) <= {0, 1, 2, 4, 8, 16, 32, 64}


@lossy
@pytest.mark.parametrize("run", ["own_scheme"], indirect=True)
def test_own_scheme(run, capsys):
    q, comparison = run
    assert comparison.max_lsb <= 1e-3
    bits = {name: fake.spec.bits for name, fake in quantizers(q).items()}
    assert bits["image"] == 8
    assert bits["block_1_relu"] == 4


@pytest.mark.parametrize("run", ["shared_ranges"], indirect=True)
def test_shared_ranges(run):
    q, comparison = run
    assert comparison.different == 0
    scales = {float(host(quantizers(q)[f"hidden_{i}_relu"].scale)) for i in range(3)}
    assert len(scales) == 1


@pytest.mark.parametrize("run", ["annealed"], indirect=True)
def test_annealed(run):
    q, losses, comparison = run
    assert intact.training_step(q) == 32
    assert losses[-1] < losses[0]
    assert comparison.different == 0


SCRIPTS = {
    "torch": ["processes_torch", "loop_torch", "shards", "shards_dask"],
    "tensorflow": ["replicas_tensorflow", "workers_tensorflow"],
    "jax": ["devices_jax", "processes_jax"],
}[keras.backend.backend()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_that_start_processes_or_replicas(name):
    job = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = job.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        # Its processes are of its session, and would wait for each other still.
        os.killpg(job.pid, signal.SIGKILL)
        raise
    assert job.returncode == 0, errors
    results = re.findall(r"(?:Values that differ|The same file as by one pass): (\w+)", printed)
    assert set(results) in ({"0"}, {"True"}), printed + errors


def test_every_example_is_tested_and_has_a_place_in_the_guide():
    text, guide = (
        Path(__file__).read_text(),
        (EXAMPLES.parent / "docs/guides/examples.md").read_text(),
    )
    for name in sorted(path.stem for path in EXAMPLES.glob("*.py")):
        assert f'"{name}"' in text, name
        assert f'--8<-- "examples/{name}.py"' in guide, name
