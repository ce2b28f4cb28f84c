"""Observers, sources of data, and ranges found by running a model."""
