"""Runs the blocks of a page, and writes what they print below them.

    python docs/blocks.py docs/accuracy.md README.md      all pages, if none is named

A page's blocks run in order, in one namespace and in a folder of their own: `python` blocks, and
in `sh` blocks the lines that call `intact`. A `text` block directly behind one is its output.
`tests/test_docs.py` runs all pages, and compares the output but for its numbers.
"""

import contextlib
import functools
import io
import os
import re
import runpy
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"(?ms)^( *)```(\w+)[^\n]*\n(.*?)^\1```$")
SNIPPET = re.compile(r'(?m)^--8<-- "([^"]+)"$')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        language: The word behind the fence.
        text: Its lines, without indent.
        indent: Spaces before each line.
        span: Where it begins and ends in the page.
    """

    language: str
    text: str
    indent: str
    span: tuple[int, int]


@dataclass(frozen=True)
class Run:
    """A block that ran.

    Args:
        block: The block.
        printed: What it printed.
        output: The block of its output, if the page has one.
    """

    block: Block
    printed: str
    output: Block | None


def pages() -> list[Path]:
    """The pages with blocks to run: README, and those of the site."""
    return [
        page
        for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
        if any(block.language in RUNNERS for block in blocks(page.read_text()))
    ]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(m[2], textwrap.dedent(m[3]), m[1], m.span()) for m in FENCE.finditer(page)]


def run_page(page: str) -> Iterator[Run]:
    """Run a page's blocks in the current folder.

    Args:
        page: Its text.

    Yields:
        Each block that ran, and what it printed.
    """
    namespace: dict = {"__name__": "__main__"}
    found = blocks(page)
    for block, behind in zip(found, [*found[1:], None], strict=False):
        if block.language not in RUNNERS:
            continue
        between = page[block.span[1] : behind.span[0]] if behind else ""
        is_output = behind is not None and behind.language == "text" and not between.strip()
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            RUNNERS[block.language](block, namespace)
        yield Run(block, _plain(stream.getvalue()), behind if is_output else None)


def _run_python(block: Block, namespace: dict) -> None:
    source = block.text
    for name in SNIPPET.findall(source):
        names, weights = _snippet(name)
        namespace.update(names)
        if weights is not None:  # another page may have changed the model
            names["model"].set_weights(weights)
    source = SNIPPET.sub("", source)
    exec(compile(source, f"<block: {block.text[:40]!r}>", "exec"), namespace)


@functools.cache
def _snippet(name: str) -> tuple[dict, list | None]:
    """The names that a file defines, and its model's weights; it runs once for all pages."""
    path = next(p for p in (ROOT / "docs" / name, ROOT / name) if p.is_file())
    names = runpy.run_path(str(path))
    return names, names["model"].get_weights() if "model" in names else None


def _run_shell(block: Block, namespace: dict) -> None:
    from click.testing import CliRunner

    from intact.cli.group import main

    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["intact"]:
            result = CliRunner().invoke(main, words[1:], prog_name="intact")
            if result.exception and not isinstance(result.exception, SystemExit):
                raise result.exception
            if result.exit_code and "# exit code" not in line:
                raise RuntimeError(f"{line}\n{result.output}")
            print(result.stdout, end="")


RUNNERS = {"python": _run_python, "sh": _run_shell}
"""What runs blocks of each language."""


def _plain(printed: str) -> str:
    """What stays on the screen: without progress bars."""
    lines = [line.rstrip() for line in printed.splitlines()]
    return "\n".join(line for line in lines if not re.search(r"[\r\b\x1b]", line)).strip("\n")


def shape(printed: str) -> list[str]:
    """What was printed, without its numbers, rules and spaces."""
    lines = (re.sub(r"[-+]?\d[\d.,e+-]*", "#", line) for line in printed.splitlines())
    return [" ".join(re.sub(r"[-─]{2,}", "-", line).split()) for line in lines if line.strip()]


def write_outputs(path: Path) -> None:
    """Run a page, and replace the outputs that it shows.

    Args:
        path: The page.
    """
    page = path.read_text()
    parts, end = [], 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for run in run_page(page):
            if run.output is not None:
                indent = run.output.indent
                text = textwrap.indent(f"```text\n{run.printed}\n```", indent)
                parts += [page[end : run.output.span[0]], text]
                end = run.output.span[1]
    path.write_text("".join([*parts, page[end:]]))


if __name__ == "__main__":
    for path in [Path(name).resolve() for name in sys.argv[1:]] or pages():
        print(path.name, flush=True)
        write_outputs(path)
