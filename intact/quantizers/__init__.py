"""Formulas that quantize weights and activations."""
