"""The pages that are made from the code are current."""

import importlib.util
from pathlib import Path

import pytest

from intact.litert.kernels import KERNELS
from intact.ops import REGISTRY

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", ["supported.md", "verify_rules.md", "errors.md"])
def test_the_page_is_fresh(name):
    spec = importlib.util.spec_from_file_location("make_pages", DOCS / "make_pages.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    fresh = maker.PAGES[name]()
    assert (DOCS / name).read_text() == fresh, "run `python docs/make_pages.py`"


def test_every_kernel_has_its_targets():
    named = {kernel for op in REGISTRY for kernel in op.litert}
    assert sorted(name for name in named if KERNELS[name].runs_on is None) == []
