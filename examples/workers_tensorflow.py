"""Two workers in a loop of your own, on TensorFlow: `python examples/workers_tensorflow.py`."""

import json
import multiprocessing
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

import intact


def train(rank, workers):
    """Train on this worker's part of each batch: Keras 3's `fit` takes no model here."""
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    end = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)]
    x = np.random.default_rng(0).normal(size=(256, 8, 8, 3)).astype("float32")
    y = x.mean(axis=(1, 2, 3))[:, None]
    with strategy.scope():
        q = intact.quantize_model(keras.Sequential([keras.Input((8, 8, 3)), *layers, *end]))
        optimizer = keras.optimizers.Adam(0.01)
        optimizer.build(q.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            # Gradients are added up: this is a worker's share of the mean over the whole batch.
            loss = keras.ops.mean((q(x, training=True) - y) ** 2) / len(workers)
        optimizer.apply(tape.gradient(loss, [v.value for v in q.trainable_variables]))

    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    run = tf.function(lambda *batch: strategy.run(step, batch))
    with strategy.scope():
        for batch in strategy.experimental_distribute_dataset(batches):
            run(*batch)
    if rank == 0:
        print("Values that differ:", intact.compare(q, intact.export(q), x).different)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    workers = ["127.0.0.1:29520", "127.0.0.1:29521"]
    jobs = [context.Process(target=train, args=(rank, workers)) for rank in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
