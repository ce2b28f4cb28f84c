"""One training run, by one process or by several, for `test_distributed.py`."""

import json
import os
import sys

ENGINE, NAMES, FOLDER = sys.argv[1:4]
RANK, WORLD, PORT = map(int, sys.argv[4:7])
SINGLE, STEPS, BATCH, RATE = WORLD == 1, 20, 16, 2e-3
os.environ["KERAS_BACKEND"] = ENGINE.split("_")[0]
if ENGINE == "jax_devices":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={WORLD}"
if ENGINE == "tensorflow_workers":
    workers = [f"127.0.0.1:{PORT + n}" for n in range(WORLD)]
    task = {"type": "worker", "index": RANK}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})

import keras  # noqa: E402
import numpy as np  # noqa: E402

import intact  # noqa: E402

SCHEMES = {
    "int8": {},
    "learned": {"quantizer": "lsq"},
    "schedule": {"schedule": (5, 12)},
    "folded": {"fold_batch_norm": True},
    "different": {"range": (-1.0 - RANK, 1.0)},
    "frozen": {"range": (-1.0 - RANK, 1.0)},
}
REFUSED = ("different", "frozen", "lost")


def float_model():
    """Batch statistics, a shared range, and ranges that depend on products (the normalization)."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    y = keras.layers.Conv2D(8, 3, padding="same")(x)
    x = keras.layers.Concatenate()([x, keras.layers.BatchNormalization(momentum=0.9)(y)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.LayerNormalization()(x)))


def quantized(scheme):
    """The quantized model, by one of the schemes."""
    settings = dict(SCHEMES.get(scheme, {}))
    first = settings.pop("range", None)
    if "quantizer" in settings:
        spec = intact.TensorSpec(quantizer=settings.pop("quantizer"))
        rule = intact.Rule(weights=intact.TensorSpec(symmetric=True), activations=spec)
        settings["scheme"] = intact.Scheme("learned", (rule,))
    if "schedule" in settings:
        delay, freeze = settings.pop("schedule")
        settings["schedule"] = intact.Schedule(
            quant_delay=delay, freeze_ranges=freeze, freeze_batch_norm=freeze
        )
    q = intact.quantize_model(float_model(), **settings)
    if first is not None:
        intact.calibrate(q, default_ranges=first)
    intact.freeze_ranges(q, scheme == "frozen")
    return q


def data():
    """Samples whose sizes differ, so that each part of a batch has a range of its own."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(STEPS * BATCH, 8, 8, 3)).astype("float32")
    x *= np.linspace(0.5, 4, BATCH, dtype="float32")[np.arange(len(x)) % BATCH, None, None, None]
    return x, np.tanh(x.mean(axis=(1, 2)) @ rng.normal(size=(3, 4))).astype("float32")


def write(q, losses, scheme):
    """Write what training came to."""
    arrays = {f"{n}/{v.name}": keras.ops.convert_to_numpy(v) for n, v in enumerate(q.weights)}
    arrays["litert"] = np.frombuffer(intact.export(q), "uint8")
    np.savez(f"{FOLDER}/{ENGINE}-{scheme}-{WORLD}-{RANK}.npz", losses=losses, **arrays)


def run(scheme, train):
    """Make, train and write a model; or print why it does not train."""
    if scheme not in REFUSED:
        q = quantized(scheme)
        write(q, train(q, scheme), scheme)
        return
    try:
        train(quantized(scheme), scheme)
    except Exception as error:
        print(f"{scheme} {RANK}: {error}", flush=True)
    if scheme == "lost":
        os._exit(9 if RANK else 0)


def die(scheme, step):
    """End a process in the middle."""
    if scheme == "lost" and RANK and step == 3:
        os._exit(9)


def fit(q, scheme):
    """Train by `fit`; the losses of the epochs, each of which has a fifth of the steps."""
    q.compile(keras.optimizers.SGD(RATE, momentum=0.9), "mse")
    x, y = data()
    parts = WORLD if ENGINE == "jax_processes" else 1
    # This process' part of each batch, where a process gives only its own.
    rows = np.arange(len(x)).reshape(STEPS, parts, -1)[:, RANK % parts]
    losses = []
    for step, epoch in enumerate(np.split(rows, 5)):
        die(scheme, step)
        mine = x[epoch.ravel()], y[epoch.ravel()]
        history = q.fit(*mine, batch_size=BATCH // parts, shuffle=False, verbose=0)
        losses += history.history["loss"]
    return losses


def torch_processes():
    """Keras' recipe for torch, or a plain loop that averages the gradients itself."""
    import torch.distributed as dist

    if not SINGLE:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{PORT}", rank=RANK, world_size=WORLD)
    for scheme in NAMES.split(","):
        run(scheme, torch_loop)
    if not SINGLE:
        dist.barrier()
        dist.destroy_process_group()


def torch_loop(q, scheme):
    """Train on this process' part of each batch; the losses of the whole batches."""
    import torch
    import torch.distributed as dist

    model = q
    if scheme in SCHEMES and not (SINGLE or scheme in REFUSED):
        model = torch.nn.parallel.DistributedDataParallel(q)
    optimizer = torch.optim.SGD([p for p in q.parameters() if p.requires_grad], RATE, 0.9)
    x, y = data()
    ends = np.linspace(0, BATCH, WORLD + 1, dtype=int)
    if scheme == "ragged":
        ends[1:-1] -= 5
    losses = []
    for step in range(STEPS):
        if scheme == "lost" and step == 3:
            # The last process sees no data, and ends by that.
            ends[1:-1] = BATCH
        mine = slice(*(step * BATCH + ends[RANK : RANK + 2]))
        optimizer.zero_grad()
        errors = (model(x[mine], training=True) - torch.as_tensor(y[mine])) ** 2
        # Processes with fewer samples count less in the mean of the gradients.
        loss = errors.sum() * WORLD / (BATCH * y.shape[1])
        loss.backward()
        loss = loss.detach()
        if not SINGLE:
            dist.all_reduce(loss)
            if model is q:
                for p in q.parameters():
                    if p.grad is not None:
                        dist.all_reduce(p.grad)
                        p.grad /= WORLD
        optimizer.step()
        losses.append(float(loss) / WORLD)
    return losses


def tensorflow_replicas():
    """`MirroredStrategy` over logical processors, or `MultiWorkerMirroredStrategy`."""
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    if ENGINE == "tensorflow_workers":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif not SINGLE:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(WORLD)]
        tf.config.set_logical_device_configuration(cpu, parts)
        strategy = tf.distribute.MirroredStrategy([f"/cpu:{n}" for n in range(WORLD)])
    for scheme in NAMES.split(","):
        own_loop = scheme == "workers" or ENGINE == "tensorflow_workers"
        with strategy.scope():
            run(scheme, tensorflow_loop if own_loop else fit)


def tensorflow_loop(q, scheme):
    """A loop of one's own: Keras' `fit` takes no model, float or not, on several workers."""
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    optimizer = keras.optimizers.SGD(RATE, momentum=0.9)
    optimizer.build(q.trainable_variables)
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH)

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            # The mean over the global batch: gradients of all replicas are added up.
            loss = keras.ops.mean((q(x, training=True) - y) ** 2) / WORLD
        optimizer.apply(tape.gradient(loss, [v.value for v in q.trainable_variables]))
        return loss

    @tf.function
    def step(x, y):
        return strategy.reduce("SUM", strategy.run(replica_step, (x, y)), axis=None)

    losses = []
    for number, batch in enumerate(strategy.experimental_distribute_dataset(batches)):
        die(scheme, number)
        losses.append(float(step(*batch)))
    return losses


def jax_arrays():
    """`keras.distribution` over devices of one process, or of several; or with split kernels."""
    if ENGINE == "jax_processes":
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize(f"127.0.0.1:{PORT}", WORLD, RANK)
    for scheme in NAMES.split(","):
        if scheme == "sharded":
            keras.distribution.set_distribution(split_kernels())
        elif not SINGLE:
            keras.distribution.set_distribution(
                keras.distribution.DataParallel(auto_shard_dataset=False)
            )
        run(scheme, fit)


def split_kernels():
    """A distribution of the weights over every other device."""
    layouts = keras.distribution.LayoutMap(
        keras.distribution.DeviceMesh((WORLD // 2, 2), ["batch", "model"])
    )
    layouts[".*conv2d.*kernel"] = (None, None, None, "model")
    layouts[".*dense.*kernel"] = (None, "model")
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


if __name__ == "__main__":
    {"torch": torch_processes, "tensorflow": tensorflow_replicas, "jax": jax_arrays}[
        keras.backend.backend()
    ]()
