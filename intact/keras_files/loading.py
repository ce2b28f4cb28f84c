"""Opens model files of Keras 2 and Keras 3, also those that Keras 3 refuses for small reasons.

Keras itself is tried first. A model that it refuses is rebuilt here from its config, layer by layer
through Keras' public functions, and then its weights are loaded. Nothing in a file is ever
executed, and no weight is created that the file has no numbers for.
"""

import contextlib
import json
import os
import threading
import warnings
from pathlib import Path

import keras

from intact.errors import IntactError, InvalidModelError
from intact.keras_files.h5check import SLACK
from intact.keras_files.opening import _File, _limited_weights, _open, _refuse_code
from intact.keras_files.rebuilding import _Rebuilder
from intact.paths import check_model_path

# Threads would undo each other's limits on weights.
_ONE_AT_A_TIME = threading.RLock()


def load_keras(path: str | os.PathLike) -> keras.Model:
    """Open a `.keras` or `.h5` file of a whole model, written by Keras 3 or Keras 2.

    Files of Keras 2 compute what they computed there. No code in a file is executed.
    Custom layers must be registered (`keras.saving.register_keras_serializable`) before.

    Args:
        path: The file.

    Returns:
        The model, not compiled.

    Raises:
        InvalidModelError: There is no such file, or it is damaged or not a whole model.
        UnsupportedLayerError: A layer cannot be rebuilt: a `Lambda` with Python bytecode, an
            unknown layer or TensorFlow op, or a setting that Keras 3 does not have.

    Example:

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "model.keras"
    >>> model.save(path)
    >>> load_keras(path).output_shape
    (None, 2)
    """
    path = Path(path)
    check_model_path(path)
    try:
        with contextlib.ExitStack() as stack:
            file = _open(path, stack)
            _refuse_code(file.config)
            stack.enter_context(_ONE_AT_A_TIME)
            stack.enter_context(_limited_weights(2 * file.elements + SLACK))
            if not _means_something_else(file):
                try:
                    return _load_as_it_is(path)
                except IntactError:
                    raise
                except Exception:  # Keras 3 refuses it, in one of many ways.
                    pass
            return _Rebuilder(file).run()
    except IntactError as error:
        raise type(error)(f"Cannot open {str(path)!r}: {error}") from error
    # Libraries raise all kinds of errors for damaged files; none of them may pass as it is.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidModelError(
            f"Cannot open {str(path)!r}: {type(error).__name__}: {reason}. The file is damaged, "
            "or made by something that Keras 3 cannot follow. Save the model again, as `.keras`."
        ) from error


# Reading ------------------------------------------------------------------------------


def _load_as_it_is(path: Path) -> keras.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Layers whose weights are not in the file would stay as they were initialized.
        warnings.filterwarnings("error", message="Skipping nested container")
        return keras.saving.load_model(path, compile=False, safe_mode=True)


# Repairs ------------------------------------------------------------------------------


def _means_something_else(file: _File) -> bool:
    """Whether Keras 3 would load it silently, and compute something else."""
    return file.keras_2 and '"hard_sigmoid"' in json.dumps(file.config)
