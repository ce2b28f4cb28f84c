"""Real text that lies on every machine that runs the benchmarks: docstrings, by library."""

import ast
import importlib.util
import re
from collections import Counter
from pathlib import Path

import numpy as np

LIBRARIES = ("jax", "keras", "numpy", "scipy", "sklearn", "tensorflow", "torch")
UNKNOWN = 1
"""The token of a word that is not in the vocabulary; 0 is padding."""


def docstrings(library: str) -> list[tuple[str, str]]:
    """The docstrings of a library's classes and functions, each with the file that it is from.

    Args:
        library: An installed package.
    """
    spec = importlib.util.find_spec(library)
    assert spec is not None and spec.origin is not None
    found = []
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text())
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.append((str(path), ast.get_docstring(node) or ""))
    return found


def words(text: str) -> list[str]:
    """Words and signs, without what names a library."""
    parts = re.findall(r"[a-z]+|[^\sa-z]", text.lower())
    return [part for part in parts if part not in (*LIBRARIES, "np", "tf", "jnp", "sp", "scikit")]


def by_library(
    vocabulary: int, length: int, most: int = 1500
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which library a docstring is from; files are either for training or for testing.

    Args:
        vocabulary: How many tokens there are.
        length: Tokens of a text, with 0 behind its end.
        most: Texts of each library.

    Returns:
        `(tokens, labels, tokens_test, labels_test)`, a fifth of the files for testing.
    """
    rng = np.random.default_rng(0)
    parts: list[list[tuple[list[str], int]]] = [[], []]
    for label, library in enumerate(LIBRARIES):
        texts = [(file, words(text)) for file, text in docstrings(library)]
        # Short ones say nothing, and some stand in many places.
        unique = {tuple(text): file for file, text in texts if len(text) >= 12}
        chosen = [[*unique][i] for i in rng.permutation(len(unique))[:most]]
        files = sorted({unique[text] for text in chosen})
        tests = {file for file in files if rng.random() < 0.2}
        for text in chosen:
            parts[unique[text] in tests].append((list(text), label))
    counts = Counter(word for text, _ in parts[0] for word in text[:length])
    index = {
        word: UNKNOWN + 1 + i for i, (word, _) in enumerate(counts.most_common(vocabulary - 2))
    }
    arrays: list[np.ndarray] = []
    for part in parts:
        tokens = np.zeros((len(part), length), "int32")
        for row, (text, _) in zip(tokens, part, strict=True):
            row[: len(text)] = [index.get(word, UNKNOWN) for word in text[:length]]
        order = rng.permutation(len(part))
        arrays += [tokens[order], np.array([label for _, label in part], "int32")[order]]
    return arrays[0], arrays[1], arrays[2], arrays[3]
