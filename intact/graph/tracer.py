"""The tracer: builds the canonical graph, call by call."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import numpy as np

from intact.errors import InvalidModelError, UnsupportedLayerError
from intact.graph.checks import check_finite, check_whole
from intact.graph.displaced import moves_batch, trace_displaced
from intact.graph.dtypes import in_one_type
from intact.graph.empty import is_empty, without_empty
from intact.graph.expansion import expand_call, expand_function, fold_known
from intact.graph.looping import LoopTracing
from intact.graph.masks import Masks, RunMasks, by_position, is_any, with_masks
from intact.graph.rows import trace_along_rows
from intact.graph.ruling import RuleOf, Ruling
from intact.graph.view import Node, is_graph, made_by, output_names, structure, view
from intact.layers.base import QuantizedLayer, Together
from intact.numerics.tensors import is_symbolic, is_trainable, is_whole, to_numpy
from intact.ops.base import ANY_WHOLE
from intact.ops.constant import Constant
from intact.ops.logic import Select
from intact.ops.moves import MOVES, SizedReshape, channels_last, emit_moved
from intact.ops.refusals import reason_of
from intact.ops.registry import find_op, known_class, known_config, share_code, without_values
from intact.ops.slicing import Slice, Take
from intact.ops.whole import Convert, WholeNumber, counts, fits


class Tracer(LoopTracing, Ruling):
    """Builds the canonical graph; ops' `trace` methods get it as an argument.

    Args:
        rule_of: As for `canonicalize`.
        unrolled: As for `LoopTracing`.
    """

    def __init__(
        self, rule_of: RuleOf | None = None, unrolled: Collection[int] | None = ()
    ) -> None:
        LoopTracing.__init__(self, unrolled)
        Ruling.__init__(self, rule_of)
        self._copies: dict[Any, keras.layers.Layer] = {}
        self._names: set[str] = set()
        self._path: list[str] = []
        self._prefix = ""
        # Temporary objects must outlive the tracing, because their ids are keys.
        self.kept: list[Any] = []
        self._made: dict[Any, keras.layers.Layer] = {}
        # The ids of layers that are made for the calls that are being emitted.
        self._new: set[int] = set()
        self._converted: dict[tuple[int, str], keras.KerasTensor] = {}
        self.integer_inputs: set[str] = set()
        # By the id of a user's model, Keras' names of its outputs.
        self.output_names: dict[int, list[str]] = {}
        # Names of layers whose losses, and of weights whose functions, the new graph lacks.
        self.not_kept: list[str] = []
        self.not_trained: list[str] = []
        # The masks of the call that an op's `trace` is rewriting.
        self.masks: Masks = {}
        # The tensors of the new graph whose masks a call of the model takes away.
        self.unmasked: set[int] = set()
        # By the id of a tensor, how many of its rows belong to a sample.
        self.factors: dict[int, int] = {}
        # By the id of a layer, the tensors that its calls have left in its attributes.
        self.attributes: dict[int, dict[str, Any]] = {}
        # By the id of a tensor that no input reaches and that does not train, its values.
        self.known: dict[int, Any] = {}

    def new_input(self, tensor: keras.KerasTensor, dtype: str | None = None) -> keras.KerasTensor:
        """An input of the new model, like one of the old; real ones are float32."""
        dtype = dtype or (tensor.dtype if is_whole(tensor) else "float32")
        if dtype not in (*ANY_WHOLE, "int8", "float32"):
            raise InvalidModelError(
                f"Input {tensor.name!r} is of type {dtype}, which LiteRT does not take. Build the "
                f"model with a `keras.Input` of real values, or of {', '.join(ANY_WHOLE)}."
            )
        symbol = keras.Input(batch_shape=tensor.shape, dtype=dtype, name=self.unique(tensor.name))
        self.anchor = symbol if self.anchor is None else self.anchor
        return symbol

    def wants_integers(self, tensor: keras.KerasTensor) -> bool:
        """Note that a tensor holds indices: an input of unknown type then becomes int32.

        Returns:
            Whether it is an input, or a part of one.
        """
        while isinstance(made_by(tensor).layer, (*MOVES, Slice, Take)):
            (tensor,) = made_by(tensor).inputs
        if made_by(tensor).is_input and not is_whole(tensor):
            self.integer_inputs.add(tensor.name)
        return made_by(tensor).is_input

    def once(self, key: Any, make: Callable[[], keras.layers.Layer]) -> keras.layers.Layer:
        """The layer that stands for a user's object; it is made at the first call with a key.

        Args:
            key: What it stands for; the object itself, so that shared weights stay shared.
            make: Makes the layer.
        """
        parts = key if isinstance(key, tuple) else (key,)
        ids = tuple(part if isinstance(part, str | int) else id(part) for part in parts)
        if ids not in self._made:
            self._made[ids] = make()
            self.kept.append(parts)
        return self._made[ids]

    def constant(
        self,
        value: Any,
        name: str,
        rank: int = 0,
        dtype: str = "float32",
        broadcast: bool = False,
        shape: tuple[int, ...] = (),
        kind: type[Constant] = Constant,
    ) -> keras.KerasTensor:
        """A variable or array of the user's as a tensor of the new graph.

        Args:
            value: The variable or array.
            name: A name for it.
            rank: The number of axes that it must have; ones are put before its own.
            dtype: The type of the tensor.
            broadcast: Whether its first size, 1, goes with any number of samples.
            shape: Another shape for it; its own by default.
            kind: The class of the layer that holds it.

        Returns:
            The tensor.
        """

        def make() -> keras.layers.Layer:
            values = to_numpy(value)
            if is_whole(values) and not fits(values, dtype):
                raise UnsupportedLayerError(
                    f"Constant {name!r} has no place in {dtype}. Received: {values.min()} to "
                    f"{values.max()}."
                )
            values = values.astype(dtype)
            values = values.reshape(shape or (1,) * (rank - values.ndim) + values.shape)
            trains = is_trainable(value)
            constant = kind(
                values.shape, broadcast=broadcast, name=name, trainable=trains, dtype=dtype
            )
            constant.value.regularizer = getattr(value, "regularizer", None)
            constant.value.assign(values)
            return constant

        key = (value, "constant", rank, dtype, int(broadcast), str(shape))
        return self.emit(self.once(key, make), self.anchor)

    def convert(self, x: keras.KerasTensor, dtype: str, name: str = "") -> keras.KerasTensor:
        """A tensor of whole numbers or truth values in another type.

        Args:
            x: A tensor of the new graph.
            dtype: The type; real values are of one type alone, float32.
            name: A name for the layer, if one is needed.

        Returns:
            The tensor; the same one whenever it is asked for.
        """
        dtype = "float32" if "float" in dtype else dtype
        name = name or f"{made_by(x).layer.name}_{dtype}"
        if x.dtype == dtype:
            return x
        if (id(x), dtype) not in self._converted:
            if x.dtype == "bool" and dtype == "float32":
                # A choice has integer kernels on more targets.
                parts = (self.constant(v, f"{name}_{v:g}", len(x.shape)) for v in (1.0, 0.0))
                y = self.emit(Select(name=name), [*parts, x])
            else:
                if dtype not in (*ANY_WHOLE, "float32"):
                    self.refuse(made_by(x).layer, f"its values cannot be of type {dtype}")
                y = self.emit(Convert(dtype=dtype, name=name), x)
            self._converted[id(x), dtype] = y
        return self._converted[id(x), dtype]

    def unique(self, name: str) -> str:
        """A layer name that is not taken yet, similar to the given one."""
        name = name.replace("/", "_")
        candidate, n = name, 1
        while candidate in self._names:
            candidate, n = f"{name}_{n}", n + 1
        self._names.add(candidate)
        return candidate

    def where(self, layer: Any) -> str:
        """A layer's path, for errors."""
        return "/".join([*self._path, str(getattr(layer, "name", layer))])

    def trace_model(self, model: Any, args: tuple, kwargs: dict) -> Any:
        """Inline a model that is called on tensors of the new graph."""
        if not is_graph(model):
            return self.trace_into(model, args, kwargs)
        self.output_names[id(model)] = output_names(model)
        _, outputs = structure(model)
        graph = view(model)
        flat_args = keras.tree.flatten((args, kwargs))
        tensors: dict[int, Any] = dict(zip(map(id, graph.inputs), flat_args, strict=True))

        def new(value: Any) -> Any:
            if not isinstance(value, keras.KerasTensor):
                return value
            if id(value) not in tensors:
                # A part of a mask that stands beside a tensor.
                trace(made_by(value))
            return tensors[id(value)]

        run_masks = RunMasks(new, self.unmasked)

        def trace(node: Node) -> None:
            if all(map(is_empty, node.outputs)):
                tensors.update((id(t), t) for t in node.outputs)
                return
            args, kwargs = keras.tree.map_structure(new, (node.args, node.kwargs))
            args = without_empty(self, node, args)
            result = self.trace(node.layer, args, kwargs, run_masks.before(node))
            run_masks.after(node)
            parts = keras.tree.flatten(result)
            if len(parts) > len(node.outputs):
                # An output that Keras knows to be None has no record.
                parts = [part for part in parts if part is not None]
            for old, out in zip(node.outputs, parts, strict=True):
                tensors[id(old)] = out

        for node in graph.nodes:
            if not node.is_input and all(id(t) in tensors for t in node.inputs):
                trace(node)
        return keras.tree.map_structure(new, outputs)

    def trace(self, layer: Any, args: tuple, kwargs: dict, masks: Masks | None = None) -> Any:
        """Rewrite one call of a layer or operation.

        Args:
            layer: The user's layer or operation.
            args: Its arguments; tensors are those of the new graph.
            kwargs: Its keyword arguments, likewise.
            masks: The masks that Keras hands on beside the tensors, by the tensors' ids.

        Returns:
            The outputs in the new graph.
        """
        if (folded := fold_known(self, layer, args, kwargs)) is not None:
            return folded
        if moves_batch(self, layer, args, kwargs):
            return trace_displaced(self, layer, args, kwargs)
        if (rows := trace_along_rows(self, layer, args, kwargs)) is not None:
            return rows
        outputs = self._trace_call(layer, args, kwargs, masks or {})
        activity = getattr(layer, "activity_regularizer", None)
        for tensor in keras.tree.flatten(outputs) if activity is not None else ():
            self._regularize(layer, made_by(tensor), activity)
        return outputs

    def _regularize(self, layer: Any, node: Node, activity: Any) -> None:
        """Note that a call computes the output of a layer with an activity regularizer."""
        if node.is_input:
            self.not_kept.append(layer.name)
            return
        before = getattr(node.layer, "activity", None)
        node.layer.activity = activity if before is None else Together([before, activity])

    def _trace_call(self, layer: Any, args: tuple, kwargs: dict, masks: Masks) -> Any:
        kwargs = {k: v for k, v in kwargs.items() if k != "training" and v is not None}
        args, kwargs = by_position(layer, args, kwargs)
        own = type(layer).__module__.startswith("intact.ops.") and type(layer) is not SizedReshape
        if isinstance(layer, QuantizedLayer) or own:
            return self._itself(layer)(*args, **kwargs)
        op = find_op(layer)
        if counts(layer, keras.tree.flatten((args, kwargs))):
            op = WholeNumber()
        if op is not None:
            # A ConvLSTM's channels come after its steps.
            rnn = isinstance(layer, keras.layers.RNN)
            first = getattr(layer, "data_format", None) == "channels_first" and not rnn
            args, kwargs = with_masks(self, layer, args, kwargs, masks, op.masks and not first)
            self.masks = masks
            with self._asking(layer, known=True):
                if first and isinstance(layer, keras.layers.Layer):
                    return channels_last(layer, args[0], self)
                outputs = op.trace(layer, args, kwargs, self)
                check_whole(self, layer, args, kwargs, outputs)
                return outputs
        if not is_any(kwargs.get("mask")):
            kwargs.pop("mask", None)
        if isinstance(layer, keras.Model) and not masks:
            self._path.append(layer.name)
            outputs = self.trace_model(layer, args, kwargs)
            self._path.pop()
            return outputs
        if isinstance(layer, keras.layers.Layer) and reason_of(layer) is None:
            with self._asking(layer, known=False):
                return self.trace_into(layer, args, kwargs, masks)
        self.refuse(layer, reason_of(layer) or "there is no integer form of this operation")

    def trace_into(
        self, layer: keras.layers.Layer, args: tuple, kwargs: dict, masks: Masks | None = None
    ) -> Any:
        """Rewrite a layer that no op stands for as the operations of its `call`."""
        return expand_call(self, layer, args, kwargs, masks or {})

    def expand(self, layer: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Rewrite a layer as a function of layers and `keras.ops`.

        Args:
            layer: The layer, for names and errors.
            function: What it computes, of symbolic tensors.
            *args: Its arguments; tensors are those of the new graph.
            **kwargs: Its keyword arguments, likewise.

        Returns:
            The outputs in the new graph.
        """
        return expand_function(self, layer, function, args, kwargs)

    @contextlib.contextmanager
    def scope(self, layer: Any) -> Iterator[None]:
        """Inside a `with` block, prefix the names of emitted layers with that of a layer."""
        outer = self._prefix
        if not isinstance(layer, keras.Model):
            # Parts of many layers have the same names, such as "query".
            self._prefix = f"{outer}_{layer.name}" if outer else layer.name
        self._path.append(layer.name)
        try:
            yield
        finally:
            self._path.pop()
            self._prefix = outer

    def refuse(self, layer: Any, reason: str) -> None:
        """Raise the error for a layer that cannot be handled."""
        raise UnsupportedLayerError(
            f"{type(layer).__name__} {self.where(layer)!r} is not supported: {reason}. "
            "Replace it by supported layers (docs/supported.md lists them), or register an op of "
            "your own with `intact.register_op`."
        )

    def emit(
        self, layer: keras.layers.Layer, inputs: Any, range_limit: Any = None, **overrides: Any
    ) -> Any:
        """Call a copy of a layer in the new graph; an inline activation becomes a layer.

        Args:
            layer: The user's layer, or one that a `trace` has just made.
            inputs: Tensors of the new graph.
            range_limit: A function from bits to where the range of the output may end, or None.
            **overrides: Changes to the layer's config.

        Returns:
            The output tensor.
        """
        inputs = keras.tree.map_structure(lambda x: self._tensor(x, layer), inputs)
        inputs, dtype = in_one_type(self, layer, inputs)
        moved = emit_moved(self, layer, inputs, overrides)
        if moved is not None:
            return moved
        if not overrides and self._needs_no_copy(layer, dtype):
            return self._emit_itself(layer, inputs, range_limit)
        config = {**known_config(layer), **overrides}
        if "dtype" in config:
            config["dtype"] = dtype
        activation = None
        if not isinstance(layer, keras.layers.Activation) and "activation" in config:
            activation = layer.activation
            config["activation"] = "linear"
        key = self._key(layer, config, dtype)
        if key not in self._copies:
            check_finite(layer, self.where(layer))
            config["name"] = self._prefixed(config["name"])
            copy = known_class(layer).from_config(config)
            share_code(layer, copy, overrides)
            with without_values(copy) if layer.built else contextlib.nullcontext():
                outputs = copy(inputs)
            if layer.built:
                self.copy_weights(layer, copy)
            self._note(key, layer, copy, range_limit)
        else:
            outputs = self._copies[key](inputs)
        return self.activation(activation, outputs, layer)

    def emit_new(self, layer: keras.layers.Layer, inputs: Any, range_limit: Any = None) -> Any:
        """As `emit` does, for a layer that is made for this call alone, and so needs no copy.

        Args:
            layer: The layer.
            inputs: Tensors of the new graph.
            range_limit: As for `emit`.
        """
        self._new.add(id(layer))
        try:
            return self.emit(layer, inputs, range_limit)
        finally:
            self._new.remove(id(layer))

    def _needs_no_copy(self, layer: Any, dtype: str) -> bool:
        """Whether a layer that a `trace` has made can stand in the new graph as it is."""
        own = type(layer).__module__.startswith("intact.ops.") or id(layer) in self._new
        own = own and self._step is None and not layer.variables
        return own and layer.dtype_policy.name == dtype

    def _emit_itself(self, layer: keras.layers.Layer, inputs: Any, range_limit: Any) -> Any:
        """Call a layer in the new graph that needs no copy."""
        if id(layer) not in self._copies:
            layer.name = self._prefixed(layer.name)
            self._note(id(layer), layer, layer, range_limit)
        return layer(inputs)

    def _prefixed(self, name: str) -> str:
        """A layer name that is not taken yet, with the prefix of the layers around it."""
        if self._prefix and not name.startswith(self._prefix):
            name = f"{self._prefix}_{name}"
        return self.unique(name)

    def _note(self, key: Any, layer: Any, copy: Any, range_limit: Any) -> None:
        """Note that a layer of the new graph stands for another, or for itself."""
        copy.one_range, copy.own_rule, copy.owner = self.in_step, self._rule, self._owner
        copy.range_limit = range_limit
        self._copies[key] = copy
        self.kept.append(layer)

    def _itself(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """The counterpart of a layer of intact's own: itself if it is quantized, else a copy."""
        if id(layer) not in self._copies:
            twin = layer
            if layer.name in self._names or not isinstance(layer, QuantizedLayer):
                twin = type(layer).from_config(layer.get_config())
                twin.set_weights(layer.get_weights())
            twin.name = self.unique(layer.name)
            self._copies[id(layer)] = twin
            self.kept.append(layer)
        return self._copies[id(layer)]

    def _tensor(self, value: Any, reader: Any) -> keras.KerasTensor:
        """A layer's operand as a tensor of the new graph: the operand itself, or a constant."""
        if is_symbolic(value):
            return value
        whole = np.issubdtype(to_numpy(value).dtype, np.integer)
        return self.constant(value, f"{reader.name}_constant", 0, "int32" if whole else "float32")

    def copy_weights(
        self,
        layer: keras.layers.Layer,
        target: keras.layers.Layer,
        convert: Callable[[np.ndarray], np.ndarray] = lambda value: value,
    ) -> None:
        """Copy the weights of a user's layer to the layer that stands for it.

        Args:
            layer: The user's layer.
            target: The other one, built.
            convert: Reorders the values of a weight; they are reshaped in any case.
        """
        if len(target.variables) != len(layer.variables):
            self.refuse(layer, f"it has weights that a {type(target).__name__} does not have")
        for new, old in zip(target.variables, layer.variables, strict=True):
            # Copy the values, because backends may donate the memory of a model that trains.
            new.assign(convert(to_numpy(old)).reshape(new.shape))

    def _key(self, layer: keras.layers.Layer, config: dict[str, Any], dtype: str) -> Any:
        """Cache key of a layer's copy: the layer itself, or its place in a step; and its type."""
        if self._step is None or layer.variables:
            return id(layer) if dtype == "float32" else (id(layer), dtype)
        steps, seen = self._step
        place = (steps, type(layer), repr(config))
        seen[place] += 1
        return (*place, seen[place])

    def called(self, layer: keras.layers.Layer) -> bool:
        """Whether a layer has been emitted already."""
        return id(layer) in self._copies

    def built_rank(self, layer: keras.layers.Layer) -> int | None:
        """The input rank that a layer has been built for, if it depends on the rank."""
        copy = self._copies.get(id(layer))
        return None if copy is None else getattr(copy.input_spec, "ndim", None)

    def activation(self, function: Any, x: Any, layer: keras.layers.Layer) -> Any:
        """Apply an activation function that stood inside a layer.

        Args:
            function: The function, an activation layer, or None.
            x: A tensor of the new graph.
            layer: The layer that it stood in, for names.

        Returns:
            The output tensor.
        """
        if function is None or function is keras.activations.linear:
            return x
        if isinstance(function, keras.layers.Layer):
            return self.trace(function, (x,), {})
        name = getattr(function, "__name__", type(function).__name__)
        activation = keras.layers.Activation(function, name=f"{layer.name}_{name}")
        return self.trace(activation, (x,), {})
