"""Searches for a scheme, or for a width for each layer: sensitivity, mixed precision, advice."""
