"""Files with float activations: every case of every op, by every scheme that leaves them in float.

LiteRT loads and runs each, and computes what Keras does.
"""

import warnings

import keras
import numpy as np
import pytest
from battery import UPSTREAM, all_cases
from small import host
from test_schemes import EQUAL

import intact
from intact.layers.quantized_weights import QuantizedWeights
from intact.ops import REGISTRY
from intact.testing import build_model, make_data

SCHEMES = {"float32": 1e-5, **EQUAL}
"""How far the file may be from Keras, as a share of the outputs' span."""

SAMPLES = 4
CASES = [
    *all_cases(),
    *((f"{op.name}-float-{i}", op, c) for op in REGISTRY for i, c in enumerate(op.float_cases)),
]


# Keras' own call of torch.
@pytest.mark.filterwarnings("ignore:(?s).*Using torch.cross without specifying the dim")
@pytest.mark.parametrize(
    ("name", "case"), [pytest.param(name, case, id=name) for name, _, case in CASES]
)
def test_file_runs_and_equals_keras(name, case):
    rng = np.random.default_rng(11)
    model, x = build_model(case, rng), make_data(case, rng, case.batch or SAMPLES)
    for scheme, share in SCHEMES.items():
        q = quantized(model, scheme, allow_float="-float-" in name)
        if scheme != "float32" and not any(isinstance(x, QuantizedWeights) for x in q.layers):
            # The file is that of the float model.
            continue
        content = intact.export(q)
        found = intact.load_litert(content).predict(x, batch_size=len(keras.tree.flatten(x)[0]))
        found = list(found.values()) if isinstance(found, dict) else [found]
        if (keras.backend.backend(), name) in UPSTREAM:
            continue
        intact.reset_states(q)
        expected = [host(y) for y in keras.tree.flatten(q(x, training=False))]
        for ours, theirs in zip(expected, found, strict=True):
            assert ours.shape == theirs.shape, scheme
            limit = share * max(np.ptp(ours.astype("float64")), 1e-6)
            np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=limit, err_msg=scheme)


def quantized(model, scheme, allow_float):
    if scheme == "float32":
        return model
    with warnings.catch_warnings():
        # Of a model without weights.
        warnings.simplefilter("ignore", intact.UnusedRuleWarning)
        return intact.quantize_model(model, scheme, allow_float)
