"""A quantized model keeps what the float one was to its user: names of outputs, class, losses."""

import copy
import pickle
import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import cnn, mlp, ready

import intact


def heads(structure):
    """A model with three heads that have activations; a function arranges the outputs."""
    x = keras.Input((6,), name="x")
    h = layers.Dense(5, "relu", name="hidden")(x)
    cls, reg, mid = (
        layers.Dense(n, activation, name=name)(h)
        for n, activation, name in ((3, "softmax", "cls"), (1, None, "reg"), (2, "tanh", "Mid"))
    )
    return keras.Model(x, structure(x, h, cls, reg, mid), name="heads")


class Subclassed(keras.Model):
    """A model that has no graph."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(5, "relu")
        self.cls = layers.Dense(3, "softmax", name="cls")
        self.reg = layers.Dense(1, name="reg")

    def call(self, x):
        h = self.hidden(x)
        return {"scores": self.cls(h), "Box": self.reg(h)}


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 6), "float32"))
    return model


def tower(x, h):
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(2, "sigmoid", name="o")], name="t w")
    return inner(h)


STRUCTURES = {
    "list": (lambda x, h, a, b, c: [a, b, c], ["cls", "reg", "Mid"]),
    "tuple": (lambda x, h, a, b, c: (b, [c, a]), ["reg", "Mid", "cls"]),
    "dict": (lambda x, h, a, b, c: {"z": a, "B": b, "A": c}, ["A", "B", "z"]),
    "dict of lists": (lambda x, h, a, b, c: {"z": [a, b], "A": c}, ["Mid", "cls", "reg"]),
    "one tensor twice": (lambda x, h, a, b, c: [a, b, a], ["cls", "reg", "cls_1"]),
    "read further on": (lambda x, h, a, b, c: [h, a], ["hidden", "cls"]),
    "an input": (lambda x, h, a, b, c: [a, x], ["cls", "x"]),
    "moved": (lambda x, h, a, b, c: layers.Reshape((3, 1), name="high")(a), ["high"]),
    "nothing in between": (lambda x, h, a, b, c: layers.Dropout(0.5, name="drop")(a), ["drop"]),
    "nested model": (lambda x, h, a, b, c: [tower(x, h), a], ["t w", "cls"]),
}


@pytest.mark.parametrize("scheme", ["int8", "weight_only_8"])
@pytest.mark.parametrize("case", STRUCTURES)
def test_outputs_have_the_names_of_the_float_model(case, scheme):
    structure, names = STRUCTURES[case]
    model = heads(structure)
    q = ready(intact.quantize_model(model, scheme))
    assert q.output_names == model.output_names
    assert intact.load_litert(intact.export(q)).output_names == names
    assert intact.load_litert(intact.export(model)).output_names == names


@pytest.mark.parametrize(
    "build, keras_names, names",
    [(mlp, ["head"], ["head"]), (subclassed, ["reg", "cls"], ["Box", "scores"])],
)
def test_models_of_other_kinds_name_their_outputs(build, keras_names, names):
    q = ready(intact.quantize_model(build()))
    assert q.output_names == keras_names
    assert intact.load_litert(intact.export(q)).output_names == names


def test_the_order_of_outputs_is_that_of_the_float_model():
    model = heads(lambda x, h, a, b, c: [c, a, b])
    q = ready(intact.quantize_model(model))
    file = intact.load_litert(intact.export(q))
    assert [p.shape[-1] for p in q.predict(np.zeros((2, 6), "float32"), verbose=0)] == [2, 3, 1]
    assert [d["shape"][-1] for d in file.interpreter.get_output_details()] == [2, 3, 1]


def saved(q, path):
    q.save(path)
    return keras.saving.load_model(path)


COPIES = {
    "keras": lambda q, tmp: saved(q, tmp / "q.keras"),
    "h5": lambda q, tmp: saved(q, tmp / "q.h5"),
    "clone": lambda q, tmp: keras.models.clone_model(q),
    "json": lambda q, tmp: keras.models.model_from_json(q.to_json()),
    "pickle": lambda q, tmp: pickle.loads(pickle.dumps(q)),
    "deepcopy": lambda q, tmp: copy.deepcopy(q),
    "freeze": lambda q, tmp: intact.freeze(q),
}


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
@pytest.mark.parametrize("how", COPIES)
def test_copies_keep_the_names(how, tmp_path):
    q = ready(intact.quantize_model(heads(lambda x, h, a, b, c: [a, b, c])))
    assert COPIES[how](q, tmp_path).output_names == ["cls", "reg", "Mid"]


TARGETS = {"cls": np.zeros(16), "reg": np.zeros((16, 1)), "Mid": np.zeros((16, 2))}
LOSSES = {"cls": "sparse_categorical_crossentropy", "reg": "mse", "Mid": "mae"}


def test_losses_metrics_and_weights_by_name(tmp_path):
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    q = intact.quantize_model(heads(lambda x, h, a, b, c: [a, b, c]))
    weights = {"cls": 1.0, "reg": 0.5, "Mid": 2.0}
    q.compile("sgd", LOSSES, loss_weights=weights, metrics={"cls": ["accuracy"], "Mid": "mse"})
    history = q.fit(x, TARGETS, verbose=0).history
    assert {"cls_accuracy", "Mid_mse", "reg_loss"} <= set(history)
    again = saved(q, tmp_path / "q.keras")
    assert set(again.fit(x, TARGETS, verbose=0).history) == set(history)


def test_an_input_that_nothing_reads_is_stored_in_integers():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    q = ready(intact.quantize_model(keras.Model([a, b], layers.Dense(2)(a))))
    file = intact.load_litert(intact.export(q, None, "int8", "int8", integer_only=True))
    assert {d["dtype"] for d in file.interpreter.get_tensor_details()} <= {np.int8, np.int32}
    assert file.input_names == ["a", "b"]


# Classes of the user's --------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class OwnStep(keras.Model):
    """A graph that is trained in another way."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 3.0 * super().compute_loss(x, y, y_pred, sample_weight, training)

    def train_step(self, *args, **kwargs):
        self.steps = getattr(self, "steps", 0) + 1
        return super().train_step(*args, **kwargs)


@keras.saving.register_keras_serializable("tests")
class WithSettings(OwnStep):
    """One whose constructor takes more than the graph."""

    def __init__(self, inputs, outputs, factor, name=None):
        super().__init__(inputs, outputs, name=name)
        self.factor = factor


class OwnSequence(keras.Sequential):
    """The same as a stack of layers."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 3.0 * super().compute_loss(x, y, y_pred, sample_weight, training)


class OwnGraph(OwnStep):
    """One that makes its graph by itself."""

    def __init__(self, units):
        x = keras.Input((6,))
        super().__init__(x, layers.Dense(units)(x))


class OwnCall(OwnStep):
    """One that does more than its graph."""

    def call(self, *args, **kwargs):
        return 2.0 * super().call(*args, **kwargs)


def graph():
    x = keras.Input((6,), name="x")
    return x, layers.Dense(2, "tanh", name="out")(layers.Dense(4, "relu")(x))


X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
Y = np.zeros((16, 2), "float32")


def warned(function, match):
    """What a function returns, which warns that something is not kept."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = function()
    (only,) = (w.message for w in told if w.category is intact.NotKeptWarning)
    assert re.search(match, str(only))
    return result


def loss_of(model):
    model.compile("sgd", "mse")
    return model.evaluate(X, Y, verbose=0)


@pytest.mark.parametrize("copied", [lambda q, tmp: q, *COPIES.values()], ids=["q", *COPIES])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_the_class_of_a_graph_is_kept(copied, tmp_path):
    model = WithSettings(*graph(), factor=7, name="own")
    q = copied(ready(intact.quantize_model(model)), tmp_path)
    assert isinstance(q, WithSettings) and q.factor == 7
    assert (q.name, q.output_names) == ("own", ["out"])


def test_a_graph_is_trained_by_its_own_class():
    for model in (OwnStep(*graph()), OwnSequence([keras.Input((6,)), layers.Dense(2)])):
        q = ready(intact.quantize_model(model))
        plain = keras.Model(q.inputs, q.outputs)
        assert loss_of(q) == pytest.approx(3 * loss_of(plain))
    q = intact.quantize_model(OwnStep(*graph()))
    q.compile("sgd", "mse")
    q.fit(X, Y, batch_size=8, verbose=0)
    assert q.steps >= 1


@pytest.mark.parametrize("build", [lambda: OwnGraph(2), lambda: OwnCall(*graph())])
def test_a_class_that_cannot_be_kept_is_told(build):
    q = warned(lambda: intact.quantize_model(build()), "compute_loss, train_step")
    assert not isinstance(q, OwnStep)


def test_a_call_of_its_own_counts_beside_the_graph():
    model = OwnCall(*graph())
    q = warned(lambda: intact.quantize_model(model), "compute_loss")
    q = intact.calibrate(q, X, verbose=0)
    np.testing.assert_allclose(q.predict(X, verbose=0), model.predict(X, verbose=0), atol=0.1)


def test_a_class_unknown_where_the_model_is_loaded(tmp_path):
    q = ready(intact.quantize_model(OwnSequence([keras.Input((6,)), layers.Dense(2)])))
    q.save(tmp_path / "q.keras")
    again = warned(lambda: keras.saving.load_model(tmp_path / "q.keras"), "OwnSequence")
    np.testing.assert_array_equal(again.predict(X, verbose=0), q.predict(X, verbose=0))
    known = {"OwnSequence": OwnSequence}
    assert isinstance(
        keras.saving.load_model(tmp_path / "q.keras", custom_objects=known), OwnSequence
    )


# Keras' own verbs -------------------------------------------------------------------------


def test_keras_quantizes_no_quantized_model():
    with pytest.raises(intact.IntactError, match=r"intact\.quantize_model"):
        intact.quantize_model(mlp()).quantize("int8")


def test_keras_exports_no_litert_file_of_a_quantized_model(tmp_path):
    with pytest.raises(intact.ExportError, match=r"intact\.export"):
        intact.quantize_model(mlp()).export(tmp_path / "m.tflite", format="litert")


# Parts ------------------------------------------------------------------------------------


def network():
    """A network whose layers fuse, fold, share a range, expand, and give indices."""
    x = keras.Input((8, 8, 3), name="x")
    h = layers.Conv2D(4, 3, name="conv")(x)
    h = layers.ReLU(name="act")(layers.BatchNormalization(name="bn")(h))
    side = layers.Conv2D(4, 1, activation="relu6", name="side")(h)
    h = layers.Concatenate(name="cat")([h, side])
    h = layers.Conv2D(4, 1, activation="swish", name="last")(h)
    y = layers.Dense(3, "softmax", name="out")(layers.Flatten(name="flat")(h))
    return keras.Model(x, [y, ops.argmax(y, -1)])


IMAGES = np.random.default_rng(1).normal(size=(24, 8, 8, 3)).astype("float32")


@pytest.mark.filterwarnings("ignore::intact.FusedLayerWarning")
@pytest.mark.parametrize("scheme", ["int8", "weight_only_8"])
def test_a_part_of_a_quantized_model_is_one(scheme, tmp_path):
    q = intact.calibrate(intact.quantize_model(network(), scheme), IMAGES, verbose=0)
    for layer in q.layers[1:]:
        part = keras.Model(q.input, layer.output)
        content = intact.export(part, integer_only=scheme == "int8")
        expected = part.predict(IMAGES, verbose=0)
        seen = intact.load_litert(content).predict(IMAGES)
        np.testing.assert_allclose(expected, seen, atol=1e-6 if scheme == "int8" else 1e-5)
    assert intact.export(saved(part, tmp_path / "part.keras")) == content
    assert not intact.compare(part, content, IMAGES).different or scheme != "int8"


def test_the_output_of_a_layer_that_is_folded_is_told():
    q = ready(intact.quantize_model(network()))
    for name, other in (("conv", "bn"), ("bn", None), ("side", None), ("cat", None)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert q.get_layer(name).output.shape[-1] in (4, 8)
        told = [str(w.message) for w in told if w.category is intact.FusedLayerWarning]
        assert len(told) == (other is not None) and all(f"{other!r}" in text for text in told)


def test_making_a_part_changes_nothing_in_the_model():
    q = intact.calibrate(intact.quantize_model(network()), IMAGES, verbose=0)
    before, count = intact.export(q), len(q.layers)
    tensor = q.get_layer("cat").output
    assert q.get_layer("cat").output is tensor
    keras.Model(q.input, tensor).predict(IMAGES, verbose=0)
    assert intact.export(q) == before and len(q.layers) == count
    assert q.get_layer("out_softmax").output is q.outputs[0]


def test_a_part_with_a_float_head_is_exported():
    q = intact.calibrate(intact.quantize_model(network()), IMAGES, verbose=0)
    flat = q.get_layer("flat").output
    model = keras.Model(q.input, layers.Dense(5, activation="softmax", name="out")(flat))
    seen = intact.load_litert(intact.export(model)).predict(IMAGES)
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), seen, atol=1e-6)


# Inside other models ----------------------------------------------------------------------


class Holder(keras.Model):
    """A subclassed model around another."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def call(self, x):
        return self.net(x)


def around(q):
    x = keras.Input((6,), name="x")
    return keras.Model(x, q(x))


def twice(q):
    x = keras.Input((6,), name="x")
    return keras.Model(x, q(x) + q(layers.Rescaling(2.0)(x)))


def two(q):
    other = ready(intact.quantize_model(mlp("other")), -2.0, 2.0)
    x = keras.Input((6,), name="x")
    return keras.Model(x, [q(x), other(x)])


def holder(q):
    model = Holder(q)
    model(np.zeros((1, 6), "float32"))
    return model


AROUND = {
    "functional": around,
    "called twice": twice,
    "two of the same names": two,
    "subclassed": holder,
    "sequential": lambda q: keras.Sequential([keras.Input((6,)), q, layers.Softmax()]),
    "nested twice": lambda q: around(around(q)),
}


@pytest.mark.parametrize("kind", AROUND)
def test_a_model_around_a_quantized_one_is_exported(kind):
    q = intact.calibrate(intact.quantize_model(mlp()), X, verbose=0)
    before = intact.export(q)
    model = AROUND[kind](q)
    seen = intact.load_litert(intact.export(model)).predict(X)
    seen = list(seen.values()) if isinstance(seen, dict) else [seen]
    for ours, theirs in zip(keras.tree.flatten(model.predict(X, verbose=0)), seen, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert intact.export(q) == before


def test_a_model_around_a_quantized_one_is_its_integers():
    q = intact.calibrate(intact.quantize_model(mlp()), X, verbose=0)
    content = intact.export(around(q), None, "int8", "int8", integer_only=True)
    assert not intact.compare(around(q), content, X).different


@pytest.mark.parametrize("verb", [intact.quantize_model, intact.explain])
def test_a_model_around_a_quantized_one_is_no_float_model(verb):
    with pytest.raises(intact.IntactError, match="calls the quantized model 'mlp'"):
        verb(around(ready(intact.quantize_model(mlp()))))


def test_a_verb_that_wants_the_quantized_model_itself_says_so():
    model = around(ready(intact.quantize_model(mlp())))
    for verb in (lambda: intact.calibrate(model, X), lambda: intact.freeze(model)):
        with pytest.raises(intact.IntactError, match="Pass 'mlp' itself"):
            verb()


# Quantized by Keras -----------------------------------------------------------------------

no_quantize = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")


@no_quantize
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_model_that_keras_quantized_is_refused(mode):
    model = mlp()
    model.quantize(mode)
    for verb in (intact.export, intact.quantize_model, intact.explain):
        with pytest.raises(intact.InvalidModelError, match=f"'hidden' was quantized by .*'{mode}'"):
            verb(model)


@no_quantize
def test_keras_quantizes_no_quantized_model_inside_another():
    with pytest.raises(intact.IntactError, match="quantized by intact already"):
        around(intact.quantize_model(mlp())).quantize("int8")


@pytest.mark.parametrize(
    ("scheme", "label"),
    [
        ("int8", "Conv2D, int8"),
        ("int16x8", "Conv2D, int16"),
        ("int4", "Conv2D, int8, weights w4"),
        ("float16", "Conv2D, weights float16"),
        ("dynamic_range", "Conv2D, weights int8, dynamic"),
    ],
)
def test_a_summary_names_the_ops(scheme, label, tmp_path):
    model = cnn()
    q = intact.quantize_model(model, scheme)
    lines: list[str] = []
    q.summary(line_length=160, print_fn=lines.append)
    text = "\n".join(lines)
    assert f"conv ({label})" in text and "Quantized" not in text and "[(" not in text
    assert f"{q.count_params():,}" in text
    shown = q.outline()
    assert type(shown.get_layer("conv")).__name__ == label
    assert shown.get_layer("conv").output.shape == model.get_layer("conv").output.shape
    # The model itself stays what it was.
    q.save(tmp_path / "q.keras")
    assert keras.saving.load_model(tmp_path / "q.keras").count_params() == q.count_params()


@pytest.mark.parametrize(
    ("scheme", "kind"), [("int8", "QuantizedConv2D"), ("float16", "QuantizedWeightsConv2D")]
)
def test_a_class_names_the_op(scheme, kind, tmp_path):
    # `keras.utils.plot_model` and Keras' errors show the name of the class, and nothing else.
    q = ready(intact.quantize_model(cnn(), scheme))
    assert repr(q.get_layer("conv")) == f"<{kind} name=conv, built=True>"
    q.save(tmp_path / "q.keras")
    q.save_weights(tmp_path / "q.weights.h5")
    other = keras.models.clone_model(q)
    other.load_weights(tmp_path / "q.weights.h5")
    layer = pickle.loads(pickle.dumps(q.get_layer("conv")))
    models = [keras.saving.load_model(tmp_path / "q.keras"), pickle.loads(pickle.dumps(q)), other]
    copies = [copy.deepcopy(layer), *(model.get_layer("conv") for model in models)]
    assert {type(copied) for copied in copies} == {type(q.get_layer("conv"))}
    for one in models:
        assert all(map(np.array_equal, one.get_weights(), q.get_weights()))


def test_weights_move_to_another_scheme(tmp_path):
    q, other = ready(intact.quantize_model(cnn())), intact.quantize_model(cnn(), "int16x8")
    q.save_weights(tmp_path / "q.weights.h5")
    other.load_weights(tmp_path / "q.weights.h5")
    assert np.array_equal(other.get_layer("conv").layer.kernel, q.get_layer("conv").layer.kernel)


def test_files_name_the_registered_class():
    # Another process loads them before it has made any class that is called after an op.
    config = intact.freeze(ready(intact.quantize_model(cnn()))).get_config()
    names = {layer["name"]: layer["registered_name"] for layer in config["layers"]}
    assert names["conv"] == "intact>Frozen" and names["pool"] == "intact>Quantized"
    assert keras.saving.get_registered_object("intact>Quantized").__name__ == "Quantized"
