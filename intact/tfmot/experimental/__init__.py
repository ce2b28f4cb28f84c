"""`tfmot.experimental`."""

from intact.tfmot.experimental import combine
