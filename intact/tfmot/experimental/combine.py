"""`tfmot.experimental.combine`."""

from intact.tfmot.schemes import (
    Default8BitClusterPreserveQuantizeScheme,
    Default8BitPrunePreserveQuantizeScheme,
)
