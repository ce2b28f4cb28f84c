"""What all tests share: the backend, seeds, small models and data."""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(7)
    yield
    keras.backend.clear_session()


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real data, which a checkout may lack."""
    if not DATA.is_dir():
        pytest.skip("the real data is not here")
    return DATA
