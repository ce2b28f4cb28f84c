"""Recovers accuracy that quantization costs, without labels."""
