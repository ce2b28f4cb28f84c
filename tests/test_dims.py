"""Reshapes and permutations that other layouts of layers bring: few are left in the end."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven, host, op_names, ready

import intact
from intact import UnsupportedLayerError
from intact.graph.canonicalize import canonicalize

FIRST = {"data_format": "channels_first"}
RUNS_FIRST = keras.backend.backend() != "tensorflow"


def whole_way(model, rng, shape=None):
    """Check that everything computes the same; give the names of the canonical layers and ops."""
    enliven(model, rng)
    x = rng.normal(size=(32, *(shape or model.input_shape[1:]))).astype("float32")
    flat = canonicalize(model)
    if RUNS_FIRST:
        expected = model.predict(x, verbose=0)
        np.testing.assert_allclose(flat.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-4)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    content = intact.export(q, integer_only=True)
    found = intact.load_litert(content).predict(x)
    np.testing.assert_array_equal(found, q.predict(x, verbose=0))
    names = [layer.name for layer in flat.layers if not isinstance(layer, layers.InputLayer)]
    return names, op_names(content)[1:-1]


def test_a_chain_of_1d_layers_has_a_reshape_at_either_end(rng):
    x = inputs = keras.Input((12, 4))
    for i in range(2):
        x = layers.Conv1D(6, 3, padding="same", use_bias=False, name=f"conv_{i}")(x)
        x = layers.BatchNormalization(name=f"bn_{i}")(x)
        x = layers.ReLU(name=f"relu_{i}")(x)
        x = layers.Dropout(0.1, name=f"drop_{i}")(x)
        x = layers.MaxPooling1D(2, name=f"pool_{i}")(x)
    outputs = layers.Dense(3, name="head")(layers.Flatten(name="flat")(x))
    names, kernels = whole_way(keras.Model(inputs, outputs), rng)
    parts = [f"{part}_{i}" for i in range(2) for part in ("conv", "bn", "relu", "drop", "pool")]
    assert names == ["conv_0_2d", *parts, "flat", "head"]
    pair = ["CONV_2D", "MAX_POOL_2D"]
    assert kernels == ["RESHAPE", *pair, *pair, "RESHAPE", "FULLY_CONNECTED"]


def test_a_residual_of_1d_layers(rng):
    inputs = keras.Input((6, 4))
    x = layers.Conv1D(4, 3, padding="same")(inputs)
    y = layers.Conv1D(4, 3, padding="same")(layers.ReLU()(x))
    outputs = layers.Conv1D(2, 3)(layers.ReLU()(layers.Add()([x, y])))
    _, kernels = whole_way(keras.Model(inputs, outputs), rng)
    assert kernels.count("RESHAPE") == 2


def test_a_tensor_that_is_read_before_and_after_an_activation(rng):
    inputs = keras.Input((6, 4))
    x = layers.Conv1D(4, 3)(inputs)
    outputs = layers.Concatenate()([x, layers.ReLU()(x)])
    whole_way(keras.Model(inputs, outputs), rng)


def test_steps_that_are_not_known(rng):
    inputs = keras.Input((None, 4))
    x = layers.Conv1D(4, 3, padding="causal", activation="relu")(inputs)
    x = layers.MaxPooling1D(2, padding="same")(layers.BatchNormalization()(x))
    x = layers.Conv1D(3, 3, padding="same")(x)
    _, kernels = whole_way(keras.Model(inputs, x), rng, (11, 4))
    assert [k for k in kernels if k in ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")] == [
        "EXPAND_DIMS",
        "SQUEEZE",
    ]


def test_a_shared_1d_layer_has_one_copy(rng):
    shared = layers.Conv1D(4, 3, padding="same", activation="relu")
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, shared(shared(inputs)))
    whole_way(model, rng)
    assert len(canonicalize(model).weights) == 2


def test_a_batch_norm_that_is_shared_by_tensors_of_several_ranks(rng):
    inner = keras.Sequential([keras.Input((6, 4)), layers.BatchNormalization(), layers.Dense(4)])
    for first in (True, False):
        inputs = keras.Input((6, 4))
        branches = [lambda x: x, layers.Conv1D(4, 3, padding="same")]
        outputs = [inner(branch(inputs)) for branch in branches[:: 1 if first else -1]]
        model = enliven(keras.Model(inputs, outputs), rng)
        x = rng.normal(size=(3, 6, 4)).astype("float32")
        for found, expected in zip(canonicalize(model)(x), model(x), strict=True):
            np.testing.assert_allclose(host(found), host(expected), rtol=1e-5, atol=1e-5)


def test_what_belongs_to_the_weights_of_a_1d_layer_is_kept():
    layer = layers.Conv1D(
        4,
        3,
        kernel_regularizer=keras.regularizers.L2(0.5),
        kernel_constraint=keras.constraints.MaxNorm(2, axis=[0, 1]),
        bias_constraint=keras.constraints.NonNeg(),
        trainable=False,
        name="conv",
    )
    flat = canonicalize(keras.Sequential([keras.Input((6, 4)), layer])).get_layer("conv")
    assert isinstance(flat, layers.Conv2D)
    assert not flat.trainable
    assert flat.kernel_regularizer.l2 == 0.5
    assert flat.kernel_constraint.axis == [1, 2]
    assert isinstance(flat.bias_constraint, keras.constraints.NonNeg)


def test_a_channels_first_cnn_has_one_transposition(rng):
    inputs = keras.Input((3, 12, 12))
    x = layers.Conv2D(6, 3, padding="same", **FIRST)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(axis=1)(x))
    y = layers.Conv2D(6, 3, activation="relu", **FIRST)(layers.ZeroPadding2D(1, **FIRST)(x))
    x = layers.Activation("relu6")(layers.Add()([x, layers.BatchNormalization(axis=1)(y)]))
    gate = layers.Dense(6, activation="sigmoid")(layers.GlobalAveragePooling2D(**FIRST)(x))
    x = layers.Multiply()([x, layers.Reshape((6, 1, 1))(gate)])
    x = layers.Concatenate(axis=1)([x, layers.Conv2D(2, 1, **FIRST)(x)])
    x = layers.MaxPooling2D(2, **FIRST)(x)
    x = layers.Cropping2D(1, **FIRST)(layers.UpSampling2D(2, **FIRST)(x))
    x = layers.SeparableConv2D(4, 3, activation="relu", **FIRST)(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, **FIRST)(x)
    x = layers.AveragePooling2D(2, **FIRST)(layers.DepthwiseConv2D(3, **FIRST)(x))
    x = layers.Flatten(**FIRST)(layers.SpatialDropout2D(0.1, **FIRST)(x))
    names, kernels = whole_way(keras.Model(inputs, layers.Dense(3)(x)), rng)
    assert kernels.count("TRANSPOSE") == 1
    assert not [name for name in names if name.endswith("channels_back")]
    assert {"PAD", "QUANTIZE"}.isdisjoint(kernels)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: layers.Conv1D(3, 2, padding="same", **FIRST), (4, 7)),
        (lambda: layers.GlobalMaxPooling1D(keepdims=True, **FIRST), (4, 7)),
        (lambda: layers.Conv2D(3, 2, activation="softmax", **FIRST), (4, 5, 6)),
        (lambda: layers.GlobalAveragePooling2D(keepdims=True, **FIRST), (4, 5, 6)),
        (lambda: layers.BatchNormalization(axis=2), (4, 5, 6)),
        (lambda: layers.Resizing(7, 4, **FIRST), (4, 5, 6)),
        (lambda: layers.Conv3D(3, 2, strides=2, padding="same", **FIRST), (2, 4, 5, 6)),
        (lambda: layers.MaxPooling3D(2, **FIRST), (2, 4, 5, 6)),
    ],
)
def test_channels_first(layer, shape, rng):
    model = enliven(keras.Sequential([keras.Input(shape), layer()]), rng)
    flat = canonicalize(model)
    assert flat.output_shape == model.output_shape
    if RUNS_FIRST:
        x = rng.normal(size=(3, *shape)).astype("float32")
        np.testing.assert_allclose(host(flat(x)), host(model(x)), rtol=1e-4, atol=1e-5)


def test_moves_that_undo_each_other_are_gone(rng):
    inputs = keras.Input((3, 4, 1))
    x = layers.Permute((2, 1, 3))(layers.Permute((2, 1, 3))(inputs))
    x = layers.Reshape((3, 4, 1))(layers.Reshape((12,))(x))
    x = layers.Flatten()(layers.Permute((3, 1, 2))(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    _, kernels = whole_way(model, rng)
    assert kernels == ["RESHAPE", "FULLY_CONNECTED"]


def test_3d_layers_whose_kernels_have_no_depth_meet_no_reshape(rng):
    inputs = keras.Input((4, 6, 7, 2))
    x = layers.Conv3D(3, (1, 3, 3), activation="relu")(inputs)
    x = layers.BatchNormalization()(layers.MaxPooling3D((1, 2, 2))(x))
    _, kernels = whole_way(keras.Model(inputs, layers.Conv3D(2, (1, 2, 2))(x)), rng)
    assert kernels.count("RESHAPE") == 2


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (lambda: layers.Conv3D(4, 3, groups=2, name="bad"), (4, 5, 6, 4), "groups=2"),
        (lambda: layers.Conv3D(4, 3, name="bad"), (None, 5, 6, 4), "must be known"),
        (
            lambda: layers.Conv3D(4, 3, kernel_constraint="max_norm", name="bad"),
            (4, 5, 6, 4),
            "kernel_constraint",
        ),
        (
            lambda: layers.Resizing(3, 3, pad_to_aspect_ratio=True, name="bad"),
            (5, 6, 4),
            "aspect_ratio",
        ),
    ],
)
def test_refusals(layer, shape, reason):
    model = keras.Sequential([keras.Input(shape), layer()])
    with pytest.raises(UnsupportedLayerError, match=rf"'bad.*{reason}"):
        intact.quantize_model(model)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_images_of_any_size(interpolation, rng):
    for _ in range(12):
        old, new = (tuple(int(n) for n in rng.integers(1, 40, 2)) for _ in range(2))
        inputs = keras.Input((*old, 2))
        model = keras.Model(inputs, ops.image.resize(inputs, new, interpolation=interpolation))
        x = rng.normal(size=(2, *old, 2)).astype("float32")
        q = ready(intact.quantize_model(model))
        found = intact.load_litert(intact.export(q, integer_only=True)).predict(x)
        np.testing.assert_array_equal(found, q.predict(x, verbose=0), err_msg=f"{old} to {new}")
