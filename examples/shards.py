"""Calibration over shards, in processes of the standard library: `python examples/shards.py`."""

import concurrent.futures
import functools
import multiprocessing
import pathlib
import tempfile

import keras
import numpy as np

import intact


def observe(path, samples, shard):
    """Observe one shard: each process loads the same file, and reads its own samples."""
    data = np.load(samples, mmap_mode="r")[slice(*shard)]
    return intact.observe(intact.load_keras(path), data, verbose=0)


def main():
    """Calibrate by two processes, and compare with one pass."""
    layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers, keras.layers.Dense(4)])
    q = intact.quantize_model(model)
    with tempfile.TemporaryDirectory() as folder:
        path, samples = pathlib.Path(folder, "q.keras"), pathlib.Path(folder, "x.npy")
        q.save(path)
        data = np.random.default_rng(0).normal(size=(400, 16, 16, 3)).astype("float32")
        np.save(samples, data)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            one = functools.partial(observe, path, samples)
            intact.apply(q, pool.map(one, [(0, 100), (100, 230), (230, 400)]))
    whole = intact.calibrate(intact.quantize_model(model), data, bias_correction=False, verbose=0)
    return intact.export(q), intact.export(whole)


if __name__ == "__main__":
    ours, theirs = main()
    print("The same file as by one pass:", ours == theirs)
