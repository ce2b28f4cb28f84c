"""Affine quantization, fixed-point arithmetic and what single backends compute better."""
