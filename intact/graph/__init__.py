"""Any Keras model as a flat graph of known layers."""
