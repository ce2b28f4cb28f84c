"""`tfmot.quantization.keras.default_8bit`."""

from intact.tfmot.schemes import Default8BitQuantizeScheme
