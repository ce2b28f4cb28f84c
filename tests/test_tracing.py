"""A `call` of the user's, which reckons with weights and with the size of the batch."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven

import intact
from intact import UnsupportedLayerError
from intact.graph.canonicalize import canonicalize


class Written(layers.Layer):
    """A layer whose `call` is a function.

    Args:
        function: The function, of the layer's weights and its input.
        shapes: The shapes of the weights.
    """

    def __init__(self, function, shapes, **kwargs):
        super().__init__(**kwargs)
        self.function, self.shapes = function, shapes

    def build(self, shape):
        self.parts = [self.add_weight(shape=s, initializer="random_normal") for s in self.shapes]

    def call(self, x):
        return self.function(x, *self.parts)


def batch(x):
    return ops.shape(x)[0]


def qkv(x, w):
    """Attention of three matrices in one, as timm writes it."""
    t = ops.reshape(ops.matmul(x, w), (-1, 6, 3, 2, 4))
    t = ops.transpose(t, (2, 0, 3, 1, 4)) * 0.5
    q, k, v = t[0], t[1], t[2]
    scores = ops.softmax(q @ ops.transpose(k, (0, 1, 3, 2)))
    return ops.reshape(ops.transpose(scores @ v, (0, 2, 1, 3)), (-1, 6, 8))


def joined_heads(x, w):
    """Attention whose heads join the batch while it is not the first axis, as in SAM."""
    t = ops.reshape(ops.matmul(x, w), (batch(x), 6, 3, 2, 4))
    t = ops.reshape(ops.transpose(t, (2, 0, 3, 1, 4)), (3, batch(x) * 2, 6, 4))
    q, k, v = ops.unstack(t, axis=0)
    y = ops.softmax(q @ ops.transpose(k, (0, 2, 1))) @ v
    return ops.transpose(ops.reshape(y, (batch(x), 2, 6, 4)), (0, 2, 1, 3))


def experts(x, first, bias, second):
    """A mixture of experts, which stand before the batch, as in Mixtral and gpt-oss."""
    tokens = ops.reshape(x, (-1, 8))
    gates = ops.transpose(ops.softmax(tokens[:, :3]))[:, :, None]
    hidden = ops.einsum("th,ehm->etm", tokens, first) + bias[:, None, :]
    y = ops.einsum("etm,emh->eth", ops.silu(hidden[..., ::2]), second) * gates
    return ops.reshape(ops.sum(y, axis=0), (batch(x), 6, 8))


def streams(x, w):
    """Copies of a tensor before the batch, which a layer takes, as in Gemma3n."""
    mixed = Written(lambda t: ops.repeat(t[:1] * 0.5, 2, axis=0) + t, [])
    t = mixed(ops.stack([x, x * w], axis=0))
    products = t @ ops.transpose(t, (0, 1, 3, 2))
    return ops.concatenate([products[0], products[1]], axis=-1)


def relative_shift(x, w):
    """Scores by distance as scores by place, as in Transformer-XL and XLNet."""
    t = ops.transpose(ops.reshape(x @ w, (batch(x), 6, 2, 7)), (1, 3, 0, 2))
    t = ops.reshape(t, (7, 6, batch(x), 2))
    t = ops.slice(t, (1, 0, 0, 0), (6, 6, batch(x), 2))
    return ops.transpose(ops.reshape(t, (6, 6, batch(x), 2)), (2, 3, 0, 1))


def replaced_rows(x):
    """Each row in turn between those before and those behind it, of which there may be none."""
    for i in range(6):
        x = ops.concatenate([x[:, :i], x[:, i : i + 1] * 0.5, x[:, i + 1 :]], axis=1)
    return x


def positions(x):
    """Places that a layer computes, and that others read."""
    places = Written(lambda x: ops.reshape(ops.arange(12.0), (1, 12)), [])(x)
    return Written(lambda x: x[0] + x[1][:, :6, None] * 0.1, [])([x, places[:, :8]])


def recurrence(x, w):
    """A state that starts as zeros, and outputs that are written step by step, as in RWKV."""

    def step(t, values):
        state, out = values
        state = state * w + x[:, t]
        if keras.backend.backend() == "torch":
            out[:, t : t + 1] = state[:, None]
        else:
            out = ops.slice_update(out, (0, t, 0), state[:, None])
        return [state, out]

    start = [ops.zeros((batch(x), 8)), ops.zeros((batch(x), 6, 8))]
    return ops.fori_loop(0, 6, step, start)[1]


CALLS = {
    "recurrence": (recurrence, [(8,)]),
    "streams": (streams, [(8,)]),
    "positions": (positions, []),
    "relative shift": (relative_shift, [(8, 14)]),
    # Keras' shape formula of an einsum takes no capital letters; a backend does.
    "capital letters": (lambda x: ops.einsum("bTc,bSc->bTS", x, x) * 0.5, []),
    "parts without values": (replaced_rows, []),
    "squeezed": (
        lambda x: ops.moveaxis(ops.squeeze(ops.moveaxis(x[:, None], 0, 2), 0), 1, 0) * 0.5,
        [],
    ),
    "experts": (experts, [(3, 8, 8), (3, 8), (3, 4, 8)]),
    "heads that join the batch": (joined_heads, [(8, 24)]),
    "an axis before the batch": (
        lambda x: ops.transpose(ops.expand_dims(x, 0) * 0.5, (1, 2, 0, 3)),
        [],
    ),
    "rank": (lambda x: x[tuple([slice(None)] * ops.ndim(x))] * 0.5, []),
    "weight on the left": (lambda x, w: w * x, [(8,)]),
    "weight plus": (lambda x, w: w + x, [(6, 8)]),
    "weight minus": (lambda x, w: w - x, [(8,)]),
    "matrix on the left": (lambda x, w: w @ x, [(5, 6)]),
    "tensor on the left": (lambda x: ops.ones(8) * 2 - x, []),
    "converted": (lambda x, w: ops.convert_to_tensor(w) * ops.convert_to_tensor(x), [(8,)]),
    "cast": (lambda x, w: ops.cast(w, "float32") * x, [(8,)]),
    "function of a weight": (lambda x, w: ops.exp(w) * x, [(8,)]),
    "activation": (lambda x, w: keras.activations.gelu(w * x), [(8,)]),
    "a loop": (
        lambda x: ops.fori_loop(0, 3, lambda i, y: y * 0.5 + ops.cast(i, "float32"), x),
        [],
    ),
    "a loop with a condition": (
        lambda x: ops.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 0.5), (0, x))[1],
        [],
    ),
    "functions of each part": (
        lambda x: (
            ops.moveaxis(ops.map(lambda row: row * 0.5, ops.moveaxis(x, 1, 0)), 0, 1)
            + ops.swapaxes(ops.vectorized_map(ops.abs, ops.swapaxes(x, 0, 1)), 0, 1)
        ),
        [],
    ),
    "a switch": (lambda x: ops.switch(1, [lambda y: y, lambda y: y * 2], x), []),
    "rows of a weight": (lambda x, w: x + ops.take(w, np.arange(6), axis=0), [(9, 8)]),
    "repeated rows of a weight": (lambda x, w: x + ops.take(w, [0, 1, 0, 1, 2, 2], 0), [(9, 8)]),
    "tile": (lambda x, w: ops.concatenate([ops.tile(w, (batch(x), 1, 1)), x], 1), [(1, 1, 8)]),
    "repeat": (
        lambda x, w: ops.concatenate([ops.repeat(w, batch(x), axis=0), x], 1),
        [(1, 1, 8)],
    ),
    "broadcast": (lambda x, w: x + ops.broadcast_to(w, ops.shape(x)), [(6, 8)]),
    "latent": (lambda x, w: ops.broadcast_to(w[None], (batch(x), 4, 8)), [(4, 8)]),
    "zeros": (lambda x: ops.concatenate([ops.zeros((batch(x), 2, 8)), x], 1), []),
    "reshape": (lambda x: ops.reshape(x, (batch(x), 12, -1)), []),
    "queries, keys and values": (qkv, [(8, 24)]),
    "unstacked": (
        lambda x: sum(ops.unstack(ops.transpose(ops.reshape(x, (-1, 6, 2, 4)), (2, 0, 1, 3)), 2)),
        [],
    ),
    "split": (
        lambda x: ops.moveaxis(ops.split(ops.transpose(x, (1, 0, 2)), 3, axis=0)[1], 1, 0),
        [],
    ),
    "stacked": (lambda x: ops.stack([x, x * 2.0, x - 1.0])[1:][-1], []),
    "shifted weight": (lambda x, w: x * (1.0 + w) - (-w), [(8,)]),
    "windows": (
        lambda x, w: ops.reshape(w * ops.reshape(x, (batch(x) * 2, 3, 8)), (-1, 6, 8)),
        [(3, 8)],
    ),
}

FIXED = ("function of a weight", "repeated rows of a weight")
"""Here the values of a function replace a weight, which is said."""


def same_as_file(model, rng):
    """Quantize a model, check its file at several batch sizes, and give the quantized model.

    What files compute does not depend on the backend, and compiling takes most of the time.
    """
    enliven(model, rng)
    x = rng.normal(size=(16, *model.input_shape[1:])).astype("float32")
    flat = canonicalize(model)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(flat.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-4)
    q = intact.quantize_model(model)
    if keras.backend.backend() != "torch":
        return q
    intact.calibrate(q, x, verbose=0)
    file = intact.load_litert(intact.export(q, integer_only=True))
    for samples in (1, 3):
        part = x[:samples]
        np.testing.assert_array_equal(file.predict(part), q.predict(part, verbose=0))
    noise = np.mean((file.predict(x) - expected) ** 2)
    assert noise < 0.01 * np.mean(expected**2)
    return q


@pytest.mark.parametrize("name", CALLS)
def test_a_call_becomes_a_file(name, rng):
    function, shapes = CALLS[name]
    x = keras.Input((6, 8))
    model = keras.Model(x, Written(function, shapes)(x))
    if name in FIXED:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            q = same_as_file(model, rng)
        said = [str(w.message) for w in told if w.category is intact.NotKeptWarning]
        assert said and all("computes values from weights alone: from" in text for text in said)
    else:
        q = same_as_file(model, rng)
    assert len(q.trainable_variables) == len(model.trainable_variables)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="Keras cannot build these there."
)
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, w: x + w[np.arange(6)[::-1].copy()], [(6, 8)]),
        (lambda x: sum(ops.transpose(ops.reshape(x, (-1, 6, 2, 4)), (2, 0, 1, 3))), []),
    ],
)
def test_keys_and_loops_of_arrays(function, shapes, rng):
    x = keras.Input((6, 8))
    same_as_file(keras.Model(x, Written(function, shapes)(x)), rng)


def test_the_layer_keeps_its_weights(rng):
    x = keras.Input((6, 8))
    layer = Written(*CALLS["tile"])
    model = keras.Model(x, layer(x))
    canonicalize(model)
    assert all(isinstance(part, keras.Variable) for part in layer.parts)
    assert model.predict(np.zeros((2, 6, 8)), verbose=0).shape == (2, 7, 8)


class Inner(layers.Layer):
    """A layer whose specified outputs are not those of its `call`."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="random_normal")

    def call(self, x, also=None):
        y = self.scale * x
        return y if also is None else (y, y + also)

    def compute_output_spec(self, x, also=None):
        return keras.KerasTensor(x.shape)


class Outer(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Inner()

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        first, second = self.inner(x, also=ops.ones_like(x))
        return first * second

    def compute_output_shape(self, shape):
        return shape


def test_a_layer_in_a_layer_is_traced_by_its_call(rng):
    x = keras.Input((6,))
    same_as_file(keras.Model(x, Outer()(x)), rng)


class Pair(layers.Layer):
    """Returns a second output that is None, after an einsum whose sizes it reads."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.EinsumDense("btc,chd->bthd", (None, 2, 3))

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        y = self.dense(x)
        return ops.reshape(y, (-1, ops.shape(y)[1], 6)), None


class Of(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pair = Pair()

    def build(self, shape):
        self.pair.build(shape)

    def call(self, x):
        y, nothing = self.pair(x)
        assert nothing is None
        return y


def test_a_layer_in_a_layer_returns_none(rng):
    inputs = keras.Input((6, 8))
    same_as_file(keras.Model(inputs, Of()(inputs)), rng)


class Reversible(layers.Layer):
    """Takes the mean away, or puts back what an earlier call has taken, as RevIN does."""

    def call(self, x, back):
        if back:
            return x * 0.5 + self.mean
        self.mean = ops.mean(x, axis=1, keepdims=True)
        return x - self.mean

    def compute_output_shape(self, input_shape):
        return input_shape


class AroundOthers(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.dense = Reversible(), layers.Dense(8)

    def call(self, x):
        return self.norm(self.dense(self.norm(x, back=False)), back=True)


def test_a_call_reads_what_an_earlier_one_left_in_an_attribute(rng):
    x, model = keras.Input((6, 8)), AroundOthers()
    same_as_file(keras.Model(x, model(x)), rng)
    norm = Reversible()
    functional = keras.Model(x, norm(layers.Dense(8)(norm(x, back=False)), back=True))
    functional.predict(np.zeros((2, 6, 8)), verbose=0)
    left = norm.mean
    canonicalize(functional)
    assert norm.mean is left


class AnySize(layers.Layer):
    """Calls a sequence on another size than it is built for, which the backends take."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.Sequential([layers.Dense(4), layers.Dense(3)])

    def build(self, shape):
        self.inner.build((None, 9, 8))

    def call(self, x):
        return self.inner(x)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)


def test_a_sequence_in_a_layer_takes_another_size(rng):
    x = keras.Input((6, 8))
    same_as_file(keras.Model(x, AnySize()(x)), rng)


class Probe(layers.Layer):
    """Attention of a query that all samples share, which is as many as one sample."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4)

    def build(self, shape):
        self.query = self.add_weight(shape=(1, 1, shape[-1]), initializer="random_normal")
        self.attention.build((1, 1, shape[-1]), shape)

    def call(self, x):
        return self.attention(ops.convert_to_tensor(self.query), x)

    def compute_output_shape(self, shape):
        return (shape[0], 1, shape[-1])


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="Keras itself takes such a query on PyTorch alone"
)
def test_attention_with_a_shared_query(rng):
    x = keras.Input((6, 8))
    model = keras.Model(x, Probe()(x))
    assert len(same_as_file(model, rng).trainable_variables) == len(model.trainable_variables)


class Positions(layers.Layer):
    """Tokens and their places."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.places = layers.Embedding(6, 8)

    def build(self, shape):
        self.places.build((6,))

    def call(self, x):
        return x + self.places(ops.arange(0, ops.shape(x)[1], 1))


def test_an_embedding_of_known_places_trains(rng):
    x = keras.Input((6, 8))
    q = same_as_file(keras.Model(x, Positions()(x)), rng)
    assert [tuple(v.shape) for v in q.trainable_variables] == [(1, 6, 8)]


def test_what_depends_on_the_batch_is_refused():
    x = keras.Input((6,))
    mean = Written(lambda x: x / ops.cast(batch(x), "float32"), [], name="by_batch")
    with pytest.raises(UnsupportedLayerError, match=r"by_batch.*number of samples.*`batch_size`"):
        intact.quantize_model(keras.Model(x, mean(x)))


def aligned(x):
    """Images of 5 by 7 whose corners stay, by the function of each backend, as in KerasHub."""
    if keras.backend.backend() == "torch":
        import torch

        x = ops.transpose(x, (0, 3, 1, 2))
        x = torch.nn.functional.interpolate(x, (5, 7), mode="bilinear", align_corners=True)
        return ops.transpose(x, (0, 2, 3, 1))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.compat.v1.image.resize(x, (5, 7), method="bilinear", align_corners=True)
    import jax

    scale = ops.convert_to_tensor([4 / (x.shape[1] - 1), 6 / (x.shape[2] - 1)])
    return jax.image.scale_and_translate(
        x,
        (x.shape[0], 5, 7, x.shape[3]),
        (1, 2),
        scale,
        0.5 - scale / 2,
        "bilinear",
        antialias=False,
    )


def test_a_function_of_a_backend(rng):
    x = keras.Input((3, 4, 2))
    same_as_file(keras.Model(x, Written(aligned, [])(x)), rng)


def test_products_of_all_pairs_of_samples(rng):
    a, b = keras.Input((6,)), keras.Input((6,))
    products = Written(lambda x, w: ops.matmul(x[0], ops.transpose(x[1])) * w, [()])
    y = products([a, b])
    model = keras.Model([a, b], [y, ops.transpose(y), ops.einsum("if,jf->ji", a, b)])
    x = [rng.normal(size=(12, 6)).astype("float32") for _ in range(2)]
    q = intact.quantize_model(model)
    intact.calibrate(q, x, batch_size=12, verbose=0)
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, x, batch_size=12).different == 0
    outputs = intact.load_litert(content).predict([part[:3] for part in x])
    first, turned, plain = outputs.values()
    np.testing.assert_array_equal(first, turned.T)
    np.testing.assert_allclose(plain, (x[0][:3] @ x[1][:3].T).T, atol=0.2)


def test_a_displaced_batch_is_refused_where_it_is_read():
    x = keras.Input((6, 8))
    turned = Written(lambda x: ops.mean(ops.transpose(x, (1, 0, 2)), axis=1), [], name="turned")
    with pytest.raises(UnsupportedLayerError, match=r"Mean 'turned.*not the first axis"):
        intact.quantize_model(keras.Model(x, turned(x)))
    with pytest.raises(UnsupportedLayerError, match="The batch must stay the first"):
        intact.quantize_model(keras.Model(x, ops.transpose(x, (1, 0, 2))))


class TurnedMask(layers.Layer):
    """A mask turned by a reshape, which keeps samples apart for one sample alone, as in XLNet."""

    def call(self, x, mask):
        mask = ops.reshape(1 - mask, (ops.shape(mask)[1], ops.shape(mask)[0]))
        turned = mask[None, :, :, None] > 0
        others = ops.cast(turned, "int32") - ops.eye(6, dtype="int32")[:, :, None, None]
        hidden = ops.transpose(ops.squeeze(others > 0, -1), (2, 0, 1))
        joined = ops.reshape(ops.transpose(x, (1, 0, 2)), (-1, 8))
        shown = 1.0 - ops.cast(hidden, "float32")
        return layers.Softmax()(x @ ops.transpose(x, (0, 2, 1)), shown), joined * 0.5


def test_a_reshape_may_move_the_axis_of_a_single_sample(rng):
    x, mask = keras.Input((6, 8), 1), keras.Input((6,), 1, dtype="int32")
    model = keras.Model([x, mask], TurnedMask()(x, mask))
    data = [rng.normal(size=(8, 6, 8)).astype("float32"), rng.integers(0, 2, (8, 6), "int32")]
    q = intact.quantize_model(model)
    intact.calibrate(q, data, batch_size=1, verbose=0)
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, data, batch_size=1).different == 0
    assert min(o.snr for o in intact.compare(model, content, data, batch_size=1).outputs) > 25
    x, mask = keras.Input((6, 8)), keras.Input((6,), dtype="int32")
    with pytest.raises(UnsupportedLayerError, match="build the model for one sample"):
        intact.quantize_model(keras.Model([x, mask], TurnedMask()(x, mask)))


class Undone(layers.Layer):
    def call(self, x):
        if isinstance(x, keras.KerasTensor) and x.shape[0] is not None:
            raise ValueError("not so")
        return x * 2.0


def test_an_error_names_the_line():
    x = keras.Input((6,))
    with pytest.raises(UnsupportedLayerError, match=r'line \d+, `raise ValueError\("not so"\)`'):
        intact.quantize_model(keras.Model(x, Undone(name="undone")(x)))


class Noisy(keras.layers.Layer):
    """Random numbers that do not depend on whether the model trains."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


@pytest.mark.parametrize("batch", [None, 4])
def test_random_numbers_in_inference_are_refused(batch):
    x = keras.Input((3,), batch)
    with pytest.raises(intact.UnsupportedLayerError, match="random numbers in inference"):
        intact.quantize_model(keras.Model(x, Noisy()(x)))


class Ratings(keras.Model):
    """Embeddings of columns of one input, whose type is unknown."""

    def __init__(self):
        super().__init__()
        self.users, self.films = keras.layers.Embedding(9, 4), keras.layers.Embedding(9, 4)

    def call(self, x):
        return ops.sum(self.users(x[:, 0]) * self.films(x[:, 1]), axis=1, keepdims=True)


def test_columns_of_an_input_are_indices():
    model = Ratings()
    x = np.random.default_rng(0).integers(0, 9, (16, 2)).astype("int32")
    model(x)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    assert q.inputs[0].dtype == "int32"
    np.testing.assert_array_equal(
        intact.load_litert(intact.export(q, integer_only=True)).predict(x), q.predict(x, verbose=0)
    )


class NormalizedKernel(layers.Wrapper):
    """A dense layer whose kernel the wrapper computes: it assigns it, or puts it in its place.

    Args:
        layer: The dense layer.
        assigns: Whether it assigns the kernel.
    """

    def __init__(self, layer, assigns):
        super().__init__(layer)
        self.assigns = assigns

    def build(self, shape):
        self.layer.build(shape)
        self.kernel = self.add_weight(shape=self.layer.kernel.shape, name="kernel")
        self.built = True

    def call(self, x):
        before = self.layer._kernel
        kernel = ops.normalize(self.kernel, axis=0) * 3.0
        if self.assigns:
            self.layer.kernel.assign(kernel)
        else:
            self.layer._kernel = kernel
        y = self.layer(x)
        self.layer._kernel = before
        return y


@pytest.mark.filterwarnings("ignore::intact.NotKeptWarning")
@pytest.mark.parametrize("assigns", [True, False])
def test_a_kernel_that_a_wrapper_computes_is_used(assigns, rng):
    if assigns and keras.backend.backend() == "jax":
        pytest.skip("Keras itself keeps what is assigned while compiling")
    wrapper = NormalizedKernel(layers.Dense(4), assigns)
    model = keras.Sequential([keras.Input((8,)), wrapper])
    x = rng.normal(size=(32, 8)).astype("float32")
    before = keras.ops.convert_to_numpy(wrapper.layer.kernel)
    flat = canonicalize(model)
    np.testing.assert_array_equal(wrapper.layer.kernel, before)
    np.testing.assert_allclose(
        flat.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )


class Counting(layers.Layer):
    """A layer that counts its calls, and may compute with the number."""

    def __init__(self, computes):
        super().__init__()
        self.computes = computes

    def build(self, shape):
        self.number = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        y = x * 2.0 + self.number if self.computes else x * 2.0
        self.number.assign_add(1.0)
        return y


def test_a_layer_may_count_its_calls():
    layer = Counting(computes=False)
    model = keras.Sequential([keras.Input((3,)), layer])
    assert [type(each).__name__ for each in canonicalize(model).layers][1:] == ["Rescaling"]
    assert float(keras.ops.convert_to_numpy(layer.number)) == 0


def test_a_state_that_a_call_changes_is_refused():
    model = keras.Sequential([keras.Input((3,)), Counting(computes=True)])
    with pytest.raises(UnsupportedLayerError, match=r"reads weight .* and assigns to it"):
        intact.quantize_model(model)


class Shifted(layers.Rescaling):
    """A layer of Keras' that computes by `self.backend`, and something more."""

    def call(self, x):
        return super().call(x) + self.backend.numpy.abs(x)


def patched():
    """A dense layer whose own `call` is replaced."""
    dense = layers.Dense(4)
    dense.build((None, 8))
    before = dense.call
    dense.call = lambda x, training=None: before(x) * 2.0 + 1.0
    return dense


@pytest.mark.parametrize("make", [lambda: Shifted(0.5), patched], ids=["subclass", "patched"])
def test_what_a_layer_was_changed_to_is_traced(make, rng):
    model = keras.Sequential([keras.Input((8,)), make()])
    x = rng.normal(size=(16, 8)).astype("float32")
    np.testing.assert_allclose(
        canonicalize(model).predict(x, verbose=0),
        model.predict(x, verbose=0),
        rtol=1e-5,
        atol=1e-5,
    )


class Training(layers.Layer):
    """Computes something else in training, and says so to the layers in it.

    Args:
        inner: A layer that it calls, or None.
        says: The argument that it calls it with.
    """

    def __init__(self, inner=None, says=None):
        super().__init__()
        self.inner, self.says = inner, says

    def build(self, shape):
        if self.inner is not None:
            self.inner.build(shape)

    def call(self, x, training=True):
        if self.inner is not None:
            return self.inner(x, training=self.says)
        return x * 3.0 if training else x * 2.0


@pytest.mark.parametrize(
    "make",
    [
        Training,
        lambda: Training(Training(), None),
        lambda: Training(Training(), True),
        lambda: Training(layers.Dropout(0.0), True),
        lambda: Training(layers.BatchNormalization(), False),
    ],
    ids=["default", "inherited", "told", "without effect", "told not to"],
)
def test_a_call_is_traced_as_it_infers(make, rng):
    model = keras.Sequential([keras.Input((4,)), make()])
    enliven(model, rng)
    x = rng.normal(size=(16, 4)).astype("float32")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(canonicalize(model).predict(x, verbose=0), expected, rtol=1e-5)


@pytest.mark.parametrize("inner", [layers.BatchNormalization(), layers.Dropout(0.5)])
def test_layers_that_train_in_inference_are_refused(inner):
    model = keras.Sequential([keras.Input((4,)), Training(inner, True)])
    with pytest.raises(UnsupportedLayerError, match=r"with `training=True` in inference"):
        canonicalize(model)
