"""Loops that train by a program: the same numbers and gradients as by the layers of a step."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven

import intact
from intact.layers.loop import QuantizedLoop
from intact.numerics.step_gradients import Gradients
from intact.numerics.step_program import Part, Product, Sigmoid, StepProgram, Sum
from intact.numerics.step_split import SplitProgram

STEPS = 9

MODELS = {
    "gru": layers.GRU(4),
    "gru, one bias": layers.GRU(4, reset_after=False, return_sequences=True),
    "lstm": layers.LSTM(4, return_sequences=True),
    "lstm, backwards": layers.LSTM(4, go_backwards=True, return_sequences=True),
    "relu": layers.SimpleRNN(4, activation="relu"),
    "both directions": layers.Bidirectional(layers.GRU(3, return_sequences=True)),
    "states": lambda x: ops.concatenate(layers.LSTM(4, return_state=True)(x), -1),
    "two layers": lambda x: layers.GRU(3)(layers.LSTM(4, return_sequences=True)(x)),
    "masked": lambda x: layers.LSTM(4)(layers.Masking()(ops.relu(x))),
    "one after the other": layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)]),
}


def loops(q):
    return [layer for layer in q.layers if isinstance(layer, QuantizedLoop)]


def trained(q, data, target):
    """The loss of a step, and all variables after it."""
    q.compile(keras.optimizers.SGD(1.0), "mse")
    losses = [float(q.train_on_batch(data, target)) for _ in range(2)]
    return losses, [ops.convert_to_numpy(v) for v in q.variables]


def model_of(function):
    x = keras.Input((STEPS, 3))
    return keras.Model(x, function(x))


@pytest.mark.parametrize(
    ("kind", "known"), [*((kind, True) for kind in MODELS), ("two layers", False)]
)
def test_programs_train_as_the_layers_of_a_step(kind, known, rng):
    """With known ranges, and with those of the first batch."""
    model = enliven(model_of(MODELS[kind]), rng)
    data = rng.normal(size=(8, STEPS, 3)).astype("float32")
    target = 0.5 * model.predict(data, verbose=0)
    results = []
    for by_program in (True, False):
        q = intact.quantize_model(model)
        if known:
            q = intact.calibrate(q, data, verbose=0)
        for loop in loops(q):
            assert loop.program is not None
            if not by_program:
                vars(loop)["program"] = None
        results.append(trained(q, data, target))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    for first, second in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_steps_with_trained_ranges_have_no_program():
    four = intact.TensorSpec(4, symmetric=True, quantizer="lsq")
    scheme = intact.Scheme("lsq", (intact.Rule(weights=four, activations=four),))
    q = intact.quantize_model(model_of(MODELS["lstm"]), scheme)
    assert [loop.program for loop in loops(q)] == [None]


def test_values_are_split_where_a_part_is_read():
    whole = StepProgram(
        [
            Sum(2, (0, 1)),
            Sigmoid(3, (2,)),
            Part(4, (3,), 0, 2),
            Part(5, (3,), 2, 6),
            Part(6, (3,), 4, 6),
            Product(7, (4, 6)),
        ],
        [6, 6, 6, 6, 2, 4, 2, 2],
        [0],
        [1],
        [5],
        [7],
    )
    parts = SplitProgram(whole)
    sizes = [parts.program.sizes[x.target] for x in parts.program.instructions]
    kinds = [type(x).__name__ for x in parts.program.instructions]
    assert kinds == [*["Part"] * 3, *["Sum"] * 3, *["Sigmoid"] * 3, "Product", "Joined"]
    assert sizes == [2] * 10 + [4]
    assert parts.parts == [(0, slice(0, 2)), (0, slice(2, 4)), (0, slice(4, 6))]


def test_gradients_of_parts_that_overlap_add_up():
    known = Gradients([5], ops.ones((1, 5)))
    for start, stop in ((1, 3), (2, 4)):
        known.add_part(0, start, stop, ops.ones((1, 2)))
    assert ops.convert_to_numpy(known.of(0)).tolist() == [[0.0, 1.0, 2.0, 1.0, 0.0]]
