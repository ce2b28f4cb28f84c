"""Accuracy that quantization costs, won back without labels."""
