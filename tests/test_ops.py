"""The battery: every check of `intact.testing` on every case of every op."""

import contextlib
import warnings

import keras
import pytest
from battery import LOSSY, UPSTREAM, all_cases

import intact
from intact.ops import REGISTRY
from intact.ops.pool import MaxPooling2D
from intact.testing import (
    CHECKS,
    Trial,
    check_op,
    computes_in_float_before_calibration,
    float_file_equals_keras,
    is_close_to_float,
)

CASES = [
    pytest.param(name, case, id=name, marks=pytest.mark.xdist_group(name))
    for name, _, case in all_cases()
]
AS_FLOAT = (computes_in_float_before_calibration, float_file_equals_keras, is_close_to_float)
"""Checks that compare with the float layers of the backend."""

_trials: dict[str, Trial] = {}


@pytest.fixture
def trial(name, case):
    if name not in _trials:
        with contextlib.ExitStack() as stack:
            # Keras' own layers compute something else on TensorFlow with channels first.
            backend = keras.backend.backend()
            if name in LOSSY or backend == "tensorflow" or (backend, name) in UPSTREAM:
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", intact.AccuracyWarning)
            _trials[name] = Trial(case)
    return _trials[name]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_battery(name, trial, check):
    backend = keras.backend.backend()
    if check in AS_FLOAT:
        first = [getattr(x, "data_format", None) == "channels_first" for x in trial.model.layers]
        if backend == "tensorflow" and any(first):
            pytest.skip("on a CPU TensorFlow has its channels last")
        if (backend, name) in UPSTREAM:
            pytest.skip("this backend's own float layer computes something else")
    check(trial)


def test_every_op_has_cases():
    own = [op for op in REGISTRY if op.__module__.startswith("intact.ops")]
    bare = [op for op in own if op.keras_layers and not (op.cases or op.float_cases)]
    assert not [op.name for op in bare]


def test_a_failure_names_the_case_and_the_check(monkeypatch):
    def fails(trial):
        raise AssertionError("three values differ")

    monkeypatch.setattr(intact.testing, "CHECKS", (fails,))
    with pytest.raises(AssertionError, match=r"^MaxPooling2D, case 0, fails: three values differ"):
        check_op(MaxPooling2D)


def test_an_op_without_cases_is_not_tested_in_silence():
    class Bare(intact.Op):
        pass

    with pytest.raises(AssertionError, match="Bare has no cases"):
        check_op(Bare)
