"""What all tests share: the backend, seeds, small models and data."""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from intact.litert.builder import Builder
from intact.litert.kernels import KERNELS

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


# Kernels without a row that tests write on purpose.
NO_ROW = {"UNIQUE"}


@pytest.fixture(autouse=True, scope="session")
def _every_kernel_has_a_row():
    """A test fails that writes a kernel which the kernel table does not know."""
    add = Builder.add

    def checked(self, name, *args, **kwargs):
        assert name in KERNELS or name in NO_ROW, f"{name} has no row in intact.litert.kernels"
        add(self, name, *args, **kwargs)

    Builder.add = checked
    yield
    Builder.add = add


def pytest_addoption(parser):
    parser.addoption(
        "--cases", type=int, help="run the battery on so many cases of each op; all by default"
    )


def pytest_collection_modifyitems(config, items):
    """Leave out the cases beyond `--cases`: compiling them takes most of a run.

    What a small model loses depends on its random weights, which each backend has of its own. So
    `AccuracyWarning` is an error on PyTorch alone.
    """
    if keras.backend.backend() != "torch":
        for item in items:
            item.add_marker(pytest.mark.filterwarnings("ignore::intact.AccuracyWarning"))
    limit = config.getoption("--cases")
    if limit is None:
        return
    kept, dropped = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        name = params["name"] if "case" in params and "name" in params else "-0"
        (kept if int(name.rsplit("-", 1)[1]) < limit else dropped).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(7)
    yield
    # Without collecting garbage, which takes longer than most tests.
    keras.utils.clear_session(free_memory=False)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real data, which a checkout may lack."""
    if not DATA.is_dir():
        pytest.skip("the real data is not here")
    return DATA


@pytest.fixture
def short_timings(monkeypatch):
    """Let latencies be measured for a moment, where nothing depends on them."""
    from intact.analysis import op_times
    from intact.litert import timing
    from intact.search import measures

    spans = timing.spans
    for module in (timing, measures, op_times):
        monkeypatch.setattr(module, "spans", lambda models, seconds: spans(models, 0.01))
