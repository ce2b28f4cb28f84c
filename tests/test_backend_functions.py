"""Functions of the backends in a user's `call`."""

import importlib
import pkgutil

import keras
import numpy as np
import pytest
from keras import layers, ops

import intact
from intact.graph.backend_functions import symbolic_functions
from intact.graph.function_rules import OfTensors
from intact.numerics.tensors import to_numpy

BACKEND = keras.backend.backend()
TABLES = importlib.import_module(f"intact.graph.{BACKEND}_functions")
REDUCED = "f(x, 1, keepdims=True)"

# By backend and name: a call of function f of tensors x and y of shape (2, 4, 6, 8), whose values
# are from 0.1 to 0.9.
CALLS = {
    "tensorflow": {
        **dict.fromkeys(("reduce_any", "reduce_all"), "f(x > 0.5, [1, 2])"),
        **dict.fromkeys(
            ("reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod"),
            "f(x, axis=[1, 2])",
        ),
        **dict.fromkeys(("reduce_variance", "reduce_std", "reduce_logsumexp"), REDUCED),
        **dict.fromkeys(("argmax", "argmin"), "(f(x), f(x, 2))"),
        **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), "f(x > 0.5, y > 0.5)"),
        "logical_not": "f(x > 0.5)",
        "squared_difference": "f(x, y)",
        "add_n": "f([x, y, x])",
        "top_k": "f(x, k=3)",
        "tensordot": "f(x, y[0, 0, 0], 1)",
        "cumsum": "(f(x, 1), f(x, 2, exclusive=True, reverse=True))",
        "einsum": "f('bhwc,bhvc->bhwv', x, y)",
        "l2_normalize": "f(x, -1)",
        "concat": "f([x, y], -1)",
        "expand_dims": "f(x, 1)",
        "repeat": "f(x, 2, axis=1)",
        "roll": "f(x, 1, 2)",
        "squeeze": "f(x[:, :1], 1)",
        "stack": "f([x, y], axis=1)",
        "transpose": "f(x, [0, 2, 1, 3])",
        "unstack": "f(x, axis=2)",
        "where": "f(x > y, x, 0.0)",
        "clip_by_value": "f(x, 0.2, 0.5)",
        "broadcast_to": "f(x[:, :1], [x.shape[0], 4, 6, 8])",
        "cast": "f(x * 9, tf.int32)",
        "convert_to_tensor": "f(x)",
        "ensure_shape": "f(x, (None, 4, 6, 8))",
        "gather": "(f(x, [1, 3], axis=2), f(x, places, batch_dims=3))",
        "matmul": "(f(x, y, transpose_b=True), f(x, y, transpose_a=True))",
        "norm": "f(x, axis=-1, keepdims=True)",
        "one_hot": "f(tf.cast(x * 9, 'int32'), 10)",
        "pad": (
            "(f(x, [[0, 0], [1, 2], [0, 1], [0, 0]]), "
            "f(x, [[0, 0], [1, 1], [2, 1], [0, 0]], 'REFLECT'))"
        ),
        "rank": "x * float(f(x))",
        "reshape": "f(x, [-1, tf.shape(x)[1] * 6, 8])",
        "reverse": "f(x, [1])",
        "shape": "x * float(f(x)[2])",
        "slice": "f(x, [0, 1, 0, 2], [-1, 2, -1, 3])",
        "sort": "(f(x, 2), f(x, direction='DESCENDING'))",
        "split": "(f(x, 2, axis=1), f(x, [2, -1, 1], -1))",
        "tile": "f(x, [1, 2, 1, 1])",
        "TensorArray": (
            "(lambda a: (a.write(0, tf.cast(x, a.dtype)).write(1, y).stack(), a.size()))"
            "(f('float32', size=2, clear_after_read=False).identity())[0]"
        ),
        "leaky_relu": "(f(x - 0.5), f(x - 0.5, alpha=0.3))",
        "moments": "f(x, [1, 2], keepdims=True)",
        **dict.fromkeys(("depth_to_space", "space_to_depth"), "f(x, 2)"),
        **dict.fromkeys(("silu", "swish"), "(f(x), f(x, 1.5))"),
        "gelu": "(f(x - 0.5), f(x - 0.5, approximate=True))",
        **dict.fromkeys(("softmax", "log_softmax"), "(f(x), f(x, axis=1))"),
        "bias_add": "f(x, np.arange(8.0, dtype='float32'))",
        "batch_normalization": "f(x, y, x + 1, None, y, 1e-3)",
        "conv2d": "f(x, np.ones((3, 3, 8, 2), 'float32'), [1, 2, 2, 1], 'SAME')",
        "depthwise_conv2d": "f(x, np.ones((3, 3, 8, 1), 'float32'), [1, 1, 1, 1], 'VALID')",
        **dict.fromkeys(("avg_pool", "max_pool"), "f(x, 2, [1, 2, 2, 1], 'VALID')"),
        **dict.fromkeys(("avg_pool2d", "max_pool2d"), "f(x, (2, 3), 1, 'SAME')"),
        "embedding_lookup": "f(np.eye(10, dtype='float32'), tf.cast(x * 9, 'int32'))",
        "resize": "f(x, (8, 12))",
        "tensorflow.compat.v1.image.resize": "f(x, (7, 11), align_corners=True)",
        "rgb_to_grayscale": "f(x[..., :3])",
        **dict.fromkeys(("flip_left_right", "flip_up_down"), "f(x)"),
        **dict.fromkeys(("__lt__", "__le__", "__gt__", "__ge__"), "f(tf.constant(0.5), x)"),
    },
    "torch": {
        **dict.fromkeys(("mean", "sum", "amax", "amin"), "f(x, dim=(1, 2))"),
        **dict.fromkeys(("prod", "argmax", "argmin", "logsumexp"), "f(x, 1, keepdim=True)"),
        **dict.fromkeys(("any", "all"), "f(x > 0.5, 2)"),
        **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), "f(x > 0.5, y > 0.5)"),
        "logical_not": "f(x > 0.5)",
        **dict.fromkeys(("bmm", "mm"), "f(x[0], x[0].transpose(1, 2))"),
        "mm": "f(x[0, 0], x[0, 0].transpose(0, 1))",
        "matmul": "f(x, y.transpose(-1, -2))",
        "cumsum": "f(x, dim=1)",
        **dict.fromkeys(("transpose", "swapaxes"), "f(x, 1, 2)"),
        "unsqueeze": "f(x, 1)",
        **dict.fromkeys(("clamp", "clip"), "f(x, min=0.2, max=0.5)"),
        "roll": "f(x, 1, 2)",
        "index_select": "f(x, 2, torch.tensor([1, 3]))",
        "repeat_interleave": "f(x, 2, dim=1)",
        "chunk": "(f(x, 2, 1), f(x, 4, dim=2))",
        "flatten": "(f(x, 1), f(x, 1, 2))",
        "flip": "f(x, [1, 2])",
        "gather": "f(x, 3, (x * 7).to(torch.int64))",
        "masked_fill": "f(x, x > 0.5, 0.0)",
        **dict.fromkeys(("max", "min"), "(f(x), f(x, y), *f(x, 1))"),
        "norm": "f(x, dim=-1, keepdim=True)",
        "permute": "f(x, (0, 3, 1, -2))",
        "reshape": "f(x, (x.shape[0], -1, 8))",
        **dict.fromkeys(("softmax", "log_softmax"), "f(x, dim=1)"),
        "split": "(f(x, 4, 3), f(x, 4, dim=2), f(x, [1, 3], 1))",
        "squeeze": "(f(x[:, :1], 1), f(x, 1))",
        **dict.fromkeys(("std", "var"), "(f(x, 1), f(x, dim=(2, 3), correction=0, keepdim=True))"),
        "tile": "f(x, (1, 2, 1, 1))",
        "topk": "f(x, 3)",
        "unbind": "f(x, 2)",
        "glu": "f(x, -1)",
        "gelu": "(f(x - 0.5), f(x - 0.5, approximate='tanh'))",
        "interpolate": "f(x, scale_factor=2, mode='bilinear')",
        "layer_norm": "f(x, (8,), y[0, 0, 0], y[0, 0, 1])",
        "leaky_relu": "f(x - 0.5)",
        "linear": "f(x, y[0, 0], y[0, 0, :, 0])",
        "mish": "f(x)",
        "normalize": "f(x, dim=-1)",
        "one_hot": "f((x * 9).to(torch.int64), 10)",
        "pad": "(f(x, (1, 2, 0, 1)), f(x, (1, 1, 2, 1), mode='reflect'))",
        "scaled_dot_product_attention": "f(x, y, x)",
        **dict.fromkeys(("relu", "relu6", "selu", "silu", "elu", "softplus"), "f(x - 0.5)"),
        **dict.fromkeys(("cat", "concat", "stack"), "f([x, y], dim=1)"),
        "where": "f(x > y, x, y)",
        "einsum": "f('bhwc,bhvc->bhwv', x, y)",
    },
    "jax": {
        **dict.fromkeys(("mean", "sum", "max", "min", "amax", "amin"), "f(x, axis=(1, 2))"),
        **dict.fromkeys(("prod", "var", "std", "argmax", "argmin"), "f(x, 1, keepdims=True)"),
        **dict.fromkeys(("any", "all"), "f(x > 0.5, 2)"),
        **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), "f(x > 0.5, y > 0.5)"),
        "logical_not": "f(x > 0.5)",
        "matmul": "f(x, y.swapaxes(-1, -2))",
        "dot": "f(x, y[0, 0, 0])",
        "cumsum": "f(x, axis=1)",
        "repeat": "f(x, 2, axis=1)",
        "squeeze": "f(x[:, :1], 1)",
        "swapaxes": "f(x, 1, 2)",
        "take": "f(x, np.array([1, 3]), axis=2)",
        "ravel": "f(x)",
        "jax.lax.concatenate": "f([x, y], 1)",
        **dict.fromkeys(("jax.lax.max", "jax.lax.min"), "f(x, y)"),
        **dict.fromkeys(("concatenate", "stack"), "f([x, y], axis=1)"),
        "expand_dims": "f(x, 1)",
        "flip": "f(x, 1)",
        "moveaxis": "f(x, 1, 2)",
        "roll": "f(x, 1, axis=2)",
        "split": "(f(x, 2, axis=1), f(x, [2, 3], -1))",
        "take_along_axis": "f(x, (x * 7).astype('int32'), axis=3)",
        "tensordot": "f(x, y[0, 0, 0], 1)",
        "tile": "f(x, (1, 2, 1, 1))",
        "transpose": "f(x, (0, 2, 1, 3))",
        **dict.fromkeys(("where", "select"), "f(x > y, x, y)"),
        "clip": "(f(x, 0.2, 0.5), f(x, max=0.5))",
        **dict.fromkeys(("asarray", "array"), "f(x)"),
        "astype": "f(x * 9, 'int32')",
        "broadcast_to": "f(x[:, :1], (x.shape[0], 4, 6, 8))",
        "einsum": "f('bhwc,bhvc->bhwv', x, y)",
        "ndim": "x * float(f(x))",
        "pad": "(f(x, [(0, 0), (1, 2), (0, 1), (0, 0)]), f(x, 1))",
        "reshape": "f(x, (x.shape[0], -1, 8))",
        "shape": "x * float(f(x)[2])",
        "elu": "f(x - 0.5)",
        "glu": "f(x, -1)",
        **dict.fromkeys(("softmax", "log_softmax", "logsumexp"), "f(x, axis=1)"),
        "gelu": "(f(x - 0.5), f(x - 0.5, approximate=False))",
        "leaky_relu": "f(x - 0.5)",
        "one_hot": "f((x * 9).astype('int32'), 10)",
        "clamp": "f(0.2, x, 0.5)",
        "norm": "f(x, axis=-1, keepdims=True)",
        "resize": "f(x, (x.shape[0], 8, 12, 8), 'bilinear')",
        "scale_and_translate": (
            "f(x, (x.shape[0], 7, 11, 8), (1, 2), np.array([2.0, 2.0], 'float32'), "
            "np.array([-0.5, -0.5], 'float32'), 'bilinear')"
        ),
    },
}[BACKEND]
NAMES = {"tensorflow": "tf", "torch": "torch", "jax": "jax"}
SPACE = {NAMES[BACKEND]: importlib.import_module(BACKEND), "np": np}
FUNCTIONS = [
    (path, name)
    for path, table in TABLES.FUNCTIONS.items()
    for name in table
    if hasattr(pkgutil.resolve_name(path), name)
]


def values() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(0.1, 0.9, (2, 4, 6, 8)).astype("float32") for _ in range(2)]


def evaluated(expression: str, function: object, x: object, y: object) -> list:
    space = SPACE | {"f": function, "x": x, "y": y, "places": ops.cast(x * 7, "int32")}
    return keras.tree.flatten(eval(expression, space))


@pytest.mark.parametrize(("path", "name"), FUNCTIONS, ids=map(".".join, FUNCTIONS))
def test_a_function_means_what_the_backend_means(path, name):
    symbolic = TABLES.FUNCTIONS[path][name]
    call = CALLS.get(f"{path}.{name}", CALLS.get(name))
    if call is None:
        assert isinstance(symbolic, OfTensors), "no case"
        call = "f(x)" if symbolic.parameters == 1 else "f(x, y)"
    arrays = [ops.convert_to_tensor(value) for value in values()]
    expected = evaluated(call, getattr(pkgutil.resolve_name(path), name), *arrays)
    inputs = [keras.Input(batch_shape=value.shape) for value in values()]
    with symbolic_functions():
        outputs = evaluated(call, getattr(pkgutil.resolve_name(path), name), *inputs)
    actual = keras.Model(inputs, outputs)(values())
    for a, b in zip(keras.tree.flatten(actual), expected, strict=True):
        assert a.shape == tuple(b.shape)
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=2e-5, atol=2e-5)


METHODS = {
    "tensorflow": (
        "float(x.get_shape().as_list()[1]) * x",
        "x * float(x.shape.rank)",
        "tf.reshape(x, [-1] + x.shape.as_list()[2:])",
    ),
    "torch": (
        "x.view(x.size(0), -1)",
        "x.view(-1, 6, 8).reshape(x.shape[0], 4, 48).permute(0, 2, 1)",
        "x.float().mean((1, 2)).unsqueeze(1).expand(-1, 3, -1)",
        "x.contiguous().flatten(1).softmax(-1).clamp(max=0.1)",
        "x.repeat(1, 2, 1, 1).mT.sum(dim=-1, keepdim=True)",
        "x * (y > 0.5).to(x.dtype).type_as(x).sum()",
        "x.detach().dim() * x.masked_fill((y > 0.5).bool(), 0.5).int()",
    ),
    "jax": (
        "x.reshape(x.shape[0], -1)",
        "x.mean(axis=(1, 2), keepdims=True).astype('float32')",
        "x.transpose(0, 2, 1, 3).sum(-1).clip(1, 4)",
        "x[0, 0].T.flatten().round().dot(y[0, 0].ravel())",
        "x.mT.squeeze().transpose((0, 1, 3, 2)).transpose()",
    ),
}[BACKEND]


@pytest.mark.parametrize("expression", METHODS)
def test_a_method_means_what_the_backend_means(expression):
    arrays = [ops.convert_to_tensor(value) for value in values()]
    expected = evaluated(expression, None, *arrays)
    inputs = [keras.Input(batch_shape=value.shape) for value in values()]
    with symbolic_functions():
        outputs = evaluated(expression, None, *inputs)
    actual = keras.Model(inputs, outputs)(values())
    for a, b in zip(keras.tree.flatten(actual), expected, strict=True):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=2e-5, atol=2e-5)


LAYERS = {
    "tensorflow": "tf.nn.relu6(tf.reduce_mean(tf.concat([x, 2.0 * x], -1), axis=[1, 2]))",
    "torch": "torch.nn.functional.relu6(torch.cat([x, 2.0 * x], -1).mean((1, 2)))",
    "jax": "jax.nn.relu6(jax.numpy.concatenate([x, 2.0 * x], -1).mean((1, 2)))",
}


def test_a_layer_that_calls_them_becomes_a_file():
    x = keras.Input((4, 6, 8))
    y = layers.Lambda(lambda x: eval(LAYERS[BACKEND], SPACE | {"x": x}), name="own")(x)
    model = keras.Model(x, layers.Dense(3)(y))
    data = values()[0]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    comparison = intact.compare(q, intact.export(q, integer_only=True), data, float_model=model)
    assert comparison.different == 0
    assert comparison.outputs[0].snr > 25


def test_the_backend_is_left_as_it_was():
    before = {path: dict(vars(pkgutil.resolve_name(path))) for path in TABLES.FUNCTIONS}
    symbol = dict(vars(keras.KerasTensor))
    with symbolic_functions():
        assert dict(vars(keras.KerasTensor)) != symbol
    assert dict(vars(keras.KerasTensor)) == symbol
    for path, attributes in before.items():
        now = vars(pkgutil.resolve_name(path))
        assert all(now[name] is value for name, value in attributes.items())


def test_keras_own_code_calls_the_backend():
    layer, data = layers.SimpleRNN(2), values()[0][:, 0]
    expected = to_numpy(layer(data))
    with symbolic_functions():
        np.testing.assert_array_equal(to_numpy(layer(data)), expected)


def test_a_function_with_other_settings_is_refused():
    call = {
        "tensorflow": "tf.image.resize(x, (4, 4), preserve_aspect_ratio=True)",
        "torch": "torch.nn.functional.interpolate(x, size=(5, 7), mode='bicubic')",
        "jax": "jax.numpy.mean(x, 1, dtype='float16')",
    }[BACKEND]
    x = keras.Input((4, 6, 8))
    y = layers.Lambda(lambda x: eval(call, SPACE | {"x": x}), output_shape=(4, 4, 8), name="own")(x)
    with pytest.raises(intact.UnsupportedLayerError, match="'own'"):
        intact.quantize_model(keras.Model(x, y))
