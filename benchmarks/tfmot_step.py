"""A training step under TFMOT beside intact's, in one run.

    PEER_PYTHON=... python benchmarks/tfmot_step.py

`PEER_PYTHON` is the Python of an environment of Keras 2: `pip install tensorflow-cpu
tensorflow-model-optimization tf_keras`, in versions that go together. Writes what it measures to
`docs/results.md`.
"""

import os
import subprocess
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import pretrained
from real_models import compile_step, step_seconds
from results import write_section

import intact

ROUNDS = int(os.environ.get("ROUNDS", "12"))
KINDS = ("float", "quantized")


def models() -> dict[str, keras.Model]:
    """ResNet-20 in float and quantized, compiled."""
    model = pretrained("resnet20_cifar10")
    pair = dict(zip(KINDS, (model, intact.quantize_model(model)), strict=True))
    for made in pair.values():
        compile_step(made)
    return pair


class Peer:
    """The other process, which makes steps when it is asked."""

    def __init__(self, python: str) -> None:
        script = str(Path(__file__).parent / "peer_tfmot.py")
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KERAS_BACKEND")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([python, script], env=env, **pipes)
        while self.line() != "ready":
            pass

    def line(self) -> str:
        """The next line that it writes."""
        found = self.process.stdout.readline()
        if not found:
            raise SystemExit("The peer ended.")
        return found.strip()

    def seconds(self, kind: str) -> float:
        """Seconds of a step."""
        self.process.stdin.write(f"{kind}\n")
        self.process.stdin.flush()
        return float(self.line())


def main() -> None:
    """A training step of ResNet-20, batch 64, compiled, without XLA: intact on TensorFlow and
    TFMOT in Keras 2, each against float there, in turns. Medians over the rounds; ratios are
    those of each round."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 32, 32, 3)).astype("float32"), rng.integers(0, 10, 64)
    ours, peer = models(), Peer(os.environ["PEER_PYTHON"])

    def seconds(kind: str) -> float:
        return step_seconds(ours[kind], x, y)

    turns = [(ask, kind) for ask in (seconds, peer.seconds) for kind in KINDS]
    times = np.array([[ask(kind) for ask, kind in turns] for _ in range(ROUNDS + 2)])[2:]
    peer.process.stdin.close()
    peer.process.wait()
    rows = [["", "float ms", "quantized ms", "quantized / float", "time of TFMOT's"]]
    for name, at in (("intact, TensorFlow", 0), ("TFMOT", 2)):
        milliseconds = (f"{1000 * t:.0f}" for t in np.median(times[:, at : at + 2], 0))
        ratios = times[:, at + 1] / times[:, at], times[:, at + 1] / times[:, 3]
        rows.append([name, *milliseconds, *(f"{np.median(r):.2f}" for r in ratios)])
    print(*rows, sep="\n")
    write_section(
        "speed_tfmot",
        main.__doc__ or "",
        rows,
        "PEER_PYTHON=peer/bin/python python benchmarks/tfmot_step.py",
    )


if __name__ == "__main__":
    main()
