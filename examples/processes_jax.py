"""Two processes train one model, on JAX: `python examples/processes_jax.py`."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import multiprocessing

import jax
import keras
import numpy as np

import intact


def train(rank, world, port):
    """Train on this process' part of each batch; any process can export the same bytes."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(f"127.0.0.1:{port}", world, rank)
    whole = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(whole)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    end = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)]
    q = intact.quantize_model(keras.Sequential([keras.Input((8, 8, 3)), *layers, *end]))
    x = np.random.default_rng(0).normal(size=(256, 8, 8, 3)).astype("float32")
    y = x.mean(axis=(1, 2, 3))[:, None]
    mine = np.arange(256).reshape(8, world, -1)[:, rank].ravel()
    q.compile("adam", "mse")
    q.fit(x[mine], y[mine], batch_size=16, shuffle=False, verbose=0)
    different = intact.compare(q, intact.export(q), x).different
    if rank == 0:
        print("Values that differ:", different)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=train, args=(rank, 2, 29518)) for rank in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
