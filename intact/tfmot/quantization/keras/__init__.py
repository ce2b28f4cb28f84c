"""`tfmot.quantization.keras`."""

from intact.tfmot.annotate import (
    QuantizeAnnotate,
    quantize_annotate_layer,
    quantize_annotate_model,
    quantize_apply,
    quantize_model,
    quantize_scope,
)
from intact.tfmot.config import QuantizeConfig
from intact.tfmot.quantization.keras import default_8bit, experimental, quantizers
from intact.tfmot.ranges import fix_input_output_range
