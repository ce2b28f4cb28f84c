"""intact: quantization for Keras 3, to LiteRT, with the outputs seen in Keras."""

from intact import (
    backend,  # first: it chooses, and Keras reads the choice
    callbacks,
    schemes,
    tfmot,
)
from intact.analysis.bisection import Bisection, bisect
from intact.analysis.explanation import Explained, Explanation, explain
from intact.analysis.report import Agreement, Comparison, Distribution, FileNode, compare
from intact.api import export, freeze_ranges, plan_model, quantize_model, write_c_array
from intact.calibration.calibration import calibrate
from intact.check import check
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
from intact.keras_files.legacy import load_keras
from intact.layers.schedule import Schedule, set_schedule, switch, training_step
from intact.layers.sparsity import keep_clusters, keep_sparsity
from intact.layers.stateful import reset_states
from intact.litert.inspection import Inspection, inspect
from intact.litert.placement import PlacedOp, Placement
from intact.litert.runtime import LiteRTModel, load_litert
from intact.litert.timing import Timing, benchmark
from intact.litert.verification import Finding, Findings, verify
from intact.lowering.freezing import freeze
from intact.ops import Op, register_op
from intact.plan.scheme import Rule, Scheme, TensorSpec
from intact.quantizers.formulas import Quantizer
from intact.quantizers.observers import Observer
from intact.recovery.distillation import distill
from intact.recovery.recover import recover
from intact.search.advice import Advice, Option, advise
from intact.search.mixing import mixed
from intact.search.sensitivity import Damage, Sensitivity, sensitivity

__version__ = "0.1.0"
