"""Thousands of random models: `cd tests; python -m fuzz --examples 3000 --seed 1`."""

import argparse
import os
import sys
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
warnings.simplefilter("ignore")

from fuzz.run import run  # noqa: E402

parser = argparse.ArgumentParser(prog="fuzz", description="Quantize random models.")
parser.add_argument("--examples", type=int, default=1000, help="how many")
parser.add_argument("--seed", type=int, default=1, help="which")
options = parser.parse_args()
report = run(options.examples, options.seed)
print(report)
sys.exit(bool(report.failures))
