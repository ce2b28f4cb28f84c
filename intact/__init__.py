"""intact: quantization for Keras 3, to LiteRT, with the outputs seen in Keras."""

from intact import (
    backend,  # first: it chooses, and Keras reads the choice
    schemes,
)
from intact.api import export, freeze_ranges, plan_model, quantize_model
from intact.calibration import calibrate
from intact.distillation import distill
from intact.errors import (
    ExportError,
    IntactError,
    InvalidDataError,
    InvalidModelError,
    NotCalibratedError,
    NotIntegerError,
    UnsupportedLayerError,
    UnusedRuleWarning,
)
from intact.explain import Explained, Explanation, explain
from intact.keeping import keep_clusters, keep_sparsity
from intact.legacy import load_keras
from intact.litert.inspection import Inspection, inspect
from intact.litert.runtime import LiteRTModel, load_litert
from intact.litert.verification import Finding, Findings, verify
from intact.ops import Op, register_op
from intact.report import Agreement, Comparison, compare
from intact.scheme import Rule, Scheme, TensorSpec

__version__ = "0.1.0"
