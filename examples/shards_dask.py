"""Calibration over shards, on Dask: `pip install dask`, then `python examples/shards_dask.py`.

Dask's bags map and fold Python objects from a laptop's processes to a cluster, with the same code.
"""

import functools
import pathlib
import tempfile

import dask.bag
import keras
import numpy as np

import intact


def observe(path, samples):
    """Observe one shard."""
    return intact.observe(intact.load_keras(path), np.load(samples), verbose=0)


def main():
    """Calibrate on shards that lie in files of their own, and compare with one pass."""
    hidden = keras.layers.Dense(16, activation="relu")
    model = keras.Sequential([keras.Input((8,)), hidden, keras.layers.Dense(4)])
    q = intact.quantize_model(model)
    data = np.random.default_rng(0).normal(size=(300, 8)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, f"{n}.npy") for n in range(3)]
        for file, part in zip(files, np.split(data, [20, 170]), strict=True):
            np.save(file, part)
        q.save(path := pathlib.Path(folder, "q.keras"))
        shards = dask.bag.from_sequence(files).map(functools.partial(observe, path))
        merged = shards.fold(intact.Observations.merge).compute(scheduler="processes")
    intact.apply(q, merged)
    whole = intact.calibrate(intact.quantize_model(model), data, bias_correction=False, verbose=0)
    return intact.export(q), intact.export(whole)


if __name__ == "__main__":
    ours, theirs = main()
    print("The same file as by one pass:", ours == theirs)
