"""Any Keras model to a flat one of known layers, that computes the same."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import cnn, enliven, host, mlp, weights

import intact
from intact import InvalidModelError, UnsupportedLayerError
from intact.graph.canonicalize import canonicalize


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A custom layer made of Keras layers and operators."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = layers.Dense(units, activation="relu", name="first")
        self.second = layers.Dense(units, name="second")

    def call(self, x):
        y = self.first(x)
        return ops.relu(y + self.second(y) * 0.5)


class Net(keras.Model):
    """A subclassed model."""

    def __init__(self):
        super().__init__(name="net")
        self.block = Block(4, name="block")
        self.head = layers.Dense(2, name="head")

    def call(self, x):
        return self.head(self.block(x))


class Loose(layers.Layer):
    """A custom layer with a weight of its own, that nobody registered."""

    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain


def names(model):
    return [layer.name for layer in model.layers if not isinstance(layer, layers.InputLayer)]


def same(model, shape, rng):
    """Canonicalize, and check that it computes the same and leaves the model alone."""
    enliven(model, rng)
    before, config = weights(model), [layer.name for layer in model.layers]
    flat = canonicalize(model)
    x = rng.normal(size=(3, *shape)).astype("float32")
    np.testing.assert_allclose(
        host(flat(x)), host(model(x)), rtol=1e-5, atol=1e-5, err_msg=str(names(flat))
    )
    for old, new in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [layer.name for layer in model.layers] == config
    assert not {id(v) for v in flat.variables} & {id(v) for v in model.variables}
    assert len(set(names(flat))) == len(names(flat))
    return flat


def test_sequential_at_the_top(rng):
    flat = same(mlp(), (6,), rng)
    assert names(flat) == ["hidden", "hidden_relu", "head"]
    assert flat.name == "mlp"
    assert [t.name for t in flat.inputs] == ["features"]


def test_functional(rng):
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(3, 3, activation="relu6", name="conv")(inputs)
    y = layers.Conv2D(3, 1, name="side")(x)
    outputs = layers.Add(name="add")([layers.Activation("linear")(x), y])
    flat = same(keras.Model(inputs, outputs), (6, 6, 2), rng)
    assert names(flat) == ["conv", "conv_relu6", "side", "add"]
    assert isinstance(flat.get_layer("conv_relu6"), layers.ReLU)
    assert flat.get_layer("conv").activation is keras.activations.linear


def test_nested_models_are_inlined(rng):
    inner = mlp("inner")
    inputs = keras.Input((6,))
    functional = keras.Model(inputs, inner(layers.Dense(6, name="before")(inputs)), name="outer")
    model = keras.Sequential([keras.Input((6,)), functional, layers.Dense(2, name="after")])
    flat = same(model, (6,), rng)
    assert names(flat) == ["before", "hidden", "hidden_relu", "head", "after"]


def test_nested_model_called_twice_shares_its_weights(rng):
    inner = mlp("inner")
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = enliven(keras.Model([a, b], layers.Subtract()([inner(a), inner(b)])), rng)
    flat = canonicalize(model)
    assert len(flat.weights) == len(model.weights) == 4
    x = [rng.normal(size=(3, 6)).astype("float32") for _ in range(2)]
    np.testing.assert_allclose(host(flat(x)), host(model(x)), rtol=1e-5, atol=1e-5)


def test_the_same_names_in_two_nested_models(rng):
    inputs = keras.Input((6,))
    twins = [
        keras.Sequential([keras.Input((6,)), layers.Dense(6, name="dense")], name=f"twin_{i}")
        for i in range(2)
    ]
    flat = same(keras.Model(inputs, twins[1](twins[0](inputs))), (6,), rng)
    assert names(flat) == ["dense", "dense_1"]


def test_shared_layers_share_one_copy(rng):
    shared = layers.Dense(6, name="shared")
    inputs = keras.Input((6,))
    flat = same(keras.Model(inputs, shared(layers.ReLU()(shared(inputs)))), (6,), rng)
    assert len(flat.weights) == 2


def test_subclassed_model(rng):
    model = Net()
    model(np.zeros((2, 6), "float32"))
    flat = same(model, (6,), rng)
    assert {"block_first", "block_first_relu", "block_second", "head"} <= set(names(flat))
    assert flat.input_shape == (None, 6)


def test_custom_layer_of_keras_layers_needs_no_registration(rng):
    model = keras.Sequential([keras.Input((6,)), Block(5), Block(5)])
    flat = same(model, (6,), rng)
    assert len(flat.weights) == 8


def test_custom_layer_whole_way(rng):
    model = enliven(keras.Sequential([keras.Input((6,)), Block(5)]), rng)
    x = rng.normal(size=(40, 6)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    found = intact.load_litert(intact.export(q, integer_only=True)).predict(x)
    np.testing.assert_array_equal(found, q.predict(x, verbose=0))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1.0,
        lambda x: 2.0 * x,
        lambda x: x / 4.0,
        lambda x: 1.0 - x,
        lambda x: -x,
        lambda x: (x - np.array([1.0, 2.0, 3.0], "float32")) * 0.5,
        lambda x: ops.relu(x) - ops.sigmoid(x),
        lambda x: ops.concatenate([x, x * 2.0], axis=-1),
        lambda x: layers.Activation("silu")(x),
        lambda x: layers.Activation("hard_sigmoid")(x),
        lambda x: layers.ReLU(negative_slope=0.1)(x),
        lambda x: layers.Add()([x, x, layers.ReLU()(x)]),
    ],
)
def test_operators_and_functions(function, rng):
    inputs = keras.Input((3,))
    same(keras.Model(inputs, function(inputs)), (3,), rng)


@pytest.mark.parametrize("layer", ["separable", "normalization"])
def test_composites(layer, rng):
    if layer == "separable":
        made = layers.SeparableConv2D(4, 3, activation="relu", name="s")
        flat = same(keras.Sequential([keras.Input((6, 6, 2)), made]), (6, 6, 2), rng)
        assert names(flat) == ["s_depthwise", "s_pointwise", "s_relu"]
    else:
        made = layers.Normalization(mean=[1.0, 2.0], variance=[1.0, 4.0], name="n")
        same(keras.Sequential([keras.Input((2,)), made]), (2,), rng)


def test_layers_that_do_nothing_are_gone(rng):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Identity(),
            layers.Dense(3, name="d"),
            layers.Activation("linear"),
        ]
    )
    assert names(same(model, (6,), rng)) == ["d"]


def test_trainable_flags_and_statistics_are_kept(rng):
    model = enliven(cnn(), rng)
    model.get_layer("conv").trainable = False
    flat = canonicalize(model)
    assert not flat.get_layer("conv").trainable
    assert flat.get_layer("bn").trainable
    for name in ("moving_mean", "moving_variance", "gamma"):
        old, new = (getattr(m.get_layer("bn"), name) for m in (model, flat))
        np.testing.assert_array_equal(host(old), host(new))


@pytest.mark.parametrize("kind", ["list", "one in a list", "dict", "nested"])
def test_structures_of_outputs_are_kept(kind, rng):
    inputs = keras.Input((6,))
    a, b = layers.Dense(2, name="a")(inputs), layers.Dense(3, name="b")(inputs)
    outputs = {
        "list": [a, b],
        "one in a list": [b],
        "dict": {"second": b, "first": a},
        "nested": {"x": [a, b], "y": (b,)},
    }[kind]
    model = enliven(keras.Model(inputs, outputs), rng)
    q = intact.quantize_model(model)
    x = rng.normal(size=(3, 6)).astype("float32")
    expected, found = model(x), q(x)
    keras.tree.assert_same_structure(expected, found)
    for old, new in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        np.testing.assert_allclose(host(new), host(old), atol=0.05)


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_structures_of_inputs_are_kept(kind, rng):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    inputs = [b, a] if kind == "list" else {"b": b, "a": a}
    model = keras.Model(inputs, layers.Subtract()([b, a]))
    q = intact.quantize_model(model)
    x = {name: rng.normal(size=(3, 3)).astype("float32") for name in "ab"}
    x = [x["b"], x["a"]] if kind == "list" else x
    np.testing.assert_allclose(host(q(x)), host(model(x)), atol=0.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_weights_are_named_with_layer_and_count(bad):
    model = cnn()
    values = host(model.get_layer("bn_2").moving_mean)
    values[1:3] = bad
    model.get_layer("bn_2").moving_mean.assign(values)
    message = r"'.*moving_mean' of BatchNormalization 'bn_2' has 2 of 8 values"
    with pytest.raises(InvalidModelError, match=message):
        intact.quantize_model(model)


@pytest.mark.parametrize(
    "model",
    [
        lambda: keras.Sequential([layers.Dense(2)], name="raw"),
        lambda: Net(),
        lambda: keras.Sequential([Net()], name="raw"),
    ],
    ids=["sequential", "subclassed", "nested"],
)
def test_models_that_are_not_built(model):
    with pytest.raises(InvalidModelError, match=r"not built.*keras\.Input"):
        intact.quantize_model(model())


@pytest.mark.parametrize("what", [None, "model.keras", 3, layers.Dense(2), cnn])
def test_what_is_no_model(what):
    with pytest.raises(InvalidModelError, match=r"Expected a keras\.Model\. Received: "):
        intact.quantize_model(what)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            lambda: layers.ConvLSTM1D(3, 2, data_format="channels_first", name="memory"),
            (5, 4, 2),
            "ConvLSTM1D 'memory'",
        ),
        (lambda: layers.Lambda(lambda x: ops.corrcoef(x), name="odd"), (4,), "odd"),
        (lambda: layers.Activation("sparsemax", name="odd"), (4,), "Activation 'odd'.*sparsemax"),
        (lambda: layers.Dense(2, activation="sparsemax", name="odd"), (4,), "odd_sparsemax"),
    ],
)
def test_unknown_layers_are_named(layer, shape, message):
    model = keras.Sequential([keras.Input(shape), layer()], name="net")
    with pytest.raises(UnsupportedLayerError, match=message) as error:
        intact.quantize_model(model)
    assert "register_op" in str(error.value)


def test_weights_of_unknown_layers_train():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), Loose(name="odd"), layers.Dense(2)])
    model.layers[0].gain.assign([1.0, -2.0, 0.5, 3.0])
    flat = canonicalize(model)
    np.testing.assert_allclose(flat.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4)
    paths = [variable.path for variable in intact.quantize_model(model).trainable_variables]
    assert any("odd" in path and path.endswith("gamma") for path in paths)


def test_a_weight_used_twice_stays_one():
    class Tied(layers.Layer):
        def build(self, shape):
            self.square = self.add_weight(name="square", shape=(4, 4))

        def call(self, x):
            return ops.matmul(ops.relu(ops.matmul(x, self.square)), self.square)

    model = keras.Sequential([keras.Input((4,)), Tied(name="tied")])
    q = intact.quantize_model(model)
    assert len(q.trainable_variables) == 1


class TwoInputs(keras.Model):
    """A subclassed model of several arguments, one of them indices."""

    def __init__(self):
        super().__init__(name="two")
        self.embedding = layers.Embedding(9, 4)
        self.dense = layers.Dense(4)

    def call(self, tokens, features):
        x = self.embedding(tokens)
        return {"sum": x + self.dense(features), "rows": x}


def test_subclassed_model_of_several_arguments():
    model = TwoInputs()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 9, (32, 3))
    features = rng.normal(size=(32, 3, 5)).astype("float32")
    expected = model(tokens, features)
    with pytest.raises(InvalidModelError, match="Wrap it"):
        intact.quantize_model(model)
    inputs = [keras.Input((3,), dtype="int32"), keras.Input((3, 5))]
    wrapped = keras.Model(inputs, model(*inputs))
    found = canonicalize(wrapped).predict([tokens, features], verbose=0)
    assert sorted(found) == ["rows", "sum"]
    np.testing.assert_allclose(found["sum"], host(expected["sum"]), rtol=1e-4, atol=1e-5)
    q = intact.calibrate(intact.quantize_model(wrapped), [tokens, features], verbose=0)
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, [tokens, features]).max_lsb == 0


def test_indices_of_a_subclassed_model_become_integers():
    class Words(keras.Model):
        def __init__(self):
            super().__init__(name="words")
            self.embedding = layers.Embedding(9, 4)

        def call(self, tokens):
            return self.embedding(tokens)

    model = Words()
    tokens = np.arange(9).reshape(3, 3)
    expected = host(model(tokens))
    flat = canonicalize(model)
    assert flat.inputs[0].dtype == "int32"
    np.testing.assert_array_equal(flat.predict(tokens, verbose=0), expected)


class Conv3x3(layers.Conv2D):
    """A supported layer with arguments of its own, and the `call` of its parent."""

    def __init__(self, filters, **kwargs):
        super().__init__(filters, 3, padding="same", **kwargs)
        self.label = "mine"

    def get_config(self):
        return {"filters": self.filters, "label": self.label}


def renamed(kind):
    return type(f"My{kind.__name__}", (kind,), {})


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: renamed(layers.Conv2D)(4, 3, activation="relu"), (6, 6, 2)),
        (lambda: renamed(layers.ZeroPadding2D)(1, data_format="channels_first"), (2, 6, 6)),
        (lambda: renamed(renamed(layers.DepthwiseConv2D))(3), (6, 6, 2)),
        (lambda: renamed(layers.Conv2DTranspose)(4, 3), (6, 6, 2)),
        (lambda: renamed(layers.SeparableConv2D)(4, 3), (6, 6, 2)),
        (lambda: renamed(layers.Conv1D)(4, 3, padding="causal", activation=lambda x: x), (6, 2)),
        (lambda: renamed(layers.MaxPooling3D)(2), (4, 4, 4, 2)),
        (lambda: renamed(layers.Dense)(4), (6,)),
        (lambda: renamed(layers.BatchNormalization)(), (6,)),
        (lambda: renamed(layers.Activation)("tanh"), (6,)),
        (lambda: renamed(layers.LSTM)(3), (4, 2)),
        (lambda: layers.RNN(renamed(layers.GRUCell)(3)), (4, 2)),
        (lambda: Conv3x3(4, name="mine"), (6, 6, 2)),
    ],
)
def test_a_subclass_that_changes_nothing_is_its_parent(make, shape, rng):
    layer = make()
    flat = same(keras.Sequential([keras.Input(shape), layer]), shape, rng)
    known = {type(part).__module__.split(".")[0] for part in flat.layers}
    assert known <= {"keras", "intact"}
    assert all(not name.startswith("call") for name in names(flat))


class Doubled(layers.Conv2D):
    """Its convolution is not its parent's, and is traced."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel) * 2.0


class Louder(layers.Dense):
    """It has a `call` of known parts, which is traced."""

    def call(self, x):
        return super().call(x) * 2.0


class Weighty(layers.Conv2D):
    """It has a weight that its parent has not."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = self.add_weight(name="gain", shape=(), initializer="ones")


class Bent(layers.Activation):
    """An activation that does something else than its function."""

    def call(self, x):
        return super().call(x) * 3.0


def test_a_subclass_that_computes_something_else_is_not_its_parent(rng):
    for layer in (Louder(3), Bent("tanh")):
        same(keras.Sequential([keras.Input((4,)), layer]), (4,), rng)
    same(keras.Sequential([keras.Input((4, 4, 2)), Doubled(3, 1)]), (4, 4, 2), rng)
    layer, message = Weighty(3, 1, name="weighty"), "Weighty 'weighty'.*that a Conv2D does not have"
    with pytest.raises(UnsupportedLayerError, match=message):
        canonicalize(keras.Sequential([keras.Input((4, 4, 2)), layer]))


def test_unknown_operation_is_named():
    inputs = keras.Input((4,))
    with pytest.raises(UnsupportedLayerError, match=r"Corrcoef"):
        intact.quantize_model(keras.Model(inputs, ops.corrcoef(inputs)))


def test_unknown_layer_inside_is_named_with_its_path():
    odd = layers.ConvLSTM1D(3, 2, data_format="channels_first", name="memory")
    inner = keras.Sequential([keras.Input((5, 4, 2)), odd], name="inner")
    model = keras.Sequential([keras.Input((5, 4, 2)), inner])
    with pytest.raises(UnsupportedLayerError, match="'inner/memory'"):
        intact.quantize_model(model)


def test_registered_layer_is_used(rng):
    from intact.ops import Op, registry

    @keras.saving.register_keras_serializable("tests")
    class Twice(layers.Layer):
        def call(self, x):
            return 2 * x

    class TwiceOp(Op):
        keras_layers = (Twice,)

        def trace(self, layer, args, kwargs, tracer):
            return tracer.emit(layers.Rescaling(2.0, name=layer.name), args[0])

    try:
        intact.register_op(TwiceOp)
        flat = same(keras.Sequential([keras.Input((4,)), Twice(name="twice")]), (4,), rng)
        assert names(flat) == ["twice"]
    finally:
        registry.REGISTRY.pop()
        del registry._by_layer[Twice]


def test_a_deep_model_is_no_trouble():
    inputs = x = keras.Input((2,))
    for _ in range(400):
        x = layers.ReLU()(x)
    assert len(canonicalize(keras.Model(inputs, x)).layers) == 401


# Constants and failures --------------------------------------------------------------------


class Token(layers.Layer):
    """Puts a weight before its input."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="random_normal")

    def call(self, x):
        return ops.concatenate([ops.convert_to_tensor(self.token), x], axis=1)


JOINS = {
    "concatenate": lambda x: ops.concatenate([x, np.full((1, 2, 8), 0.7, "float32")], axis=1),
    "stack": lambda x: ops.stack([x, np.full((1, 6, 8), 0.7, "float32")], axis=-1),
    "weight": lambda x: Token()(x),
}


@pytest.mark.parametrize("case", JOINS)
def test_a_constant_that_is_joined_to_a_tensor(case, rng):
    x = keras.Input(batch_shape=(1, 6, 8))
    model = keras.Model(x, layers.Dense(3)(JOINS[case](x)))
    data = rng.normal(size=(1, 6, 8)).astype("float32")
    assert intact.explain(model).integer
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, None, "int8", "int8", integer_only=True)
    assert not intact.compare(q, content, data).different
    np.testing.assert_allclose(q.predict(data, verbose=0), model.predict(data, verbose=0), atol=0.1)


def test_the_function_that_fails_is_named():
    class Odd(layers.Layer):
        def __init__(self):
            super().__init__(name="odd")
            self.activation = keras.activations.silu

        def call(self, x):
            raise TypeError("it is odd")

        def compute_output_shape(self, shape):
            return shape

    x = keras.Input((3,))
    with pytest.raises(UnsupportedLayerError, match="its `call` cannot be traced"):
        intact.quantize_model(keras.Model(x, Odd()(x)))


def test_an_op_replaces_another_only_if_told():
    class Mine(intact.Op):
        keras_layers = (layers.Dense,)

    with pytest.raises(intact.IntactError, match=r"'Dense' is that of Dense.*replace=True"):
        intact.register_op(Mine)
    with pytest.raises(intact.IntactError, match="'Relu' is that of"):
        intact.register_op(type("Other", (intact.Op,), {"operations": ("Relu",)}))
