"""No graph has a division that a compiler may replace by an approximation.

Eager results are as IEEE 754 says; compiled ones need not be. TensorFlow makes `1 / x` an
approximate reciprocal, and both TensorFlow and XLA multiply by the inverse of a constant divisor.
XLA does so for a divisor that is broadcast, too.
"""

import keras
import numpy as np
import pytest
from battery import all_cases
from keras import layers, ops
from small import compiled, host, ready

import intact
from intact.numerics.backend_kernels import inverse
from intact.numerics.exact import divide
from intact.testing import build_model

BACKEND = keras.backend.backend()

MODELS = {
    "batch norm without gamma": (lambda: layers.BatchNormalization(scale=False), (5, 3)),
    "a clamp at 1": (lambda: layers.ReLU(1.0), (6,)),
    "a comparison with 1": (lambda: lambda x: ops.where(x > 1.0, x, 0.5 * x), (6,)),
    "an inverse": (lambda: lambda x: 1.0 / ops.relu(x), (6,)),
    "a remainder": (lambda: lambda x: ops.mod(x, 0.3), (6,)),
    "a mean over an open size": (lambda: lambda x: ops.mean(x, axis=1), (None, 3)),
}
# One case for each way of rounding. Keras' own softmax, of values that are not quantized yet,
# divides by sums that it spreads.
ROUNDINGS = {op.kernel_rounding: case for name, op, case in all_cases() if name.endswith("-0")}
ROUNDINGS.pop("softmax")


def tensorflow_divisions(function, inputs):
    """The inexact divisions of a TensorFlow graph, by name."""
    import tensorflow as tf
    from tensorflow.python.framework.tensor_util import MakeNdarray

    specs = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    graph = tf.function(function).get_concrete_function(*specs).graph.as_graph_def()
    for nodes in (graph.node, *(f.node_def for f in graph.library.function)):
        constants = {n.name: MakeNdarray(n.attr["value"].tensor) for n in nodes if n.op == "Const"}
        for node in nodes:
            if node.op != "RealDiv":
                continue
            a, b = (constants.get(name.split(":")[0]) for name in node.input[:2])
            if (a is None) != (b is None) and (a is None or (a == 1).all()):
                yield node.name


def programs(parameters):
    """The JAX programs among the parameters of an equation, such as the branches of a choice."""
    for value in parameters.values():
        for part in value if isinstance(value, tuple) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def jax_divisions(function, inputs):
    """The inexact divisions of a JAX program."""
    import jax
    from jax.extend.core import Literal

    def walk(program):
        constants, spread = {*program.constvars}, set()
        for equation in program.eqns:
            name, operands = equation.primitive.name, equation.invars
            if name == "broadcast_in_dim" and not isinstance(operands[0], Literal):
                spread.update(equation.outvars)
            if name == "div":
                a, b = (isinstance(v, Literal) or v in constants for v in operands)
                if not a and (b or operands[1] in spread):
                    yield str(equation)
            for inner in programs(equation.params):
                yield from walk(inner)

    specs = [jax.ShapeDtypeStruct([n or 2 for n in x.shape], x.dtype) for x in inputs]
    yield from walk(jax.make_jaxpr(function)(*specs).jaxpr)


def divisions(model):
    """The inexact divisions of a quantized model in inference."""
    q = ready(intact.quantize_model(model))
    walk = {"tensorflow": tensorflow_divisions, "jax": jax_divisions}[BACKEND]
    return list(walk(lambda *x: q(list(x) if len(x) > 1 else x[0], training=False), q.inputs))


@pytest.mark.skipif(BACKEND == "torch", reason="torch computes op by op")
@pytest.mark.parametrize("case", ROUNDINGS.values(), ids=ROUNDINGS)
def test_no_rounding_divides_inexactly(case):
    assert not divisions(build_model(case, np.random.default_rng(0)))


@pytest.mark.skipif(BACKEND == "torch", reason="torch computes op by op")
@pytest.mark.parametrize(("build", "shape"), MODELS.values(), ids=MODELS)
def test_no_model_divides_inexactly(build, shape):
    x = keras.Input(shape)
    assert not divisions(keras.Model(x, build()(x)))


def test_quotients_are_exact_in_a_graph(rng):
    x = rng.uniform(1e-3, 50.0, 4096).astype("float32")
    np.testing.assert_array_equal(host(compiled(inverse)(x)), np.float32(1) / x)
    np.testing.assert_array_equal(host(compiled(lambda x: divide(1.0, x))(x)), np.float32(1) / x)
    constant = np.float32(0.3)
    for sign in (1, -1):
        of_constant = compiled(lambda x, sign=sign: divide(x, sign * constant))(x)
        np.testing.assert_array_equal(host(of_constant), x / (sign * constant))
    of_scalar = compiled(lambda x, s: divide(x, s))(x, constant)
    np.testing.assert_array_equal(host(of_scalar), x / constant)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_quotients_of_one_value_that_is_spread_are_exact_in_a_graph(size, rng):
    # XLA multiplies by the inverse where it knows that all divisors are the same.
    spread = np.full(size, 1 / 127, "float32")
    quotient = compiled(lambda a, b: divide(a * ops.convert_to_tensor(spread), b))
    for a, b in rng.uniform(1e-3, 0.1, (20, 2)).astype("float32"):
        np.testing.assert_array_equal(host(quotient(a, b)), a * spread / b)


def test_batch_norm_without_gamma_equals_litert(rng):
    x = keras.Input((4, 4, 16))
    y = layers.Conv2D(64, 3, use_bias=False)(x)
    norm = layers.BatchNormalization(scale=False)
    model = keras.Model(x, norm(y))
    norm.moving_variance.assign(rng.uniform(0.2, 4.0, 64))
    data = rng.normal(size=(64, 4, 4, 16)).astype("float32")
    q = intact.quantize_model(model)
    intact.calibrate(q, data, verbose=0)
    assert intact.compare(q, intact.export(q), data).different == 0
