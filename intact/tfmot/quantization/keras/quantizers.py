"""`tfmot.quantization.keras.quantizers`."""

from intact.tfmot.quantizers import (
    AllValuesQuantizer,
    FixedQuantizer,
    LastValueQuantizer,
    MovingAverageQuantizer,
    Quantizer,
)
