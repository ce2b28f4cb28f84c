"""A hook of MkDocs: runs the notebooks in `docs/notebooks`, and makes a page of each.

A notebook is a Python file in jupytext's percent format. An error in one ends the build.
"""

import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from traitlets.config import Config

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
NOTEBOOKS = Path(__file__).parent / "notebooks"
NOISE = re.compile(r"(?m)^INFO: Created TensorFlow Lite.*\n?")
"""What LiteRT prints whenever it loads a file."""


def run(path: Path) -> tuple[str, dict[str, bytes]]:
    """Run a notebook.

    Args:
        path: The Python file.

    Returns:
        The page, and its pictures by name.
    """
    notebook = jupytext.read(path)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    _leave_out_noise(notebook)
    config = Config({"ExtractOutputPreprocessor": {"enabled": True}})
    resources = {"unique_key": path.stem, "output_files_dir": path.stem}
    text, resources = MarkdownExporter(config=config).from_notebook_node(notebook, resources)
    source = f"\n\n`docs/notebooks/{path.name}` is the source of this page, in jupytext's format.\n"
    return text.rstrip() + source, resources["outputs"]


def _leave_out_noise(notebook: Any) -> None:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = NOISE.sub("", output.text)
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("text", "some").strip()]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and the pictures of all notebooks to the site."""
    paths = sorted(NOTEBOOKS.glob("*.py"))
    with ThreadPoolExecutor(2) as pool:
        for path, (text, pictures) in zip(paths, pool.map(run, paths), strict=True):
            files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
            for name, content in pictures.items():
                uri = f"notebooks/{Path(name).as_posix()}"
                files.append(File.generated(config, uri, content=content))
    return files
