"""Ops that LiteRT computes in float only."""

import numpy as np
import pytest
from battery import build_model, make_data

import intact
from intact.ops import REGISTRY

CASES = [
    pytest.param(case, id=f"{op.__name__}-{i}")
    for op in REGISTRY
    for i, case in enumerate(op.float_cases)
]


@pytest.mark.parametrize("case", CASES)
def test_float_only(case, rng):
    model, data = build_model(case, rng), make_data(case, rng, 16)
    with pytest.raises(intact.IntactError, match="no integer kernel"):
        intact.quantize_model(model)
    expected = model.predict(data, verbose=0)
    found = intact.load_litert(intact.export(model)).predict(data)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)
    q = intact.quantize_model(model, allow_float=True)
    plan = intact.plan_model(model, allow_float=True)
    assert plan.float_steps
    if any(step.integer for step in plan.steps):
        intact.calibrate(q, data, verbose=0)
    file = intact.load_litert(intact.export(q))
    np.testing.assert_allclose(file.predict(data), q.predict(data, verbose=0), atol=1e-5)
