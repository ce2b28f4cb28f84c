"""Random models: every one is quantized rightly, or refused with reasons."""

import keras
import pytest

from fuzz.run import run

# Every model is compiled for itself elsewhere, which takes much longer.
EXAMPLES = 50 if keras.backend.backend() == "torch" else 8


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore")
def test_random_models(seed, capsys):
    report = run(EXAMPLES, seed)
    with capsys.disabled():
        print(f"\n{report}")
    assert report.counts["quantized"] > EXAMPLES / 2, str(report)
    assert not report.failures, str(report)
