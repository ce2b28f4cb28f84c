"""Random Keras models, made of what the registry knows.

The layers, operations, activations and cases of all ops are the pool, so that a new op
is drawn without a change here.
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from battery import UPSTREAM, all_cases
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from keras import layers, ops

from intact.ops import REGISTRY
from intact.ops.table import DOMAINS
from intact.testing import randomize

BACKEND = keras.backend.backend()
CASES = [(name, case) for name, _, case in all_cases() if (BACKEND, name) not in UPSTREAM]
LAYERS = sorted(
    {
        kind
        for op in REGISTRY
        for kind in op.keras_layers
        if kind.__module__.startswith("keras.") and op.cases
    },
    key=lambda kind: kind.__name__,
)
OPERATIONS = sorted({name for op in REGISTRY for name in op.operations})
ACTIVATIONS = sorted(
    {
        name
        for op in REGISTRY
        for name in (*op.activations, *map(str.lower, op.operations))
        if hasattr(keras.activations, name)
    }
)

# Settings that many layers have, and what to try for them.
SETTINGS: dict[str, list[Any]] = {
    "activation": [None, "relu", "relu6", *ACTIVATIONS],
    "axis": [-1, 1, 2],
    "center": [True, False],
    "cropping": [1],
    "depth_multiplier": [1, 2],
    "epsilon": [1e-3, 1e-6],
    "interpolation": ["nearest", "bilinear"],
    "keepdims": [False, True],
    "max_value": [None, 6.0, 0.5],
    "padding": ["valid", "same", "causal", 1],
    "pool_size": [2, 3],
    "scale": [True, False, 0.5],
    "shared_axes": [None, [1]],
    "strides": [1, 2],
    "use_bias": [True, False],
}
NUMBERS = [2.0, 0.5, -1.0, 1.0, 0.0, -3.7, 100.0, 1e-3]
MERGES = [
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Maximum,
    layers.Minimum,
    layers.Average,
    layers.Concatenate,
]
MAX_RANK, MAX_SIZE = 6, 500


@dataclass
class Sample:
    """A model, data for it, and how it was made, in lines."""

    model: keras.Model
    data: list[np.ndarray]
    lines: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return "\n" + "\n".join(self.lines)


class Wrapped(layers.Layer):
    """A layer that nobody knows, and that computes what a model does."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model

    def call(self, x: Any) -> Any:
        return self.model(x)


@st.composite
def samples(draw: Callable[..., Any], max_steps: int = 8) -> Sample:
    """Random models with random weights and data."""
    keras.utils.clear_session(free_memory=False)
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    garden = _Garden(draw, rng)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        garden.new_input()
    garden.grow(draw(st.integers(1, max_steps)))
    if garden.tensors[-1] is garden.inputs[-1]:
        garden.norm()
    return garden.sample()


class _Garden:
    """Tensors that grow by random steps."""

    def __init__(self, draw: Callable[..., Any], rng: np.random.Generator) -> None:
        self.draw, self.rng = draw, rng
        self.inputs: list[keras.KerasTensor] = []
        self.tensors: list[keras.KerasTensor] = []
        # Layers to be shared, with the shape that each was first called on.
        self.layers: list[tuple[Callable, tuple, str]] = []
        self.names: dict[int, str] = {}
        self.lines: list[str] = []

    def pick(self, options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def chance(self, percent: int) -> bool:
        return self.draw(st.integers(0, 99)) >= 100 - percent

    def name(self, tensor: Any) -> str:
        if isinstance(tensor, list | tuple):
            return f"[{', '.join(map(self.name, tensor))}]"
        return self.names[id(tensor)]

    def add(self, tensor: keras.KerasTensor, line: str) -> keras.KerasTensor:
        if id(tensor) not in self.names:
            name = f"t{len(self.names)}"
            self.names[id(tensor)] = name
            self.lines.append(f"{name} = {line}  # {tensor.dtype} {tensor.shape}")
            self.tensors.append(tensor)
        return tensor

    def new_input(self) -> None:
        if self.chance(8):
            whole = [c.shape for _, c in CASES if c.dtype != "float32" and c.shape]
            shapes = [shape for shape in whole if isinstance(shape, tuple)]
            shape, dtype = self.pick(shapes), "int32"
        else:
            shapes = [c.shape for _, c in CASES if not isinstance(c.shape, list) and c.shape]
            shape, dtype = self.pick([s for s in shapes if None not in s]), "float32"
        if len(shape) == 3 and self.chance(7):
            shape = (None, None, shape[-1])
        made = keras.Input(shape, dtype=dtype)
        self.inputs.append(self.add(made, f"Input({shape}, dtype={dtype!r})"))

    # Tensors --------------------------------------------------------------------------

    def tensor(self) -> keras.KerasTensor:
        """A tensor of real values; the latest most often."""
        found = [t for t in self.tensors if t.dtype == "float32"]
        if not found:
            (x, *_) = self.tensors
            found = [self.call(layers.Embedding(7, 4), x, "Embedding(7, 4)", share=False)]
        recent = found[::-1]
        return self.pick(recent[:2] if self.chance(60) else recent)

    def fit(self, x: keras.KerasTensor, shape: tuple[int, ...]) -> keras.KerasTensor:
        """A tensor as one of another shape."""
        if x.shape[1:] == shape:
            return x
        if None in x.shape[1:]:
            axes = tuple(range(1, len(x.shape) - 1))
            x = self.add(ops.max(x, axis=axes), f"ops.max({self.name(x)}, axis={axes})")
        size, rank = math.prod(shape), len(x.shape)
        if math.prod(x.shape[1:]) != size:
            if rank > 2 and len(shape) != rank - 1:
                x = self.call(layers.Flatten(), x, "Flatten()")
            if x.shape[1:-1] == shape[:-1]:
                x = self.call(layers.Dense(shape[-1]), x, f"Dense({shape[-1]})")
            else:
                x = x if len(x.shape) == 2 else self.call(layers.Flatten(), x, "Flatten()")
                x = self.call(layers.Dense(size), x, f"Dense({size})")
        if x.shape[1:] != shape:
            x = self.call(layers.Reshape(shape), x, f"Reshape({shape})")
        return x

    def bounded(self, x: keras.KerasTensor, low: Any, high: Any) -> keras.KerasTensor:
        """A tensor kept where a function is defined."""
        if low is None and high is None:
            return x
        low, high = -100.0 if low is None else low, 100.0 if high is None else high
        return self.add(ops.clip(x, low, high), f"ops.clip({self.name(x)}, {low}, {high})")

    def call(self, layer: Callable, x: Any, line: str, share: bool = True) -> keras.KerasTensor:
        """Call a layer or function; what Keras itself does not take is no model."""
        many = isinstance(x, list) and not isinstance(layer, layers.Layer)
        y = layer(*x) if many else layer(x)
        if isinstance(y, list | tuple):
            y = self.pick(list(y))
        sizes = [size or 1 for size in y.shape[1:]]
        if not (2 <= len(y.shape) <= MAX_RANK and 0 < math.prod(sizes) <= MAX_SIZE):
            raise ValueError("too large a result")
        if share and isinstance(layer, layers.Layer) and not isinstance(x, list):
            self.layers.append((layer, x.shape, layer.name))
            line = f"{line[:-1]}{'' if line.endswith('()') else ', '}name={layer.name!r})"
        return self.add(y, f"{line}({self.name(x)})")

    # Steps ----------------------------------------------------------------------------

    def grow(self, steps: int, nested: bool = False) -> None:
        kinds = [
            self.case,
            self.case,
            self.case,
            self.layer,
            self.layer,
            self.operation,
            self.activation,
            self.merge,
            self.merge,
            self.operator,
            self.index,
            self.move,
            self.reduce,
            self.share,
            self.norm,
        ]
        if not nested:
            kinds.append(self.nest)
        for _ in range(steps):
            step = self.pick(kinds)
            try:
                step()
            except HypothesisException:
                raise
            except Exception:
                # Not a model in Keras: no step.
                continue

    def case(self) -> None:
        name, case = self.pick(CASES)
        if case.dtype != "float32" or case.shape == ():
            return
        shapes = case.shape if isinstance(case.shape, list) else [case.shape]
        given = []
        for shape in shapes:
            x = self.tensor()
            direct = len(shapes) == 1 and len(x.shape) == len(shape) + 1 and self.chance(60)
            x = x if direct or None in shape else self.fit(x, shape)
            # Scores that differ by more than 12 see through a mask.
            limits = case.low >= 0 or "Attention" in name
            given.append(self.bounded(x, case.low, case.high) if limits else x)
        made = case.build()
        self.call(made, given if len(given) > 1 else given[0], f"{{{name}}}")

    def layer(self) -> None:
        kind = self.pick([k for k in LAYERS if k is not layers.Embedding])
        args: list[Any] = []
        config: dict[str, Any] = {}
        for parameter in inspect.signature(kind).parameters.values():
            if parameter.name in ("self", "kwargs"):
                continue
            if parameter.default is parameter.empty:
                args.append(self.pick([3, 2, 1, 4]))
            elif parameter.name in SETTINGS and self.chance(40):
                config[parameter.name] = self.pick(SETTINGS[parameter.name])
        if BACKEND == "torch":
            # There Keras computes something else: see `UPSTREAM`, and the last axis only.
            if "AveragePooling" in kind.__name__:
                config.pop("padding", None)
            if kind in (layers.LayerNormalization, layers.RMSNormalization):
                config.pop("axis", None)
        made = kind(*args, **config)
        text = [*map(repr, args), *(f"{k}={v!r}" for k, v in config.items())]
        self.call(made, self.tensor(), f"{kind.__name__}({', '.join(text)})")

    def operation(self) -> None:
        name = self.pick(OPERATIONS)
        title = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        function = getattr(ops, title, None)
        if function is None:
            return
        x = self.bounded(self.tensor(), *DOMAINS.get(name, (None, None)))
        args: list[Any] = [x]
        config: dict[str, Any] = {}
        for i, parameter in enumerate(inspect.signature(function).parameters.values()):
            if i and parameter.default is parameter.empty:
                tensors = parameter.name in ("x2", "y")
                number = self.pick([*NUMBERS, 2, -1, 1, 3])
                args.append(
                    self.fit(self.tensor(), x.shape[1:]) if tensors and self.chance(60) else number
                )
            elif i and parameter.name in ("axis", "keepdims") and self.chance(70):
                config[parameter.name] = self.pick(SETTINGS[parameter.name])
        y = function(*args, **config)
        if isinstance(y, list | tuple):
            y = self.pick(list(y))
        texts = [self.name(a) if isinstance(a, keras.KerasTensor) else repr(a) for a in args]
        texts += [f"{k}={v!r}" for k, v in config.items()]
        line = f"ops.{title}({', '.join(texts)})"
        self.call(lambda _: y, x, line, share=False)
        self.lines[-1] = self.lines[-1].replace(f"({self.name(x)})  #", "  #")

    def activation(self) -> None:
        name = self.pick(ACTIVATIONS)
        self.call(layers.Activation(name), self.tensor(), f"Activation({name!r})")

    def merge(self) -> None:
        kind = self.pick(MERGES)
        x = self.tensor()
        shape = x.shape[1:]
        tensors = [x]
        config: dict[str, Any] = {}
        if kind is layers.Concatenate:
            config["axis"] = self.draw(st.integers(1, len(shape)))
        for _ in range(1 if kind is layers.Subtract else self.pick([1, 1, 2])):
            other = self.tensor()
            if None not in shape:
                wanted = list(shape)
                if self.chance(25):
                    axis = self.draw(st.integers(0, len(shape) - 1))
                    wanted[axis] = 1
                if self.chance(10) and kind is not layers.Concatenate:
                    wanted = wanted[1:] or wanted
                other = self.fit(other, tuple(wanted))
            tensors.append(other)
        if self.chance(30):
            tensors.reverse()
        text = ", ".join(f"{k}={v!r}" for k, v in config.items())
        self.call(kind(**config), tensors, f"{kind.__name__}({text})")

    def operator(self) -> None:
        x = self.tensor()
        number: Any = self.pick(NUMBERS)
        kind = self.draw(st.integers(0, 3))
        channels = x.shape[-1]
        if kind == 1 and channels:
            number = self.array((channels,))
        elif kind == 2 and None not in x.shape[1:]:
            number = self.array((1, *x.shape[1:]))
        elif kind == 3 and None not in x.shape[1:]:
            number = self.array((1, *(self.pick([n, 1]) for n in x.shape[1:])))
        functions: list[tuple[Callable, str]] = [
            (lambda x: x + number, "{x} + {n}"),
            (lambda x: number - x, "{n} - {x}"),
            (lambda x: x * number, "{x} * {n}"),
            (lambda x: x / number, "{x} / {n}"),
            (lambda x: x - number, "{x} - {n}"),
            (lambda x: -x, "-{x}"),
            (lambda x: abs(x), "abs({x})"),
            (lambda x: x**2, "{x} ** 2"),
            (lambda x: ops.maximum(x, number), "ops.maximum({x}, {n})"),
            (lambda x: ops.minimum(number, x), "ops.minimum({n}, {x})"),
        ]
        function, text = self.pick(functions)
        if "/" in text and not np.all(number):
            return
        shown = number if np.ndim(number) == 0 else f"array{np.shape(number)}"
        y = function(x)
        self.call(lambda _: y, x, "y", share=False)
        self.relabel(text.format(x=self.name(x), n=shown))

    def relabel(self, text: str) -> None:
        start, end = self.lines[-1].split(" = ")[0], self.lines[-1].split("  # ")[-1]
        self.lines[-1] = f"{start} = {text}  # {end}"

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        values = self.rng.normal(size=shape).astype("float32")
        if self.chance(15):
            values.reshape(-1)[0] = 0.0
        return values

    def index(self) -> None:
        x = self.tensor()
        key: list[Any] = [slice(None)]
        for size in x.shape[1:]:
            size = size or 3
            part = self.draw(st.integers(0, 5))
            bound = st.one_of(st.none(), st.integers(-size, size))
            if part == 0:
                key.append(self.draw(st.integers(-size, size - 1)))
            elif part in (1, 2):
                key.append(slice(self.draw(bound), self.draw(bound)))
            elif part == 3:
                step = self.pick([2, -1, 3, -2])
                key.append(slice(self.draw(bound), self.draw(bound), step))
            elif part == 4 and self.chance(30):
                key.append(None)
                key.append(slice(None))
            else:
                key.append(slice(None))
        y = x[tuple(key)]
        self.call(lambda _: y, x, "y", share=False)
        self.relabel(f"{self.name(x)}[{key}]")

    def move(self) -> None:
        x = self.tensor()
        sizes = list(x.shape[1:])
        if None in sizes:
            return
        kind = self.draw(st.integers(0, 3))
        if kind == 0 and len(sizes) > 1:
            dims = tuple(self.draw(st.permutations(range(1, len(sizes) + 1))))
            self.call(layers.Permute(dims), x, f"Permute({dims})")
        elif kind == 1:
            factors = self._factors(math.prod(sizes))
            self.call(layers.Reshape(factors), x, f"Reshape({factors})")
        elif kind == 2:
            axis = self.draw(st.integers(1, len(sizes) + 1))
            y = ops.expand_dims(x, axis)
            self.call(lambda _: y, x, "y", share=False)
            self.relabel(f"ops.expand_dims({self.name(x)}, {axis})")
        else:
            pads = [(0, 0), *((self.pick([0, 0, 1]), self.pick([0, 0, 2])) for _ in sizes)]
            y = ops.pad(x, pads)
            self.call(lambda _: y, x, "y", share=False)
            self.relabel(f"ops.pad({self.name(x)}, {pads})")

    def _factors(self, size: int) -> tuple[int, ...]:
        factors = []
        while size > 1 and len(factors) < 3:
            divisors = [d for d in range(1, size + 1) if size % d == 0]
            factors.append(self.pick(divisors))
            size //= factors[-1]
        return (*factors, size) if size > 1 or not factors else tuple(factors)

    def reduce(self) -> None:
        x = self.tensor()
        name = self.pick(["mean", "sum", "max", "min", "var", "std"])
        choices = list(range(1, len(x.shape)))
        axes = tuple(sorted(self.draw(st.sets(st.sampled_from(choices), min_size=1))))
        keepdims = self.chance(60)
        y = getattr(ops, name)(x, axis=axes, keepdims=keepdims)
        self.call(lambda _: y, x, "y", share=False)
        self.relabel(f"ops.{name}({self.name(x)}, axis={axes}, keepdims={keepdims})")

    def norm(self) -> None:
        """A batch norm behind anything, perhaps one that is there already."""
        x = self.tensor()
        old = [e for e in self.layers if isinstance(e[0], layers.BatchNormalization)]
        if old and self.chance(50):
            layer, shape, name = self.pick(old)
            x = x if x.shape[-1] == shape[-1] else self.fit(x, shape[1:])
            self.call(layer, x, name, share=False)
            return
        self.call(layers.BatchNormalization(), x, "BatchNormalization()")

    def share(self) -> None:
        if not self.layers:
            return
        layer, shape, name = self.pick(self.layers)
        x = self.tensor()
        if not self.chance(35) and None not in shape[1:]:
            x = self.fit(x, shape[1:])
        self.call(layer, x, name, share=False)

    def nest(self) -> None:
        x = self.tensor()
        inner = _Garden(self.draw, self.rng)
        # Layers of its own; and perhaps some of the outer model's.
        if self.chance(20):
            inner.layers = list(self.layers)
        inner.names = {**self.names}
        start = keras.Input(x.shape[1:])
        inner.inputs.append(inner.add(start, f"Input({x.shape[1:]})"))
        inner.grow(self.draw(st.integers(1, 3)), nested=True)
        outputs = [inner.tensors[-1]]
        if len(inner.tensors) > 2 and self.chance(30):
            outputs.append(self.pick(inner.tensors))
        model = keras.Model(start, outputs if len(outputs) > 1 else outputs[0])
        self.lines += [f"  {line}" for line in inner.lines]
        text = f"Model({inner.name(start)}, {inner.name(outputs)})"
        if self.chance(25):
            model, text = Wrapped(model), f"Wrapped({text})"
        self.names.update(inner.names)
        self.call(model, x, text, share=False)
        self.layers.append((model, x.shape, model.name))

    # The whole ------------------------------------------------------------------------

    def sample(self) -> Sample:
        outputs = [self.tensors[-1]]
        for _ in range(self.pick([0, 0, 0, 1, 2])):
            # Also one that is read inside, one that is there already, or an input.
            outputs.append(self.pick(self.tensors[::-1]))
        kind = self.pick(["plain", "plain", "list", "dict"])
        if kind == "dict":
            structure: Any = {f"out_{i}": t for i, t in enumerate(outputs)}
        else:
            structure = outputs if kind == "list" or len(outputs) > 1 else outputs[0]
        self.lines.append(f"Model({self.name(self.inputs)}, {self.name(outputs)}) as {kind}")
        inputs = self.inputs if len(self.inputs) > 1 else self.inputs[0]
        model = keras.Model(inputs, structure)
        randomize(model, self.rng)
        if self.chance(15):
            self.spoil(model)
        data = [self.numbers(t) for t in self.inputs]
        return Sample(model, data, self.lines)

    def spoil(self, model: keras.Model) -> None:
        """Weights that training may leave behind: a channel of zeros, or all alike."""
        value = self.pick([0.0, 0.0, 1e-12, 1e4])
        for variable in model.weights:
            channels = variable.shape[-1] if len(variable.shape) else 0
            if "float" in variable.dtype and channels and self.chance(50):
                values = np.array(ops.convert_to_numpy(variable))
                values[..., 0] = value
                variable.assign(values)
        self.lines.append(f"# the first channels of some weights are {value}")

    def numbers(self, tensor: keras.KerasTensor) -> np.ndarray:
        shape = (16, *(5 + i if size is None else size for i, size in enumerate(tensor.shape[1:])))
        if tensor.dtype != "float32":
            return self.rng.integers(0, 4, size=shape).astype(tensor.dtype)
        scale, offset = (
            self.pick([1.0, 1.0, 1.0, 30.0, 0.01]),
            self.pick([0.0, 0.0, 0.0, 1.0, -5.0]),
        )
        values = (self.rng.uniform(-1, 1, size=shape) * scale + offset).astype("float32")
        kind = self.draw(st.integers(0, 19))
        if kind == 18:
            values[..., 0] = offset
        elif kind == 19:
            values[:] = offset
        if kind >= 18 or scale != 1 or offset:
            self.lines.append(f"# {self.name(tensor)}: scale {scale}, offset {offset}, kind {kind}")
        return values
