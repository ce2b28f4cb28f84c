"""Random models, the whole way through."""
