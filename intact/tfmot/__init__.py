"""The names of TensorFlow's Model Optimization Toolkit, over intact's own.

In code written for the toolkit, `from intact import tfmot` takes the place of
`import tensorflow_model_optimization as tfmot`. Nothing is implemented here a second time:
annotations become rules, quantizers become specs. `docs/migration/tfmot.md` says what maps to what.
"""

from intact.tfmot import experimental, quantization
