"""LiteRT files as C source, for microcontrollers that have no files."""

import re
from collections.abc import Iterator
from pathlib import PurePath

from intact.errors import IntactError, MissingToolError
from intact.litert.reader import FileGraph, FileTensor, read
from intact.targets import micro

_BYTES_PER_LINE = 12


def c_array(file: bytes, name: str, header: str = "") -> tuple[str, str]:
    """Write a LiteRT file as C: an aligned constant array, and facts about it.

    Args:
        file: The file's bytes.
        name: The name of the array, an identifier of C.
        header: The name of the header's file; by default, that of the array.

    Returns:
        The header and the source: types, sizes, scales and zero points of inputs and outputs
        as defines, the ops for the resolver, and the bytes of the arena if TFLite Micro is
        installed and runs the file.

    Raises:
        IntactError: The name is no identifier; or the file is damaged.

    Example:

    >>> import intact, keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> header, source = c_array(intact.export(model), "dense")
    >>> "extern const unsigned char dense[];" in header
    True
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise IntactError(f"The name of a C array is an identifier, such as 'model': {name!r}.")
    graph = read(file).graphs[0]
    lines = [
        f"/* A LiteRT model of {len(file)} bytes, written by intact. */",
        f"#ifndef {name.upper()}_H",
        f"#define {name.upper()}_H",
        "",
        *_ops(graph),
        *_defines(name.upper(), file, graph),
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        f"extern const unsigned char {name}[];",
        f"extern const unsigned int {name}_len;",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "#endif",
        "",
    ]
    return "\n".join(lines), _source(file, name, header or f"{name}.h")


def c_name(path: str) -> str:
    """An identifier of C, from the name of a file.

    Args:
        path: The file.

    Returns:
        Its name without the suffix; characters that no identifier may have become underscores.

    Example:

    >>> c_name("out/ds-cnn.v2.c")
    'ds_cnn_v2'
    """
    name = re.sub(r"\W", "_", PurePath(path).stem, flags=re.ASCII)
    return name if re.match(r"[A-Za-z_]", name) else f"model_{name}"


def _ops(graph: FileGraph) -> list[str]:
    names = sorted({op.name for op in graph.ops})
    # A name may contain the end of a comment.
    shown = ", ".join(re.sub(r"\W", "_", name) for name in names)
    return [f"/* {len(names)} kinds of ops, for the resolver: {shown} */"]


def _defines(name: str, file: bytes, graph: FileGraph) -> Iterator[str]:
    yield f"#define {name}_BYTES {len(file)}"
    arena = _arena_bytes(file)
    if arena:
        yield "/* As TFLite Micro needs it with 64-bit pointers; somewhat less with 32-bit ones. */"
        yield f"#define {name}_ARENA_BYTES {arena}"
    for side, tensors in (("INPUT", graph.inputs), ("OUTPUT", graph.outputs)):
        for index, tensor in enumerate(tensors):
            yield from _about(f"{name}_{side}_{index}", tensor)


def _about(name: str, tensor: FileTensor) -> Iterator[str]:
    size = 1
    for n in tensor.shape:
        size *= n or 1
    yield f"/* {tensor.dtype} ({', '.join(str(n or 1) for n in tensor.shape)}) */"
    yield f"#define {name}_SIZE {size}"
    if tensor.quantized and len(tensor.zero_points):
        yield f"#define {name}_SCALE {float(tensor.scales[0]):.8e}f"
        yield f"#define {name}_ZERO_POINT ({int(tensor.zero_points[0])})"


def _arena_bytes(file: bytes) -> int:
    try:
        return micro.run_micro(file, []).arena_bytes
    except MissingToolError:
        return 0


def _source(file: bytes, name: str, header: str) -> str:
    rows = (file[i : i + _BYTES_PER_LINE] for i in range(0, len(file), _BYTES_PER_LINE))
    body = "\n".join("  " + ", ".join(f"0x{byte:02x}" for byte in row) + "," for row in rows)
    return f"""#include "{header}"

#if defined(__cplusplus)
#define INTACT_ALIGNED alignas(16)
#elif defined(_MSC_VER)
#define INTACT_ALIGNED __declspec(align(16))
#else
#define INTACT_ALIGNED __attribute__((aligned(16)))
#endif

INTACT_ALIGNED const unsigned char {name}[] = {{
{body}
}};
const unsigned int {name}_len = {len(file)};
"""
