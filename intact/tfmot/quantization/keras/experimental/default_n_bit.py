"""`tfmot.quantization.keras.experimental.default_n_bit`."""

from intact.tfmot.schemes import DefaultNBitQuantizeScheme
