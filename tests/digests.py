"""Digests of exported files, to show that a change of the code changes no file.

    python tests/digests.py save before.json
    python tests/digests.py compare before.json [--parts battery composites] [--every 12]

Each case of the battery is exported in several schemes, and so are the composite models of
`benchmarks/composites.py` with random weights. A model that a scheme refuses is recorded by the
class of its error. `--every 12` takes a twelfth of the cases, the same ones in each commit.
"""

import argparse
import hashlib
import json
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from battery import all_cases

import intact
from intact.testing import build_model, make_data, randomize

SCHEMES = ("int8", "uint8", "int16x8", "float32", "float16", "weight_only_8", "dynamic_range")
COMPOSITES = ("UNet", "Detector", "ViT", "Reader", "Temporal")


def _begin() -> None:
    """Let names and weights not depend on what was built before."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)


def _taken(name: str, every: int) -> bool:
    """Whether a share of the models has this one."""
    return zlib.crc32(name.encode()) % every == 0


def battery(every: int) -> Iterator[tuple[str, keras.Model, Any]]:
    """`(name, model, data)` of the cases."""
    for name, _, case in all_cases():
        if not _taken(name, every):
            continue
        rng = np.random.default_rng(11)
        _begin()
        yield name, build_model(case, rng), make_data(case, rng)


def composites(every: int) -> Iterator[tuple[str, keras.Model, Any]]:
    """`(name, model, data)` of the composite models, with random weights and data."""
    sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
    import composites as built

    models = {
        "UNet": lambda: built.unet(built.transposed),
        "Detector": built.detector,
        "ViT": built.vit,
        "Reader": built.reader,
        "Temporal": built.temporal,
    }
    for name in COMPOSITES:
        if not _taken(name, every):
            continue
        rng = np.random.default_rng(11)
        _begin()
        model = models[name]()
        randomize(model, rng)
        shape = (32, *model.inputs[0].shape[1:])
        whole = model.inputs[0].dtype.startswith("int")
        data = rng.integers(0, 50, shape) if whole else rng.normal(size=shape).astype("float32")
        yield name, model, data


def digest(model: keras.Model, data: Any, scheme: str) -> str:
    """The digest of a model's file in a scheme, or the class of the error that refuses it."""
    try:
        if scheme == "float32":
            content = intact.export(model)
        else:
            q = intact.quantize_model(model, scheme)
            intact.calibrate(q, data, verbose=0)
            content = intact.export(q)
    except intact.IntactError as error:
        return type(error).__name__
    return hashlib.sha256(content).hexdigest()[:16]


def digests(parts: list[str], every: int) -> dict[str, str]:
    """The digest of each model in each scheme, by `model/scheme`; of one model in `every`."""
    warnings.simplefilter("ignore")
    sources = {"battery": battery, "composites": composites}
    result = {}
    for part in parts:
        for name, model, data in sources[part](every):
            for scheme in SCHEMES:
                _begin()
                result[f"{name}/{scheme}"] = digest(model, data, scheme)
            print(f"\r{part}: {name:40}", end="", file=sys.stderr, flush=True)
    return result


def main() -> int:
    """Save or compare the digests; the exit code is 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["save", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--parts", nargs="+", default=["battery", "composites"])
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    now = digests(options.parts, options.every)
    if options.action == "save":
        options.file.write_text(json.dumps(now, indent=0, sort_keys=True))
        return 0
    before = json.loads(options.file.read_text())
    compared = [name for name in before if name in now]
    changed = [name for name in compared if before[name] != now[name]]
    print(f"\n{len(compared)} files compared, {len(changed)} differ")
    print("\n".join(f"{name}: {before[name]} -> {now[name]}" for name in changed))
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
