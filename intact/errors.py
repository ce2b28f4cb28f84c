"""The exceptions of intact, all of one base."""


class IntactError(Exception):
    """Base of every error that intact raises on purpose."""


class InvalidModelError(IntactError):
    """The model cannot be quantized as it is: not built, or NaN weights."""


class InvalidDataError(IntactError):
    """Data for calibration or comparison is empty, not finite or wrongly shaped."""


class UnsupportedLayerError(IntactError):
    """No op of intact stands for a layer or operation."""


class NotCalibratedError(IntactError):
    """Ranges are missing: the quantized model has seen no data."""


class NotIntegerError(IntactError):
    """An op would stay in float although only integers are allowed."""


class ExportError(IntactError):
    """The file cannot be written."""


class TargetError(IntactError):
    """The target cannot run the file."""


class MissingToolError(IntactError):
    """The tool of a target is not installed.

    Args:
        tool: Its name.
        package: The package that provides it.
    """

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(
            f"{tool} is not installed. It comes with the package {package!r}: "
            "pip install 'keras-intact[targets]'."
        )


class UnusedRuleWarning(UserWarning):
    """A rule of a scheme matches no layer, usually because of a misspelt name."""


class MaskedOutputWarning(UserWarning):
    """An output of the float model has a mask, and the quantized model's output has none."""


class FusedLayerWarning(UserWarning):
    """The output of a layer was requested, and its kernel computes other layers, too."""


class NotKeptWarning(UserWarning):
    """The float model has something for training that the quantized one does not have."""


class ScheduleWarning(UserWarning):
    """A model is exported before its schedule has let quantization begin."""


class AccuracyWarning(UserWarning):
    """A calibrated model has lost an output, or a part of one, to quantization."""
