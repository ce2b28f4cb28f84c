"""What Keras 3 calls differently, and settings that it does not have."""

# Settings that Keras 3 does not have, with the values that change nothing; None for any.
LEFTOVERS: dict[str, tuple | None] = {
    "adjustment": (None,),
    "autocast": (True,),
    "batch_input_shape": None,
    "batch_shape": None,
    "dynamic": (False, None),
    "fused": None,
    "groups": (1,),
    "implementation": None,
    "input_dim": None,
    "input_dtype": None,
    "input_length": None,
    "input_shape": None,
    # Of the convolution that separable and depthwise ones are made of.
    "kernel_initializer": None,
    "kernel_regularizer": None,
    "kernel_constraint": None,
    "key_shape": None,
    "optional": (False,),
    "query_shape": None,
    "ragged": (False,),
    "renorm": (False,),
    "renorm_clipping": None,
    "renorm_momentum": None,
    "sparse": (False,),
    "time_major": (False,),
    "type_spec": None,
    "value_shape": None,
    "virtual_batch_size": (None,),
}


# Settings that have another name now.
RENAMED = {
    "LeakyReLU": {"alpha": "negative_slope"},
    "ThresholdedReLU": {"theta": "threshold"},
    "InputLayer": {"batch_input_shape": "batch_shape"},
    "Dropout": {"p": "rate"},
}


CLASSES = {
    "Model": "Functional",
    "ThresholdedReLU": "ReLU",
    "SyncBatchNormalization": "BatchNormalization",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
}
