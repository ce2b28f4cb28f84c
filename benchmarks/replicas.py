"""What a training step of several processes costs beside that of one, on PyTorch.

    python benchmarks/replicas.py [PROCESSES]

ResNet-20 with 32 images for each process, in `DistributedDataParallel` on gloo; the float model and
the quantized one in turns. Prints processor and wall time of a step, in ms, and their ratios to
those of one process alone.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.distributed as dist
from data import pretrained

import intact

ROUNDS = int(os.environ.get("ROUNDS", "12"))
PORT = 29531


def step_of(model: Any, x: np.ndarray, classes: torch.Tensor) -> Callable[[], None]:
    """A function that makes a training step."""
    trained = model
    if dist.is_initialized():
        trained = torch.nn.parallel.DistributedDataParallel(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.001, 0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(trained(x, training=True), classes).backward()
        optimizer.step()

    return step


def work(rank: int, world: int, results: Any) -> None:
    """Measure the steps of one process: rows of processor and wall seconds, float first."""
    if world > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{PORT}", rank=rank, world_size=world)
    rng = np.random.default_rng(rank)
    x = rng.normal(size=(32, 32, 32, 3)).astype("float32")
    classes = torch.as_tensor(rng.integers(0, 10, 32))
    model = pretrained("resnet20_cifar10")
    steps = [step_of(each, x, classes) for each in (model, intact.quantize_model(model))]
    rows = []
    for _ in range(ROUNDS + 3):
        for step in steps:
            before = time.process_time(), time.perf_counter()
            step()
            rows.append((time.process_time() - before[0], time.perf_counter() - before[1]))
    if rank == 0:
        results.put(np.median(np.reshape(rows, (-1, 2, 2))[3:], 0))
    if world > 1:
        dist.destroy_process_group()


def measure(world: int) -> np.ndarray:
    """Processor and wall seconds of a step, of float and quantized, with so many processes."""
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    torch.multiprocessing.spawn(work, (world, results), nprocs=world)
    return results.get()


def main() -> None:
    """Print a row for one process and one for several."""
    world = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    alone, many = measure(1), measure(world)
    for name, one, several in zip(("float", "int8"), alone, many, strict=True):
        for kind, a, b in zip(("processor", "wall"), one, several, strict=True):
            print(f"{name:6} {kind:10} {1000 * a:6.0f} {1000 * b:6.0f}   ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
