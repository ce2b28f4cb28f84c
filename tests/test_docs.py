"""The pages are true: their blocks run and print what is shown, their links lead somewhere."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import intact

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def load(name):
    """A script of the documentation as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


docs = load("blocks")


@pytest.mark.parametrize("page", docs.pages(), ids=lambda p: str(p.relative_to(ROOT)))
@pytest.mark.usefixtures("short_timings")
def test_blocks_run_and_print_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in docs.run_page(page.read_text()):
        if run.output is not None:
            shown = run.output.text
            assert docs.shape(run.printed) == docs.shape(shown), (
                f"{run.block.text}\nRun `python docs/blocks.py {page.relative_to(ROOT)}`."
            )


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert [t for t in targets if "://" not in t and not (ROOT / t).exists()] == []


def test_the_site_has_every_page():
    # `mkdocs build --strict` says so, too; but not with `--quiet`, as it was called once.
    config = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"(?m)^ +- (?:.*: )?(\S+\.md)$", config))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in DOCS.glob("notebooks/*.py")}
    assert named == pages | notebooks
    assert "--quiet" not in re.search(r"mkdocs build.*", (ROOT / "Makefile").read_text())[0]


def test_the_reference_has_every_public_name():
    text = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    named = set(re.findall(r"(?m)^(?:::: intact\.|### [EA]\d+ )(\w+)", text)) | {"tfmot"}
    assert sorted(set(intact.__all__) - named) == []


def test_the_results_are_made_from_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import results
    from zoo import zoo_section

    fresh = results.page(zoo_section())
    assert results.RESULTS.read_text() == fresh, "run `python benchmarks/results.py`"
    assert results.PEERS.read_text() == results.peers_page(), "run `python benchmarks/results.py`"
