"""`tfmot.quantization.keras.experimental`."""

from intact.tfmot.quantization.keras.experimental import default_n_bit
