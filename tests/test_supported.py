"""The page of what is supported is that of the registry."""

import importlib.util
from pathlib import Path

from intact.litert.targets import RUNS_ON
from intact.ops import REGISTRY

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_is_fresh():
    spec = importlib.util.spec_from_file_location("make_supported", DOCS / "make_supported.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    fresh = maker.page()
    assert (DOCS / "supported.md").read_text() == fresh, "run `python docs/make_supported.py`"


def test_every_kernel_has_its_targets():
    named = {kernel for op in REGISTRY if not op.float_cases for kernel in op.litert}
    assert sorted(named - set(RUNS_ON)) == []
