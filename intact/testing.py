"""The battery: checks of an op, for intact's ops and a user's own.

Each check takes a `Trial`, which is one case of an op with its float model, its quantized model and
data. `check_op` runs all of them on all cases of an op.
"""

import inspect
import tempfile
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from intact.analysis.report import compare
from intact.api import export, quantize_model
from intact.calibration.calibration import calibrate
from intact.errors import AccuracyWarning
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.stateful import reset_states
from intact.litert.runtime import load_litert
from intact.litert.verification import verify
from intact.names import SchemeName
from intact.numerics.tensors import to_numpy
from intact.ops.base import Case, Op

SEED = 11

UNKNOWN = 6
"""The first unknown size of a case; the next ones are larger."""

BEYOND = 3.0
"""How many times as wide as the calibration data the data of the saturation check is."""


def build_model(case: Case, rng: np.random.Generator) -> keras.Model:
    """The model of a case, with random weights, biases and statistics.

    Args:
        case: The case.
        rng: The source of the weights.
    """
    shapes = case.shape if isinstance(case.shape, list) else [case.shape]
    inputs = [
        keras.Input(shape, case.batch, case.dtype, name=f"input_{i}")
        for i, shape in enumerate(shapes)
    ]
    built = case.build()
    if isinstance(built, keras.layers.Layer):
        outputs = built(inputs if len(inputs) > 1 else inputs[0])
    else:
        assert inspect.isfunction(built)
        outputs = built(*inputs)
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)
    randomize(model, rng)
    return model


def randomize(model: keras.Model, rng: np.random.Generator) -> None:
    """Give a model random weights, biases and statistics.

    Args:
        model: The model.
        rng: Their source.
    """
    for layer in model.layers:
        for variable in layer.weights:
            value = rng.normal(size=variable.shape) * 0.5
            name = variable.path.rsplit("/", 1)[-1]
            if name in ("gamma", "moving_variance", "variance"):
                value = np.abs(value) + 0.2
            if name == "gamma":
                value[::3] *= -1
            if name not in ("mean", "variance", "count", "seed_generator_state"):
                variable.assign(value)


def make_data(case: Case, rng: np.random.Generator, samples: int = 64, width: float = 1.0) -> Any:
    """Random inputs of a case: one array, or a list.

    Args:
        case: The case.
        rng: Their source.
        samples: How many samples.
        width: How many times as wide as the case says; for real values alone.
    """
    shapes: Any = case.shape if isinstance(case.shape, list) else [case.shape]
    whole = case.dtype.startswith("int")
    low, high = (case.low, case.high + 1) if whole else (case.low * width, case.high * width)
    sizes = [[UNKNOWN + axis if n is None else n for axis, n in enumerate(s)] for s in shapes]
    arrays = [rng.uniform(low, high, size=(samples, *size)).astype(case.dtype) for size in sizes]
    return arrays if len(arrays) > 1 else arrays[0]


def first(data: Any, count: int) -> Any:
    """The first samples of one or several arrays."""
    return [a[:count] for a in data] if isinstance(data, list) else data[:count]


class Trial:
    """One case of an op with its models and data. The checks share it, and do not change it.

    Args:
        case: The case.
        scheme: The scheme that its model is quantized by.

    Attributes:
        model: Its float model.
        data: Data for it.
        untrained: The outputs of the quantized model before calibration.
        q: The calibrated model.
        outputs: The outputs of the calibrated model.
    """

    def __init__(self, case: Case, scheme: SchemeName = "int8") -> None:
        rng = np.random.default_rng(SEED)
        self.case = case
        self.model, self.data = build_model(case, rng), make_data(case, rng)
        self.q = quantize_model(self.model, scheme)
        self.untrained = self.q.predict(self.data, verbose=0)
        calibrate(self.q, self.data, verbose=0)
        self.outputs = self.q.predict(self.data, verbose=0)
        self._files: dict[Any, bytes] = {}

    def file(self, **settings: Any) -> bytes:
        """The file of the calibrated model, written once.

        Args:
            **settings: Arguments of `export`.
        """
        key = tuple(sorted(settings.items()))
        if key not in self._files:
            self._files[key] = export(self.q, **settings)
        return self._files[key]

    @cached_property
    def expected(self) -> np.ndarray:
        """The outputs of the float model."""
        return self.model.predict(self.data, verbose=0)

    @property
    def span(self) -> float:
        """The difference of the float model's largest and smallest output value."""
        return float(self.expected.max() - self.expected.min())


def equals_litert(trial: Trial) -> None:
    """The file computes the quantized model's values, exactly or within one step."""
    content = trial.file(output_dtype="int8", integer_only=True)
    _same(trial, content, trial.data, trial.outputs)


def equals_litert_beyond_the_range(trial: Trial) -> None:
    """The same on data beyond the calibrated range, where integers saturate."""
    if trial.case.dtype != "float32":
        return
    data = make_data(trial.case, np.random.default_rng(SEED + 1), width=BEYOND)
    content = trial.file(output_dtype="int8", integer_only=True)
    reset_states(trial.q)
    _same(trial, content, data, trial.q.predict(data, verbose=0))


def _same(trial: Trial, content: bytes, data: Any, outputs: np.ndarray) -> None:
    file = load_litert(content)
    scale, _ = file.interpreter.get_output_details()[0]["quantization"]
    gap = np.abs(file.predict(data) - outputs).max() / scale
    assert gap <= (1e-3 if trial.case.exact else 1.001), str(compare(trial.q, content, data))


def is_close_to_float(trial: Trial) -> None:
    """Few values are more than a few steps from the float model's."""
    error = np.abs(trial.outputs - trial.expected)
    # Except for the few values beside a jump of the function.
    assert np.quantile(error, 0.98) <= 0.05 * trial.span, (error.max(), trial.span)


def has_only_integers(trial: Trial) -> None:
    """A file of integers has no tensor of real values, and keeps LiteRT's rules."""
    content = trial.file(input_dtype="int8", output_dtype="uint8", integer_only=True)
    runtime = load_litert(content).interpreter
    dtypes = {np.dtype(d["dtype"]).name for d in runtime.get_tensor_details()}
    assert "float32" not in dtypes
    wanted = "int8" if trial.case.dtype == "float32" else trial.case.dtype
    assert {np.dtype(d["dtype"]).name for d in runtime.get_input_details()} == {wanted}
    assert {np.dtype(d["dtype"]).name for d in runtime.get_output_details()} == {"uint8"}
    findings = verify(content)
    assert not findings, str(findings)


def float_file_equals_keras(trial: Trial) -> None:
    """The float model's file computes what Keras does, except for the order of sums."""
    outputs = load_litert(export(trial.model)).predict(trial.data)
    np.testing.assert_allclose(outputs, trial.expected, atol=2e-5, rtol=2e-4)


def gradients_reach_the_weights(trial: Trial) -> None:
    """A step of training changes every weight, and leaves all of them finite."""
    q = quantize_model(trial.model)
    if not q.trainable_variables:
        return
    size = trial.case.batch or 16
    data = first(trial.data, size)
    normalized = any("batch_normalization" in v.path for v in q.variables)
    before = [to_numpy(variable).copy() for variable in q.trainable_variables]
    target = np.random.default_rng(3).normal(size=(size, *trial.expected.shape[1:]))
    q.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=keras.backend.backend() == "jax")
    q.fit(data, target, epochs=1, batch_size=size, verbose=0)
    for old, variable in zip(before, q.trainable_variables, strict=True):
        new = to_numpy(variable)
        assert np.isfinite(new).all(), variable.path
        # A batch norm subtracts the mean, and with it the gradient of a bias. A bias of the
        # keys moves all scores of a query alike, and their softmax does not see it.
        unseen = variable.path.endswith("key/bias") or (
            variable.path.endswith("bias") and normalized
        )
        assert unseen or (new != old).any(), variable.path


def saves_and_loads(trial: Trial) -> None:
    """A saved model loads with the same variables, and gives the same file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.keras"
        trial.q.save(path)
        loaded = keras.saving.load_model(path)
    for new, old in zip(loaded.variables, trial.q.variables, strict=True):
        if "seed" not in old.path:
            np.testing.assert_array_equal(to_numpy(new), to_numpy(old))
    assert export(loaded) == trial.file()


def takes_any_batch(trial: Trial) -> None:
    """A file gives the same values, whatever the size of the batch."""
    if trial.case.batch:
        return
    file = load_litert(trial.file())
    at_once = file.predict(trial.data, batch_size=32)
    np.testing.assert_array_equal(file.predict(trial.data, batch_size=5), at_once)


def computes_in_float_before_calibration(trial: Trial) -> None:
    """A quantized model that has seen no data computes with real activations."""
    ranges = [layer for layer in trial.q.layers if isinstance(layer, FakeQuantize)]
    assert ranges
    if not any(layer.fixed for layer in ranges):
        assert np.abs(trial.untrained - trial.expected).max() <= 0.02 * trial.span


CHECKS: tuple[Callable[[Trial], None], ...] = (
    equals_litert,
    equals_litert_beyond_the_range,
    is_close_to_float,
    has_only_integers,
    float_file_equals_keras,
    gradients_reach_the_weights,
    saves_and_loads,
    takes_any_batch,
    computes_in_float_before_calibration,
)
"""The battery."""


def check_op(op: type[Op]) -> None:
    """Run the battery on all cases of an op.

    Args:
        op: A registered op, with `cases`.

    Raises:
        AssertionError: A check fails; the error names the case and the check.

    Example:

    >>> from intact.ops.pool import MaxPooling2D
    >>> check_op(MaxPooling2D)
    """
    assert op.cases, f"{op.__name__} has no cases. Give it some: `cases = (Case(...),)`."
    for number, case in enumerate(op.cases):
        with warnings.catch_warnings():
            # `is_close_to_float` looks at that.
            warnings.simplefilter("ignore", AccuracyWarning)
            trial = Trial(case)
        for check in CHECKS:
            try:
                check(trial)
            except AssertionError as error:
                place = f"{op.__name__}, case {number}, {check.__name__}"
                raise AssertionError(f"{place}: {error}") from error
