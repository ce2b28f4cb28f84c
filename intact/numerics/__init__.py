"""Affine quantization, fixed-point arithmetic, and kernels of single backends."""
