"""Writes the pages that are made from the code: what is supported, rules of `verify`, errors.

python docs/make_pages.py
"""

import importlib
import inspect
import re
from pathlib import Path

import keras

from intact import errors
from intact.litert.kernels.targets import TARGETS, runs
from intact.litert.rules import FAMILIES, RULES, Rule
from intact.ops import REGISTRY, Op
from intact.ops.refusals import REFUSED

DOCS = Path(__file__).parent
HEAD = """# What is supported

Made from the registry by `python docs/make_pages.py`; a test fails when it is stale.

Functional, Sequential, nested and subclassed models; subclasses of supported layers that leave
their methods alone, but for `__init__` and config; custom layers made of Keras layers,
`keras.ops`, Python operators and many functions of the backend itself (`tf.reduce_mean`,
`torch.cat`), without registration; shared layers; several inputs and outputs, also as dicts;
channels last or first. `print(intact.explain(model))` shows what each layer of your model becomes.
Other layers are refused by name before training. One class [adds a layer](guides/own_layer.md) of
your own.

LiteRT on a CPU runs all kernels. "Also on" says which other targets run their int8 forms: XNNPACK
(the fast kernels of LiteRT), TFLite Micro, the NPUs Ethos-U55, U65 and U85 by the Vela compiler
(all measured), and the Edge TPU by its documentation. Where the shape or an argument decides
between kernels, the table lists them all. `intact.check(model, target=...)` runs the target's own
tool on your model.

In the scheme `int16x8`, most layers use the int16 forms of the same kernels. The column "16 bits"
lists the exceptions. A table costs a CAST, an ADD and a GATHER, and the file stores equal tables
once. A table covers the inputs at which the function still changes, so those of `sqrt` and `rsqrt`
are half as long.

"""


RULES_HEAD = """# The rules of `verify`

Made from the rules by `python docs/make_pages.py`; a test fails when it is stale.

`intact.verify(file)` and `intact verify FILE` check a LiteRT file of any origin against these
rules. LiteRT itself checks few of them. What each kernel requires is one row of the kernel table,
`intact/litert/kernels`; each rule is one function in `intact/litert/rules`.

An *error* means that outputs are wrong or that the file is refused. A *warning* means that this
holds for some runtimes, or that precision is lost.
"""


def family(op: Op) -> str:
    """The title of the file that an op stands in."""
    return (importlib.import_module(op.__module__).__doc__ or "").split("\n")[0].rstrip(".")


def stands_for(op: Op) -> str:
    """The user's layers, functions and operations that an op stands for."""
    own = [layer.__name__ for layer in op.keras_layers if layer.__module__.startswith("keras")]
    functions = [f'"{name}"' for name in op.activations]
    operations = [f"`{snake(name)}`" for name in op.operations if name not in own]
    return ", ".join([*own, *functions, *dict.fromkeys(operations)])


def snake(name: str) -> str:
    """The `keras.ops` function of an operation's class."""
    lowered = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    known = {
        "get_item": "x[...]",
        "true_divide": "divide",
        "layer_norm": "layer_normalization",
        "r_m_s_norm": "rms_normalization",
        "leaky_relu": "leaky_relu",
    }
    found = known.get(lowered, lowered)
    for candidate in (found, found.replace("_", "")):
        if hasattr(keras.ops, candidate) or hasattr(keras.ops.image, candidate):
            return candidate
    return found


def targets(op: Op) -> str:
    """The targets that run all kernels of an op."""
    if not op.litert or op.float_cases:
        return ""
    common = (
        name
        for name in TARGETS
        if all(runs(kernel, "int8", name, host=False) for kernel in op.litert)
    )
    return ", ".join(common) or "none of them"


def wide(op: Op) -> str:
    """How an op computes with activations of 16 bits, if not by its kernels."""
    return op.wide or ("float" if op.float_cases else "")


def supported_page() -> str:
    """The page of layers, functions and operations."""
    families: dict[str, list[Op]] = {}
    for op in REGISTRY:
        if stands_for(op) and op.__module__.startswith("intact.ops"):
            families.setdefault(family(op), []).append(op)
    parts = [HEAD]
    for title, members in sorted(families.items()):
        rows = [["layers and functions", "kernels", "also on", "16 bits", "notes"], ["---"] * 5]
        for op in sorted(members, key=lambda op: op.name):
            kernels = ", ".join(op.litert) or "-"
            rows.append([stands_for(op), kernels, targets(op), wide(op), op.notes])
        parts.append(f"## {title}\n\n")
        parts += ["| " + " | ".join(" ".join(c.split()) for c in row) + " |\n" for row in rows]
        parts.append("\n")
    return "".join([*parts, *refused_section()]).rstrip() + "\n"


def refused_section() -> list[str]:
    """What is refused, with the reason; and what leaves nothing in the file."""
    operations = public_operations()
    rows = []
    for reason, names in REFUSED.items():
        own = [f"`{operations[name]}`" for name in names if name in operations]
        own += [name for name in names if hasattr(keras.layers, name)]
        if own:
            rows.append(f"| {', '.join(sorted(own))} | {reason} |\n")
    known = {name for op in REGISTRY for name in op.operations}
    known |= {name for names in REFUSED.values() for name in names}
    rest = sorted(name for kind, name in operations.items() if kind not in known)
    return [
        "## What is refused\n\n| layers and functions | why |\n| --- | --- |\n",
        *rows,
        "\nConstants, shapes and types are computed when a model is traced, and leave nothing in "
        f"the file: {', '.join(f'`{name}`' for name in rest)}.\n",
    ]


def public_operations() -> dict[str, str]:
    """The functions of `keras.ops`, by the names of their operations' classes."""
    functions = (
        name
        for space in (keras.ops, keras.ops.image)
        for name in dir(space)
        if not name.startswith("_") and inspect.isfunction(getattr(space, name))
    )
    return {CLASSES.get(name) or class_name(name): name for name in functions}


def class_name(function: str) -> str:
    """The class name of the operation of a function, as Keras spells it."""
    module = inspect.getmodule(
        getattr(keras.ops, function, getattr(keras.ops.image, function, None))
    )
    plain = function.replace("_", "").lower()
    names = (name for name in vars(module) if name.lower() == plain)
    return next((name for name in names if inspect.isclass(vars(module)[name])), function)


CLASSES = {
    "abs": "Absolute",
    "batch_normalization": "BatchNorm",
    "concatenate": "Concatenate",
    "conj": "Conjugate",
    "extract_patches_3d": "ExtractPatches",
    "hard_swish": "HardSilu",
    "layer_normalization": "LayerNorm",
    "reshape": "Reshape",
    "rms_normalization": "RMSNorm",
    "swish": "Silu",
}
"""Functions whose operation's class has a name of its own."""


def rule_section(rule: Rule) -> str:
    """The section of a rule."""
    return f"""### {rule.code} {rule.name} ({rule.severity})

{rule.summary} {rule.cause}

* Example: {rule.example}.
* Remedy: {rule.remedy}.
"""


def rules_page() -> str:
    """The page of the rules of `verify`, family by family."""
    parts = [RULES_HEAD]
    for letter, title in FAMILIES.items():
        parts.append(f"## {title}\n")
        members = sorted(code for code in RULES if code[0] == letter)
        parts += [rule_section(RULES[code]) for code in members]
    return "\n".join(parts)


ERRORS_HEAD = """# Errors and warnings

Made from their docstrings by `python docs/make_pages.py`; a test fails when it is stale.

All errors are `intact.IntactError`s. They say what is wrong, where, and what to do, and they come
early: `quantize_model` refuses layers that cannot be quantized, before any training. A traceback
ends with the code. On the command line, an error is one line, which ends with the code, and the
process ends with status 1.

All names are in the package: `intact.UnsupportedLayerError`. The findings of `verify` have
[codes of their own](verify_rules.md).
"""


def error_section(kind: type) -> str:
    """The section of an exception or a warning: its docstring as Markdown."""
    text, _, example = (inspect.getdoc(kind) or "").partition("Example:\n")
    text = re.sub(r"(?ms)^Args:.*?(?:\n\n|\Z)", "", text)
    text = re.sub(r"(?m)^(Cause|Remedy):", r"**\1.**", text).rstrip()
    code = f"\n\n```pycon\n{example.strip()}\n```" if example else ""
    return f"### {kind.code} {kind.__name__}\n\n{text}{code}\n"


def errors_page() -> str:
    """The page of errors and warnings, by their codes."""
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    parts = [ERRORS_HEAD]
    for title, base in (("Errors", Exception), ("Warnings", Warning)):
        members = [k for k in kinds if issubclass(k, base) and hasattr(k, "code")]
        parts.append(f"## {title}\n")
        parts += [error_section(k) for k in members if issubclass(k, Warning) == (base is Warning)]
    return "\n".join(parts)


PAGES = {"supported.md": supported_page, "verify_rules.md": rules_page, "errors.md": errors_page}
"""The function that makes each page."""


if __name__ == "__main__":
    for name, make_page in PAGES.items():
        (DOCS / name).write_text(make_page())
