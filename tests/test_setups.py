"""Training set-ups beside plain `fit`."""

import keras
import numpy as np
import pytest
from keras import layers
from small import enliven, host, quantizers, ranges

import intact
from intact.graph.view import first_call

BACKEND = keras.backend.backend()


def small(rng):
    return enliven(
        keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.Conv2D(4, 3, use_bias=False, name="conv"),
                layers.BatchNormalization(name="bn"),
                layers.ReLU(name="relu"),
                layers.Flatten(),
                layers.Dense(3, name="head"),
            ]
        ),
        rng,
    )


@pytest.fixture
def data(rng):
    return rng.normal(size=(32, 6, 6, 2)).astype("float32"), rng.normal(size=(32, 3)).astype(
        "float32"
    )


@pytest.fixture
def q(data, rng):
    return intact.calibrate(intact.quantize_model(small(rng)), data[0], verbose=0)


def fit(q, data, optimizer=None, epochs=1, batch_size=8, **options):
    q.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9), "mse", **options)
    return q.fit(*data, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)


def twin(q):
    """Another model of the same weights and ranges."""
    return keras.models.clone_model(q), q.get_weights()


def copy(q):
    made, values = twin(q)
    made.set_weights(values)
    return made


def close(q, other, rtol=1e-4, atol=1e-5):
    assert len(q.weights) == len(other.weights)
    for a, b in zip(q.weights, other.weights, strict=True):
        np.testing.assert_allclose(host(a), host(b), rtol=rtol, atol=atol, err_msg=a.path)


def torch_loop(q, x, y, optimizer):
    loss = keras.losses.MeanSquaredError()
    for start in range(0, len(x), 8):
        q.zero_grad()
        part = slice(start, start + 8)
        loss(y[part], q(x[part], training=True)).backward()
        variables = q.trainable_weights
        optimizer.apply([v.value.grad for v in variables], variables)


def tensorflow_loop(q, x, y, optimizer):
    import tensorflow as tf

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(tf.square(q(x, training=True) - y))
        gradients = tape.gradient(value, q.trainable_weights)
        optimizer.apply(gradients, q.trainable_weights)

    for start in range(0, len(x), 8):
        step(x[start : start + 8], y[start : start + 8])


def jax_loop(q, x, y, optimizer):
    import jax

    def value(trainable, fixed, x, y):
        found, fixed = q.stateless_call(trainable, fixed, x, training=True)
        return jax.numpy.mean((found - y) ** 2), fixed

    @jax.jit
    def step(state, x, y):
        trainable, fixed, slots = state
        (_, fixed), gradients = jax.value_and_grad(value, has_aux=True)(trainable, fixed, x, y)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return trainable, fixed, slots

    def values(variables):
        return [v.value for v in variables]

    optimizer.build(q.trainable_variables)
    held = q.trainable_variables, q.non_trainable_variables, optimizer.variables
    state = tuple(values(variables) for variables in held)
    for start in range(0, len(x), 8):
        state = step(state, x[start : start + 8], y[start : start + 8])
    for variables, found in zip(held, state, strict=True):
        for variable, value in zip(variables, found, strict=True):
            variable.assign(value)


LOOPS = {"jax": jax_loop, "torch": torch_loop, "tensorflow": tensorflow_loop}


def test_a_loop_of_ones_own_does_what_fit_does(q, data):
    other = copy(q)
    fit(q, data)
    LOOPS[BACKEND](other, *data, keras.optimizers.SGD(0.05, momentum=0.9))
    close(q, other)


@pytest.mark.skipif(BACKEND != "torch", reason="torch's own optimizers")
def test_an_optimizer_of_torch(q, data):
    import torch

    x, y = (torch.as_tensor(part) for part in data)
    optimizer = torch.optim.AdamW(q.parameters(), 0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(q(x, training=True), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_leaves_whole_numbers_whole(policy, data, rng):
    keras.config.set_dtype_policy(policy)
    try:
        model = small(rng)
        q = intact.quantize_model(model)
        fit(q, data, keras.optimizers.SGD(0.01))
    finally:
        keras.config.set_dtype_policy("float32")
    assert {w.dtype for w in q.weights} <= {"float32", "int32"}
    relu = quantizers(q)["relu"]
    values = keras.Model(q.inputs, first_call(relu).outputs[0]).predict(data[0], verbose=0)
    assert values.dtype == "float32"
    assert (values == np.round(values)).all()
    assert (values + host(relu.zero_point) <= 127).all()
    assert intact.compare(q, intact.export(q), data[0]).max_lsb <= 1


def test_accumulated_gradients_are_those_of_the_large_batch(q, data):
    intact.freeze_ranges(q)
    q.get_layer("bn").trainable = False
    other = copy(q)
    intact.freeze_ranges(other)
    other.get_layer("bn").trainable = False
    fit(q, data, keras.optimizers.SGD(0.05, gradient_accumulation_steps=4), epochs=2)
    fit(other, data, keras.optimizers.SGD(0.05), epochs=2, batch_size=32)
    close(q, other)


def test_averages_of_weights(q, data):
    before = host(q.get_layer("head").layer.kernel)
    other = copy(q)
    fit(q, data, keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9), epochs=2)
    fit(other, data, keras.optimizers.SGD(0.05), epochs=2)
    averaged, last = (host(m.get_layer("head").layer.kernel) for m in (q, other))
    assert np.abs(averaged - before).sum() < np.abs(last - before).sum()
    for path, value in ranges(q).items():
        np.testing.assert_allclose(ranges(other)[path], value, rtol=1e-5)
    assert intact.compare(q, intact.export(q), data[0]).max_lsb <= 1


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_compiled_or_not(options, q, data):
    if BACKEND == "torch" and "jit_compile" in options:
        pytest.skip("torch.compile needs a C++ compiler and minutes")
    other = copy(q)
    fit(q, data, **options)
    fit(other, data, **({"jit_compile": False} if BACKEND != "torch" else {}))
    close(q, other, rtol=1e-3, atol=1e-4)


def test_several_losses(data, rng):
    x, y = data
    inputs = keras.Input((6, 6, 2))
    shared = layers.ReLU()(layers.Conv2D(4, 3)(inputs))
    flat = layers.Flatten()(shared)
    model = keras.Model(
        inputs,
        {
            "values": layers.Dense(3, name="values")(flat),
            "shares": layers.Dense(3, activation="softmax", name="shares")(flat),
        },
    )
    q = intact.quantize_model(enliven(model, rng))
    q.compile(
        keras.optimizers.Adam(0.01),
        {"values": "mse", "shares": "sparse_categorical_crossentropy"},
        loss_weights={"values": 1.0, "shares": 0.3},
    )
    targets = {"values": y, "shares": y.argmax(-1)}
    losses = q.fit(x, targets, epochs=4, batch_size=8, verbose=0).history
    assert {"loss", "values_loss", "shares_loss"} <= set(losses)
    assert losses["values_loss"][-1] < losses["values_loss"][0]
    assert losses["shares_loss"][-1] < losses["shares_loss"][0]


def test_resumed_is_as_if_it_had_not_stopped(q, data, tmp_path):
    other = copy(q)
    fit(other, data, keras.optimizers.Adam(0.01), epochs=3)
    fit(q, data, keras.optimizers.Adam(0.01))
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    assert int(host(loaded.optimizer.iterations)) == 4
    loaded.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0)
    close(other, loaded, rtol=1e-5)


def test_backup_and_restore_goes_on_where_it_was_interrupted(q, data, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(model, *more):
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        model.compile(keras.optimizers.Adam(0.01), "mse")
        options = {"batch_size": 8, "epochs": 3, "shuffle": False, "verbose": 0}
        model.fit(*data, callbacks=[backup, *more], **options)

    whole, broken, resumed = copy(q), copy(q), copy(q)
    fit(whole, data, keras.optimizers.Adam(0.01), epochs=3)
    with pytest.raises(KeyboardInterrupt):
        run(broken, Interrupt())
    run(resumed)
    close(whole, resumed, rtol=1e-5)
