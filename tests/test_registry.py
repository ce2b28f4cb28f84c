"""A user's own things stand beside intact's, and replace none by accident."""

from typing import ClassVar

import pytest

import intact
from intact.ops import REGISTRY
from intact.quantizers.base import get_quantizer
from intact.quantizers.observers import get_observer
from intact.rounding.kernel_rounding import KernelRounding
from intact.schemes import SCHEMES, get_scheme

KINDS = {
    "observer": (intact.Observer, "percentile"),
    "quantizer": (intact.Quantizer, "lsq"),
    "kernel rounding": (KernelRounding, "accumulator"),
}


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    base, name = KINDS[request.param]
    before = dict(base.registry)
    yield request.param, base, name
    base.registry.clear()
    base.registry.update(before)


def test_another_of_a_known_name_is_refused(kind):
    word, base, name = kind
    known = base.registry[name]
    class_name = getattr(known, "__name__", str(known))
    with pytest.raises(intact.IntactError, match=f"{word} '{name}'.*{class_name}.*replace=True"):
        type("Mine", (base,), {"name": name})
    assert base.registry[name] is known


def test_another_replaces_it_where_asked_to(kind):
    _, base, name = kind
    mine = type("Mine", (base,), {"name": name}, replace=True)
    assert mine in (base.registry.find(name), type(base.registry.find(name)))


def test_the_same_class_may_be_defined_again(kind):
    _, base, _ = kind
    type("Mine", (base,), {"name": "mine"})
    again = type("Mine", (base,), {"name": "mine"})
    assert again in (base.registry.find("mine"), type(base.registry.find("mine")))


@pytest.mark.parametrize(
    ("find", "word"),
    [(get_observer, "observer"), (get_quantizer, "quantizer"), (get_scheme, "scheme")],
)
def test_an_unknown_name_is_told_with_those_that_are_known(find, word):
    with pytest.raises(intact.IntactError, match=f"no {word} 'nothing'. Known: .*, .*Pass one"):
        find("nothing")


def test_a_scheme_of_a_known_name_is_refused():
    mine = intact.Scheme("int8", (intact.Rule(weights=None, activations=None),))
    with pytest.raises(intact.IntactError, match="scheme 'int8'"):
        SCHEMES.add("int8", mine)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("arithmetic", "table", "nothing would read it"),
        ("kernel_roundings", "table", r"Did you mean `kernel_rounding`\?"),
        ("folds_batchnorm", True, r"Did you mean `folds_batch_norm`\?"),
        ("accumulator_scales", lambda self, node: 1.0, r"Did you mean `accumulator_scale`\?"),
    ],
)
def test_a_name_that_no_op_has_is_refused(name, value, hint):
    registered = len(REGISTRY)
    with pytest.raises(
        intact.IntactError, match=rf"`Mine.{name}` is not a name of `intact.Op`.*{hint}"
    ):
        intact.register_op(type("Mine", (intact.Op,), {name: value}))
    assert len(REGISTRY) == registered


def test_an_op_may_have_data_and_methods_of_its_own():
    class Mine(intact.Op):
        slopes: ClassVar[dict[str, float]] = {"HardSigmoid": 1 / 6}
        _limit = 3.0

        @classmethod
        def trace(cls, layer, args, kwargs, tracer):
            return cls.line(layer, args[0], tracer)

        @staticmethod
        def line(layer, x, tracer):
            return tracer.emit(layer, x)

    try:
        assert intact.register_op(Mine) is Mine
    finally:
        REGISTRY.pop()
