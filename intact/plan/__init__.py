"""Decides how each layer and tensor is quantized: specs, rules, filters and the planner."""
