"""Which scheme for which layer, and for a whole model."""
