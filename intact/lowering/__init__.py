"""From a quantized model to a file."""
