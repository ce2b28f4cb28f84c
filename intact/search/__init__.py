"""Which scheme, and which layer in which width: sensitivity, mixed precision, advice."""
