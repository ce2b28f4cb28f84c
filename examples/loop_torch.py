"""Two processes in a loop of your own, on PyTorch: `python examples/loop_torch.py`."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
import torch.distributed as dist

import intact


def train(rank, world, port):
    """Average the gradients of the processes; the ranges exchange by themselves."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    end = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)]
    q = intact.quantize_model(keras.Sequential([keras.Input((8, 8, 3)), *layers, *end]))
    parameters = [p for p in q.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 0.01)
    x = np.random.default_rng(0).normal(size=(256, 8, 8, 3)).astype("float32")
    y = torch.as_tensor(x.mean(axis=(1, 2, 3))[:, None])
    for first in range(0, 256, 32):
        mine = slice(first + rank * 16, first + (rank + 1) * 16)
        optimizer.zero_grad()
        ((q(x[mine], training=True) - y[mine]) ** 2).mean().backward()
        for parameter in parameters:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world
        optimizer.step()
    if rank == 0:
        print("Values that differ:", intact.compare(q, intact.export(q), x).different)
    dist.barrier()  # The processes leave together.
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(train, (2, 29519), nprocs=2)
