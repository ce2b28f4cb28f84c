"""Reads an HDF5 file in a process of its own: its library may crash on a damaged file.

Run with a path, or with a file on standard input. Prints how many numbers the file stores,
or says on standard error what is wrong with it. It imports nothing that takes long.
"""

import io
import math
import sys
from typing import Any

import h5py

# An array may be EXPANSION times as large as its bytes in the file, and SLACK bytes larger.
EXPANSION, SLACK = 1000, 1_000_000


def check(source: Any) -> int:
    """Read all of a file; refuse links and arrays that are not what they seem.

    Args:
        source: A path, or an open file.

    Returns:
        How many numbers it stores.

    Raises:
        ValueError: An entry cannot be trusted.
        OSError: The file is damaged.
    """
    elements, seen = 0, set()
    with h5py.File(source, "r") as file:
        todo = [file]
        while todo:
            group = todo.pop()
            list(group.attrs.values())
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"its entry {name!r} is a link to somewhere else")
                item = group[name]
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    raise ValueError(f"its entry {name!r} is reached in two ways")
                seen.add(address)
                if isinstance(item, h5py.Group):
                    todo.append(item)
                    continue
                if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
                    raise ValueError(f"its entry {name!r} is stored somewhere else")
                size, stored = math.prod(item.shape or ()), item.id.get_storage_size()
                if size * item.dtype.itemsize > EXPANSION * stored + SLACK:
                    raise ValueError(
                        f"its array {name!r} claims shape {item.shape}, but holds {stored} bytes"
                    )
                list(item.attrs.values())
                # None where there is no data at all.
                if item.shape is not None:
                    item[()]
                elements += size
    return elements


if __name__ == "__main__":
    try:
        print(check(sys.argv[1] if len(sys.argv) > 1 else io.BytesIO(sys.stdin.buffer.read())))
    except Exception as error:  # All of them are the file's fault.
        sys.exit(f"{error}")
