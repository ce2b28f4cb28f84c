"""What makes conversions fast changes no result, and leaves nothing behind."""

import functools
import gc
import inspect
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict, deque, namedtuple

import keras
import numpy as np
import pytest
from keras.src.layers import layer as keras_layer
from keras.src.ops import operation as keras_operation
from keras.src.tree import tree_api

import intact
from intact import memory
from intact.conversion import RARE, conversion, quick_keras, remembered
from intact.graph.view import made_by, mask_of, repeat_call, view
from intact.numerics.affine import QTensor

Pair = namedtuple("Pair", ["b", "a"])
NESTED = {
    "leaf": 1,
    "none": None,
    "text": "ab",
    "empty": [],
    "empty dict": {},
    "array": np.zeros(2),
    "shape": (None, 3),
    "list": [1, [2, (3, None)], "x"],
    "dict": {"b": 1, "a": [2, {"d": 3, "c": None}]},
    "ordered": OrderedDict(b=1, a={"d": 3, "c": 2}),
    "default": [defaultdict(list, b=1, a={"d": 3, "c": 2})],
    "inside a dict": {"b": OrderedDict(d=1, c=[2]), "a": [defaultdict(list, d={"f": 3, "e": 4})]},
    "deque": (deque([1, {"b": 2, "a": 3}]), 4),
    "named": [Pair(1, {"b": 2, "a": 3}), Pair([], ())],
    "tensor": (QTensor(1, 2, 3, 4), {"x": [5]}),
    "set": [{1, 2}],
    "symbol": [keras.KerasTensor((2, 3)), {"x": keras.KerasTensor((4,))}],
}


def same(a, b):
    """Whether two nested values have the same classes and parts."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or (not isinstance(a, keras.KerasTensor) and a == b)


@pytest.mark.parametrize("name", NESTED)
def test_quick_trees_are_those_of_keras(name):
    value, seen = NESTED[name], ([], [])
    copied = keras.tree.map_structure(lambda x: x, value)

    def results(seen):
        def mark(x):
            seen.append(x)
            return (x,)

        return (
            keras.tree.is_nested(value),
            keras.tree.flatten(value),
            keras.tree.map_structure(lambda x: x, value),
            keras.tree.map_structure(mark, value),
            keras.tree.map_structure(lambda x: x, value, none_is_leaf=False),
            keras.tree.map_structure(lambda x, y: (x, y), value, value),
            keras.tree.map_structure(lambda x, y, z: z, value, copied, value),
            keras.tree.pack_sequence_as(value, list(range(len(keras.tree.flatten(value))))),
            keras.tree.flatten_with_path(value),
        )

    own = results(seen[0])
    with quick_keras():
        quick = results(seen[1])
    assert same(quick, own)
    assert same(*seen)


@pytest.mark.parametrize(
    "others",
    [
        [1, 2],
        [1, (2, 3), 4],
        [1, [2, 3, 4], {"a": 1}],
        [1, (2, 3), {"b": 1}],
        [1, (2, 3), OrderedDict(a=1)],
        [[1], (2, {"c": 3}), {"a": [1]}],
    ],
    ids=str,
)
def test_quick_trees_refuse_what_keras_refuses(others):
    def result():
        seen = []
        try:
            value = keras.tree.map_structure(
                lambda x, y: seen.append((x, y)), [1, (2, 3), {"a": 4}], others
            )
        except Exception as error:
            value = type(error)
        return value, seen

    own = result()
    with quick_keras():
        assert result() == own


def test_attributes_of_layers_are_set_as_ever():
    class Holder(keras.Layer):
        def __init__(self):
            super().__init__()
            self.number, self.text, self.nothing = 1, "a", None
            self.numbers, self.table = [1, 2], {"a": (1, 2)}
            self.function = same
            self.weight = self.add_weight(shape=(2,), initializer="ones")
            self.part = keras.layers.Dense(2)
            self.parts = [keras.layers.Dense(3, name="listed")]
            self.weight_or_not = self.weight
            self.weight_or_not = None
            self.part_or_not = keras.layers.Dense(4)
            self.part_or_not = None
            self.trainable = False

    def facts(layer):
        parts = len(list(layer._flatten_layers(include_self=False)))
        kinds = {name: type(value) for name, value in vars(layer).items()}
        return parts, len(layer.weights), len(layer.trainable_weights), kinds, list(kinds)

    outside = Holder()
    with quick_keras():
        inside = Holder()
    assert facts(inside) == facts(outside)
    assert inside.part_or_not is inside.weight_or_not is None


def test_quick_trees_know_classes_that_are_registered_meanwhile():
    @tree_api.register_tree_node_class
    class Box(list):
        def torchtree_flatten(self):
            return list(self), None

        torchtree_flatten_with_keys = torchtree_flatten

        def tree_flatten(self):
            return list(self), None

        @classmethod
        def torchtree_unflatten(cls, children, _):
            return cls(children)

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(children)

    class Other(list):
        """A list that nobody registered is a leaf."""

    value = {"b": Box([1, (2, 3)]), "a": Other([4])}
    with quick_keras():
        assert keras.tree.flatten(value) == [[4], 1, 2, 3]
        assert type(keras.tree.map_structure(lambda x: x, value)["b"]) is Box


def test_results_are_remembered_within_a_conversion():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    calls = []

    def make(model):
        calls.append(model)
        return [model]

    with conversion(model):
        first = remembered(make, model)
        with conversion(model):
            assert remembered(make, model) is first
        assert remembered(make, model) is first
        assert len(calls) == 1
    assert remembered(make, model) is not remembered(make, model)
    with conversion(model):
        assert remembered(make, model) is not first


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_behind(fails):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    before = gc.get_threshold(), getattr(tree_api, "tree_impl", None)
    try:
        with conversion(model), conversion(model):
            assert gc.get_threshold() == (*before[0][:2], RARE)
            assert gc.isenabled()
            thread = threading.Thread(target=lambda: intact.quantize_model(model))
            thread.start()
            thread.join()
            assert gc.get_threshold()[2] == RARE
            assert not fails
    except AssertionError:
        assert fails
    assert (gc.get_threshold(), getattr(tree_api, "tree_impl", None)) == before


def test_garbage_of_large_models_is_collected_as_ever(monkeypatch):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    monkeypatch.setattr(memory, "LARGE", 0)
    before = gc.get_threshold()
    with conversion(model):
        assert gc.get_threshold() == before


class Scale(keras.layers.Layer):
    def __init__(self, factor, *, offset=0.0, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.offset = factor, offset

    def call(self, x, training=False):
        return x * self.factor + self.offset


def test_remembered_signatures_are_those_of_python():
    layers = [Scale(2.0), Scale(3.0, offset=1.0), keras.layers.Dense(2)]
    partial = functools.partial(Scale, 2.0)
    with quick_keras():
        for function in (Scale.__init__, Scale, partial, *(layer.call for layer in layers)):
            for _ in range(2):
                own = inspect.signature(function)
                assert keras_layer.inspect.signature(function) == own
                argspec = keras_operation.inspect.getfullargspec(function)
                assert argspec == inspect.getfullargspec(function)
        assert keras_layer.inspect.Parameter is inspect.Parameter
        inside = Scale(4.0, offset=2.0)
    outside = Scale(4.0, offset=2.0)
    assert {**inside.get_config(), "name": ""} == {**outside.get_config(), "name": ""}
    assert keras_layer.inspect is keras_operation.inspect is inspect


def test_calls_on_like_tensors_are_recorded():
    class Counted(Scale):
        calls = 0

        def call(self, x):
            Counted.calls += 1
            return x * self.factor

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Counted(2.0)(inputs))
    graph, calls = view(model), Counted.calls
    (node,) = (node for node in graph.nodes if not node.is_input)
    (output,) = repeat_call(node, {id(inputs): keras.Input((4,), name="other")})
    assert Counted.calls == calls
    assert made_by(output).layer is node.layer
    assert (output.shape, output.dtype) == (node.outputs[0].shape, node.outputs[0].dtype)
    # Tensors of another shape, and masks, make other outputs.
    (longer,) = repeat_call(node, {id(inputs): keras.Input((5,))})
    assert Counted.calls > calls
    assert longer.shape == (None, 5)
    calls = Counted.calls
    masked = keras.layers.Masking()(keras.Input((4,)))
    node.layer.supports_masking = True
    (kept,) = repeat_call(node, {id(inputs): masked})
    assert Counted.calls > calls
    assert mask_of(kept) is not None


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="It is imported there.")
def test_tensorflow_is_not_imported():
    code = """
import sys
import keras, intact
model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, activation="relu")])
q = intact.quantize_model(model)
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
