"""intact: quantization for Keras 3, to LiteRT, with the outputs seen in Keras."""

from intact import (
    backend,  # first: it chooses, and Keras reads the choice
    callbacks,
    schemes,
    tfmot,
)
from intact.api import export, freeze_ranges, plan_model, quantize_model, write_c_array
from intact.bisection import Bisection, bisect
from intact.calibration import calibrate
from intact.check import check
from intact.choosing.advice import Advice, Option, advise
from intact.choosing.mixing import mixed
from intact.choosing.sensitivity import Damage, Sensitivity, sensitivity
from intact.distillation import distill
from intact.errors import (
    AccuracyWarning,
    ExportError,
    FusedLayerWarning,
    IntactError,
    InvalidDataError,
    InvalidModelError,
    MaskedOutputWarning,
    MissingToolError,
    NotCalibratedError,
    NotIntegerError,
    NotKeptWarning,
    ScheduleWarning,
    TargetError,
    UnsupportedLayerError,
    UnusedRuleWarning,
)
from intact.explain import Explained, Explanation, explain
from intact.freezing import freeze
from intact.keeping import keep_clusters, keep_sparsity
from intact.legacy import load_keras
from intact.litert.inspection import Inspection, inspect
from intact.litert.placement import PlacedOp, Placement
from intact.litert.runtime import LiteRTModel, load_litert
from intact.litert.timing import Timing, benchmark
from intact.litert.verification import Finding, Findings, verify
from intact.lstm import reset_states
from intact.ops import Op, register_op
from intact.recovery.recover import recover
from intact.report import Agreement, Comparison, Distribution, FileNode, compare
from intact.schedule import Schedule, set_schedule, switch, training_step
from intact.scheme import Rule, Scheme, TensorSpec
from intact.widths import Quantizer

__version__ = "0.1.0"
