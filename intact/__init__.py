"""intact: quantization for Keras 3, to LiteRT, with the outputs seen in Keras."""

from intact import backend  # first: it chooses, and Keras reads the choice
from intact.api import export, freeze_ranges, plan_model, quantize_model
from intact.calibration import calibrate
from intact.errors import (
    ExportError,
    IntactError,
    InvalidDataError,
    InvalidModelError,
    NotCalibratedError,
    NotIntegerError,
    UnsupportedLayerError,
)
from intact.litert.runtime import LiteRTModel, load_litert
from intact.ops import Op, register_op
from intact.report import Agreement, Comparison, compare
from intact.scheme import Rule, Scheme, TensorSpec

__version__ = "0.1.0"
