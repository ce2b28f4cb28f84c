"""States that are fed back have one scale as inputs and as outputs."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import intact

RNG = np.random.default_rng(0)
FRAMES = RNG.normal(size=(48, 1, 6)).astype("float32")
STATES = RNG.uniform(-1, 1, size=(48, 5)).astype("float32")


def gru(named=True):
    """A step of a GRU, with its state as input and output."""
    x, h = keras.Input((1, 6), name="frame"), keras.Input((5,), name="state_in")
    cell = layers.GRU(5, return_sequences=True, return_state=True, unroll=True, name="gru")
    y, s = cell(x, initial_state=h)
    y = layers.Dense(2, "sigmoid", name="gain")(y)
    return keras.Model([x, h], {"out": y, "state_out": s} if named else [y, s])


def mixing(function):
    """A state that a function makes of the old one and of what comes in."""
    x, h = keras.Input((6,), name="frame"), keras.Input((5,), name="state_in")
    joint = layers.Concatenate()([layers.Dense(5)(x), h])
    return keras.Model([x, h], {"out": layers.Dense(2)(joint), "state_out": function(joint, h)})


FUNCTIONS = {
    "observed": lambda joint, h: layers.Dense(5)(joint),
    "fixed": lambda joint, h: layers.Dense(5, "tanh")(joint),
    "clamped": lambda joint, h: layers.ReLU(0.5)(layers.Dense(5)(joint)),
    "part of the input": lambda joint, h: joint[:, 5:],
    "the input": lambda joint, h: ops.maximum(h, 0.0) + h,
}


def calibrated(model, scheme="int8", frames=FRAMES[:, 0], states=None):
    q = intact.quantize_model(model, scheme, states=states or {"state_in": "state_out"})
    return intact.calibrate(q, [frames, STATES], verbose=0)


def goes_round(q, dtype, frames):
    """Whether integers fed back as they are give what Keras does with real values."""
    file = intact.load_litert(intact.export(q, None, dtype, dtype, integer_only=True))
    name = file.output_names[-1]
    params = file.input_details["state_in"]["quantization"]
    assert tuple(file.output_params(name)) == params
    state = np.zeros((1, 5), "float32")
    for frame in frames[:6]:
        expected = q.predict([frame[None], state], verbose=0)
        given = {"frame": frame[None], "state_in": state}
        np.testing.assert_allclose(file.predict(given)[name], keras.tree.flatten(expected)[-1])
        state = keras.tree.flatten(expected)[-1]
        np.testing.assert_array_equal(np.rint(state / params[0]) * np.float32(params[0]), state)


@pytest.mark.parametrize("scheme, dtype", [("int8", "int8"), ("int16x8", "int16")])
def test_a_state_of_a_recurrent_layer(scheme, dtype):
    goes_round(calibrated(gru(), scheme, FRAMES), dtype, FRAMES)


@pytest.mark.parametrize("scheme, dtype", [("int8", "int8"), ("int16x8", "int16")])
@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_state_of_any_layer(case, scheme, dtype):
    goes_round(calibrated(mixing(FUNCTIONS[case]), scheme), dtype, FRAMES[:, 0])


def test_a_state_is_named_as_keras_names_it():
    model = gru(named=False)
    states = {"state_in": model.output_names[1]}
    goes_round(calibrated(model, "int8", FRAMES, states), "int8", FRAMES)


def test_states_are_saved(tmp_path):
    q = calibrated(mixing(FUNCTIONS["clamped"]))
    q.save(tmp_path / "q.keras")
    assert intact.export(keras.saving.load_model(tmp_path / "q.keras")) == intact.export(q)


@pytest.mark.parametrize(
    "states, message",
    [
        ({"state": "state_out"}, "Inputs: .*'state_in'"),
        (["state_in"], "Received: .*state_in"),
        ({"state_in": "out"}, "fed back"),
        ({"state_in": "state"}, "Outputs: .*'state_out'"),
    ],
)
def test_states_that_are_none(states, message):
    with pytest.raises(intact.IntactError, match=message):
        intact.quantize_model(gru(), states=states)


def test_a_state_that_is_not_quantized():
    with pytest.raises(intact.IntactError, match="is not quantized"):
        intact.quantize_model(gru(), "weight_only_8", states={"state_in": "state_out"})
