"""The Keras backend, where nobody chose one that is there."""

import importlib.util
import json
import os
import sys
from pathlib import Path

BACKENDS = ("jax", "torch", "tensorflow")


def choose() -> None:
    """Choose the first backend that is installed, if Keras' own choice is not.

    Keras takes TensorFlow where `KERAS_BACKEND` and its settings file say nothing, and
    fails to import where that is missing.

    Raises:
        ImportError: There is no backend at all.
    """
    if "keras" in sys.modules or os.environ.get("KERAS_BACKEND"):
        return
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    if not installed:
        raise ImportError("Keras needs a backend. Run `pip install 'keras-intact[jax]'`.")
    if _configured() not in installed:
        os.environ["KERAS_BACKEND"] = installed[0]


def _configured() -> str:
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        return json.loads((home / "keras.json").read_text())["backend"]
    except (OSError, ValueError, KeyError):
        return "tensorflow"
