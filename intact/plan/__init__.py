"""What becomes of each layer and tensor: specs, rules, filters and the planner."""
