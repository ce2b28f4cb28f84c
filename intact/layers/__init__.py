"""The Keras layers of a quantized model."""
