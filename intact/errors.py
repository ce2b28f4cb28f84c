"""The exceptions and warnings of intact. `docs/errors.md` is made from their docstrings."""

from typing import ClassVar


class IntactError(Exception):
    """An argument does not fit, a file is damaged, or a name does not exist.

    This is also the base of every error that intact raises on purpose.

    Cause: The message says what was received, what was expected, and where.

    Remedy: Do what the message says.

    Example:

    >>> intact.quantize_model(keras.Sequential([keras.Input((2,)), layers.Dense(1)]), "int9")
    Traceback (most recent call last):
    ...
    intact.errors.IntactError: There is no scheme 'int9'. Known: ..., ...
    """

    code: ClassVar[str] = "E801"

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        # A traceback shows it below the message.
        self.add_note(f"{self.code}: docs/errors.md has the cause, an example and the remedy.")


class InvalidModelError(IntactError):
    """The model cannot be quantized as it is.

    Cause: It is not built, its weights are not finite, it is quantized already, or its file is
    damaged.

    Remedy: Build it by an `Input` or a call; train it with a smaller learning rate, if weights are
    NaN; pass the float model, if it is quantized already.

    Example:

    >>> intact.quantize_model(keras.Sequential([layers.Dense(1)], name="head_only"))
    Traceback (most recent call last):
    ...
    intact.errors.InvalidModelError: Model 'head_only' is not built, so the shapes of its inputs ...
    """

    code = "E802"


class InvalidDataError(IntactError):
    """Data for calibration, comparison or scoring is empty, not finite or wrongly shaped.

    Cause: The samples are not those of the model's inputs: one axis is missing, a value is NaN,
    or there is no sample at all.

    Remedy: Pass arrays with the samples first, and a dict where the model has several inputs.

    Example:

    >>> model = keras.Sequential([keras.Input((2,), name="x"), layers.Dense(1)])
    >>> q = intact.quantize_model(model)
    >>> intact.calibrate(q, np.zeros((10, 3)), verbose=0)
    Traceback (most recent call last):
    ...
    intact.errors.InvalidDataError: Input 'x' takes shape (None, 2). Received: ...
    """

    code = "E803"
    argument = "data"
    """The argument, of a function or of the command line, that is at fault."""


class UnsupportedLayerError(IntactError):
    """No integer kernel stands for a layer or an operation.

    Cause: `docs/supported.md` does not list it, or not in this form; or the `call` of a custom
    layer reads values of its inputs in Python, so that it cannot be traced.

    Remedy: Replace it by layers that are supported, keep it in float by
    `quantize_model(allow_float=True)` or by `filters`, or register an op for it.

    Example:

    >>> inputs = keras.Input((4, 4))
    >>> intact.quantize_model(keras.Model(inputs, keras.ops.inv(inputs)))
    Traceback (most recent call last):
    ...
    intact.errors.UnsupportedLayerError: Inv 'inv...' is not supported: LiteRT has no kernel...
    """

    code = "E804"


class NotCalibratedError(IntactError):
    """Ranges are missing: the quantized model has seen no data.

    Cause: `export`, `freeze_ranges` or `compare` came before `calibrate` or `fit`, or `calibrate`
    ran before a layer was made trainable again.

    Remedy: Call `intact.calibrate(q, data)` with about 100 samples, or train the model.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    >>> intact.export(intact.quantize_model(model))
    Traceback (most recent call last):
    ...
    intact.errors.NotCalibratedError: 2 ranges of model ... have seen no data:...
    """

    code = "E805"


class NotIntegerError(IntactError):
    """An op would stay in float although only integers are allowed.

    Cause: `export(integer_only=True)` of a model of which `allow_float`, `filters` or a rule keeps
    a part in float, or whose inputs and outputs stay float32.

    Remedy: Quantize the layers that the message lists, or leave `integer_only` out.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    >>> intact.export(model, integer_only=True)
    Traceback (most recent call last):
    ...
    intact.errors.NotIntegerError: These ops would stay in float, and integers only ...
    """

    code = "E806"


class ExportError(IntactError):
    """A file cannot be written.

    Cause: The folder does not exist or is read-only, the disk is full, or LiteRT's format has no
    form for the model, such as weights of more than 8 bits.

    Remedy: Choose another path; for weights of more than 8 bits, another scheme. Nothing
    half-written stays behind.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    >>> intact.export(model, "no_such_folder/model.tflite")
    Traceback (most recent call last):
    ...
    intact.errors.ExportError: Cannot write 'no_such_folder/model.tflite': the folder ...
    """

    code = "E807"


class TargetError(IntactError):
    """The target cannot run a layer or the file.

    Cause: The target has no kernel for an op, or not with these types.

    Remedy: Replace the layers that the message names, or choose another scheme;
    `print(intact.check(model, target))` shows all ops.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="head")])
    >>> intact.quantize_model(model, "int4", target="tflite-micro")
    Traceback (most recent call last):
    ...
    intact.errors.TargetError: TFLite Micro has no kernel for these ops:...
    """

    code = "E808"


class MissingToolError(IntactError):
    """The tool of a target is not installed.

    Cause: `check` runs the target's own tool, which is not a dependency of intact.

    Remedy: `pip install 'keras-intact[targets]'`. TFLite Micro has packages for Linux on x86-64
    alone.

    Args:
        tool: Its name.
        package: The package that provides it.

    Example:

    >>> raise intact.MissingToolError("Vela", "ethos-u-vela")
    Traceback (most recent call last):
    ...
    intact.errors.MissingToolError: Vela is not installed. It comes with ...
    """

    code = "E809"

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(
            f"{tool} is not installed. It comes with the package {package!r}: "
            "pip install 'keras-intact[targets]'."
        )


class UnusedRuleWarning(UserWarning):
    """A rule of a scheme, or a filter, matches no layer.

    Cause: Usually a misspelt name, or an earlier rule that matches the layer first.

    Remedy: `print(intact.explain(model))` shows the layers' names and types.
    """

    code = "A901"


class MaskedOutputWarning(UserWarning):
    """An output of the float model has a mask, and the quantized model's output has none.

    Cause: Keras' losses read the mask of an output, such as that of an `Embedding` with
    `mask_zero=True`.

    Remedy: Pass `sample_weight` when you train the quantized model.
    """

    code = "A902"


class FusedLayerWarning(UserWarning):
    """The output of a layer was requested, and its kernel computes other layers, too.

    Cause: A convolution, its batch norm and its activation are one kernel, so the convolution
    alone has no tensor in the file.

    Remedy: Ask for the output of the last layer of the kernel, which the message names.
    """

    code = "A903"


class NotKeptWarning(UserWarning):
    """The float model has something for training that the quantized one does not have.

    Cause: Losses that a layer adds by itself, a `train_step` of a class that cannot be called with
    a graph, or values that are computed from weights alone.

    Remedy: The message says what is missing: add the loss when you compile, exclude the layer by
    `filters`, or train the float model first.
    """

    code = "A904"


class ScheduleWarning(UserWarning):
    """A model is exported before its schedule has let quantization begin.

    Cause: Its `quant_delay` is not over, so the weights have not been trained for their rounding.

    Remedy: Train on, or shorten the delay by `intact.set_schedule`.
    """

    code = "A905"


class AccuracyWarning(UserWarning):
    """A calibrated model has lost an output, or a part of one, to quantization.

    Cause: An output has less than 20 dB of signal to noise against float. Ranges that outliers
    stretch, too few bits, too few samples, and data without the preprocessing of the training are
    the usual reasons.

    Remedy: The message names the tensors that lose most. `docs/accuracy.md` leads on from there.
    """

    code = "A906"
