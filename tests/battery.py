"""From an op's case to a model with lively weights, and data for it."""

import inspect

import keras
import numpy as np

from intact.ops import REGISTRY, Case

# Keras on torch repeats the edge where SAME average pooling leaves values out of the mean,
# unlike its other backends and every runtime.
UPSTREAM = {("torch", "AveragePooling2D-1")}
# On JAX, Keras' own `predict` begins every batch with the same state.
UPSTREAM |= {("jax", f"SequenceLSTM-{case}") for case in range(3)}

# Cases that lose something in 8 bits, by their nature: values so small that they are 0 are
# compared with 0, and a part of a concatenation is a thousandth of the other.
LOSSY = {"Compare-4", "Concatenate-4"}


def all_cases():
    """`(id, op, case)` of every registered op."""
    return [(f"{op.__name__}-{i}", op, case) for op in REGISTRY for i, case in enumerate(op.cases)]


def build_model(case: Case, rng: np.random.Generator) -> keras.Model:
    """The model of a case, with random weights, biases and statistics."""
    shapes = case.shape if isinstance(case.shape, list) else [case.shape]
    inputs = [
        keras.Input(shape, case.batch, case.dtype, name=f"input_{i}")
        for i, shape in enumerate(shapes)
    ]
    made = case.build()
    if isinstance(made, keras.layers.Layer):
        outputs = made(inputs if len(inputs) > 1 else inputs[0])
    else:
        assert inspect.isfunction(made)
        outputs = made(*inputs)
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)
    randomize(model, rng)
    return model


def randomize(model: keras.Model, rng: np.random.Generator) -> None:
    """Give a model random weights, biases and statistics."""
    for layer in model.layers:
        for variable in layer.weights:
            value = rng.normal(size=variable.shape) * 0.5
            name = variable.path.rsplit("/", 1)[-1]
            if name in ("gamma", "moving_variance", "variance"):
                value = np.abs(value) + 0.2
            if name == "gamma":
                value[::3] *= -1
            if name not in ("mean", "variance", "count", "seed_generator_state"):
                variable.assign(value)


def make_data(case: Case, rng: np.random.Generator, samples: int = 64):
    """Random inputs of a case: one array, or a list."""
    shapes = case.shape if isinstance(case.shape, list) else [case.shape]
    whole = case.dtype.startswith("int")
    arrays = [
        rng.uniform(case.low, case.high + whole, size=(samples, *shape)).astype(case.dtype)
        for shape in shapes
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def first(data, count: int):
    """The first samples of one or several arrays."""
    return [a[:count] for a in data] if isinstance(data, list) else data[:count]
