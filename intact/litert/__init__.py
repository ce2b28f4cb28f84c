"""The LiteRT file format and runtime; knows no Keras."""
