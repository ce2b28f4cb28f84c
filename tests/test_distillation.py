"""Distillation: from the float model, without labels."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven, host, weights

import intact
from intact.recovery.distillation import _Distance


@pytest.fixture
def x(rng):
    return rng.normal(size=(64, 8, 8, 3)).astype("float32")


def classifier(rng, activation="softmax"):
    return enliven(
        keras.Sequential(
            [
                keras.Input((8, 8, 3), name="image"),
                layers.Conv2D(6, 3, use_bias=False, name="conv"),
                layers.BatchNormalization(name="bn"),
                layers.ReLU(name="relu"),
                layers.GlobalAveragePooling2D(name="pool"),
                layers.Dense(4, activation=activation, name="head"),
            ]
        ),
        rng,
    )


def student(model, x):
    """A student whose weights are somewhat off, so that it has something to learn."""
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    noise = np.random.default_rng(3)
    for variable in q.trainable_variables:
        if variable.path.endswith("kernel"):
            variable.assign_add(0.1 * noise.normal(size=variable.shape))
    return q


def gap(q, model, x):
    return float(np.square(q.predict(x, verbose=0) - model.predict(x, verbose=0)).mean())


@pytest.mark.parametrize("activation, loss", [("softmax", None), (None, "kl"), (None, None)])
def test_the_student_comes_near_and_the_teacher_stays(activation, loss, x, rng):
    model = classifier(rng, activation)
    q = student(model, x)
    before, was = gap(q, model, x), weights(model)
    mean = host(q.get_layer("bn").layer.moving_mean)
    seen = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    epochs = []
    history = intact.distill(
        q,
        teacher=model,
        data=x,
        epochs=6,
        batch_size=16,
        optimizer=keras.optimizers.Adam(0.001),
        loss=loss,
        callbacks=[seen],
        verbose=0,
    )
    losses = history.history["loss"]
    assert losses[-1] < 0.7 * losses[0], losses
    assert gap(q, model, x) < 0.8 * before
    assert epochs == list(range(6))
    for now, then in zip(weights(model), was, strict=True):
        np.testing.assert_array_equal(now, then)
    norm = q.get_layer("bn")
    assert norm.trainable
    np.testing.assert_array_equal(host(norm.layer.moving_mean), mean)
    assert intact.compare(q, intact.export(q), x).max_lsb <= 1


def test_the_same_seed_gives_the_same_weights(x, rng):
    model = classifier(rng)
    found = []
    for seed in (0, 0, 1):
        q = student(model, x)
        rate = keras.optimizers.SGD(0.05)
        intact.distill(q, model, x, batch_size=16, optimizer=rate, seed=seed, verbose=0)
        found.append(host(q.get_layer("conv").layer.kernel))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_steps_are_the_same_whatever_the_teachers_layers_are_called(x, rng):
    """On PyTorch, gradients of weights with a teacher's paths must not add up over steps."""
    model = classifier(rng)
    renamed = keras.models.clone_model(
        model,
        clone_function=lambda layer: layer.from_config(
            {**layer.get_config(), "name": f"{layer.name}_of_teacher"}
        ),
    )
    renamed.set_weights(model.get_weights())
    kernels = []
    for teacher in (model, renamed):
        q = student(model, x)
        rate = keras.optimizers.SGD(0.05)
        intact.distill(q, teacher, x, batch_size=16, optimizer=rate, verbose=0)
        kernels.append(host(q.get_layer("conv").layer.kernel))
    np.testing.assert_array_equal(*kernels)


def test_features_are_learned_too(x, rng):
    model = classifier(rng)
    q = student(model, x)
    plain, both = (
        intact.distill(q, model, x, features=names, verbose=0).history["loss"][0]
        for names in ((), ("relu", "pool"))
    )
    # Relative to the power of the teacher's.
    assert plain + 1e-4 < both < plain + 1.0
    with pytest.raises(intact.IntactError, match="'conv' is not rounded"):
        intact.distill(q, model, x, features=["conv"])


def test_batch_norm_learns_if_asked(x, rng):
    model = classifier(rng)
    q = student(model, x)
    intact.distill(q, model, x, freeze_norms=False, verbose=0)
    was = host(model.get_layer("bn").moving_mean)
    assert (host(q.get_layer("bn").layer.moving_mean) != was).any()


class Fresh(keras.utils.PyDataset):
    """Batches that are made anew in each epoch."""

    def __init__(self, x):
        super().__init__()
        self.x, self.made = x, 0

    def __len__(self):
        return 2

    def __getitem__(self, i):
        self.made += 1
        return self.x[16 * i : 16 * i + 16], np.zeros(16)


def test_data_of_any_kind(x, rng):
    model = classifier(rng)
    q = student(model, x)
    fresh = Fresh(x)
    kinds = [fresh, (part for part in np.split(x, 4)), {"image": x}, x[:20]]
    for data in kinds:
        history = intact.distill(q, model, data, epochs=2, steps=2, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
    assert fresh.made >= 4


def test_several_inputs_and_outputs(rng):
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    joined = layers.Concatenate()([a, b])
    model = keras.Model(
        [a, b], [layers.Dense(3, activation="softmax")(joined), layers.Dense(2)(joined)]
    )
    data = [rng.normal(size=(32, 4)), rng.normal(size=(32, 3))]
    q = student(model, data)
    rate = keras.optimizers.Adam(0.001)
    losses = intact.distill(q, model, data, epochs=5, batch_size=8, optimizer=rate, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0]


def test_the_loss_is_that_of_the_paper(rng):
    ours, theirs = rng.normal(size=(2, 5, 4)).astype("float32") * 3
    p, q = (np.exp(t / 2) / np.exp(t / 2).sum(-1, keepdims=True) for t in (theirs, ours))
    expected = 4 * (p * np.log(p / q)).sum(-1)
    found = host(_Distance(["kl"], 2.0)([ops.convert_to_tensor(t) for t in (ours, theirs)]))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)


def test_what_cannot_teach_is_refused(x, rng):
    model = classifier(rng)
    q = student(model, x)
    other = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(intact.IntactError, match="outputs of shapes"):
        intact.distill(q, other, x)
    with pytest.raises(intact.IntactError, match="float model that teaches"):
        intact.distill(q, q, x)
    with pytest.raises(intact.IntactError, match="no layer 'nowhere'"):
        intact.distill(q, model, x, features=["nowhere"])
    with pytest.raises(intact.IntactError, match="Expected loss"):
        intact.distill(q, model, x, loss="mae")
    with pytest.raises(intact.InvalidDataError, match="empty"):
        intact.distill(q, model, x[:0], verbose=0)
