"""How kernels of the runtime round."""
