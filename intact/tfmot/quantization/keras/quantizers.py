"""`tfmot.quantization.keras.quantizers`."""

from intact.tfmot.quantizers import (
    AllValuesQuantizer,
    LastValueQuantizer,
    MovingAverageQuantizer,
    Quantizer,
)
