"""The targets that files run on, and their tools."""
