"""`tfmot.quantization`."""

from intact.tfmot.quantization import keras
