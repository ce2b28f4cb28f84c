"""A user's own things stand beside intact's, and replace none by accident."""

import pytest

import intact
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
    with pytest.raises(
        intact.IntactError, match=f"{word} '{name}'.*{known.__name__}.*replace=True"
    ):
        type("Mine", (base,), {"name": name})
    assert base.registry[name] is known


def test_another_replaces_it_where_asked_to(kind):
    _, base, name = kind
    mine = type("Mine", (base,), {"name": name}, replace=True)
    assert base.registry.find(name) is mine


def test_the_same_class_may_be_defined_again(kind):
    _, base, _ = kind
    type("Mine", (base,), {"name": "mine"})
    again = type("Mine", (base,), {"name": "mine"})
    assert base.registry.find("mine") is again


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
