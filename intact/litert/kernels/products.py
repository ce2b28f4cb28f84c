"""Kernels that sum products: convolutions, matrices and the LSTM."""

from intact.litert.kernels.row import NO_INT8, Kernel, OptionField, Places, activation, on, versions

PRODUCTS = (
    Kernel("CONV_3D", versions={"float32": 1}, broken=NO_INT8, table="Conv3DOptions"),
    Kernel(
        "CONV_3D_TRANSPOSE",
        versions={"float32": 1},
        data=(2,),
        broken=NO_INT8,
        table="Conv3DOptions",
        runs_on=on(),
    ),
    Kernel(
        "CONV_2D",
        versions={**versions(3, 4), "hybrid": 5},
        later={"4-bit weights": 7, "grouped": 6},
        weights=Places(1, 2, axis=0),
        narrow=("int4",),
        table="Conv2DOptions",
        options={
            "fusedActivationFunction": OptionField(3, "b"),
            "dilationWFactor": OptionField(4, "i", default=1),
            "dilationHFactor": OptionField(5, "i", default=1),
        },
        runs_on=on(int8="XM568", int16="M568", uint8="X568", int4="M", float32="XM", hybrid="X"),
        edge_tpu=("equal dilations",),
    ),
    Kernel(
        "DEPTHWISE_CONV_2D",
        versions={**versions(3, 5), "hybrid": 6},
        later={"4-bit weights": 7, "dilated": 2},
        weights=Places(1, 2, axis=3),
        narrow=("int4",),
        table="DepthwiseConv2DOptions",
        options={
            "fusedActivationFunction": OptionField(4, "b"),
            "dilationWFactor": OptionField(5, "i", default=1),
            "dilationHFactor": OptionField(6, "i", default=1),
        },
        runs_on=on(int8="XM568", int16="M568", uint8="568", int4="M", float32="XM"),
        edge_tpu=("no dilation",),
    ),
    Kernel(
        "FULLY_CONNECTED",
        versions={**versions(4, 7), "hybrid": 9},
        later={
            "2-bit weights": 14,
            "4-bit weights": 10,
            "float data, weights per channel": 12,
            "keeps dimensions": 5,
            "no bias": 6,
        },
        # Two inputs need it; writers differ about an omitted third one.
        optional=("no bias",),
        weights=Places(1, 2, axis=0),
        narrow=("int2", "int4"),
        options={
            "fusedActivationFunction": OptionField(0, "b"),
            "weightsFormat": OptionField(1, "b"),
            "keepNumDims": OptionField(2, "?"),
        },
        runs_on=on(
            int8="XM568", int16="M568", uint8="X568", int4="X", int2="X", float32="XM", hybrid="X"
        ),
        edge_tpu=("plain weights", "one dimension"),
    ),
    # Each weight of a gate has one scale.
    Kernel(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        versions(1),
        weights=Places(1, 12, axis=0),
        table="UnidirectionalSequenceLSTMOptions",
        runs_on=on(int8="M568", int16="M568"),
        edge_tpu=(),
    ),
    Kernel(
        "TRANSPOSE_CONV",
        versions(2, 3),
        later={"fused activation": 4, "bias": 3},
        data=(2,),
        weights=Places(1, 3, axis=0),
        options=activation(3),
        runs_on=on(int8="XM568", int16="M568", uint8="X568", float32="XM", hybrid="X"),
        edge_tpu=(),
    ),
)
