"""Rewrites a layer that no op stands for as the operations of its `call`."""

import contextlib
import inspect
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import keras

from intact.errors import IntactError
from intact.graph.batch import Merger, batch_factor
from intact.graph.displaced import Displaced
from intact.graph.items import latest
from intact.graph.masks import Masks
from intact.graph.runs import FREE, SAMPLES, BatchError
from intact.graph.stand_ins import StandIns, in_inference, symbolic_calls
from intact.graph.view import output_names, set_mask, view
from intact.numerics.tensors import is_symbolic, is_trainable, is_whole
from intact.ops.registry import activation_name
from intact.ops.sized import LARGEST
from intact.ops.steps import make_steps
from intact.ops.table import Elementwise

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer

Symbols = dict[int, keras.KerasTensor]
"""By the id of a tensor of the new graph, the symbolic tensor that replaces it in a function."""

RunOf = Callable[[int, int, int], tuple[list[Any], Any]]
"""Runs a `call` with known sizes; returns the inputs and the outputs."""

ShapeOf = Callable[[keras.KerasTensor], tuple[int | None, ...]]


def expand_call(
    tracer: "Tracer", layer: keras.layers.Layer, args: tuple, kwargs: dict, masks: Masks
) -> Any:
    """Rewrite a layer that no op stands for as the operations of its `call`.

    Args:
        tracer: Makes the new graph.
        layer: The layer.
        args: The arguments of its call; tensors are those of the new graph.
        kwargs: Its keyword arguments, likewise.
        masks: The masks beside the tensors, by the tensors' ids.

    Returns:
        The outputs in the new graph.
    """
    args, kwargs = _with_known(tracer, (args, kwargs))
    masks = {i: masks[i] for i in map(id, keras.tree.flatten((args, kwargs))) if i in masks}
    attributes = tracer.attributes.get(id(layer), {})
    tensors = _tensors((args, kwargs, list(masks.values()), attributes))
    symbols = _symbols(tensors, masks, lambda t: t.shape)

    def run(samples: int, size: int, apart: int) -> tuple[list[Any], Any]:
        known = _symbols(tensors, masks, partial(_shape, tracer, samples, size, apart))
        return list(known.values()), _run(layer, *_replaced((args, kwargs, attributes), known))

    layer.add_loss = lambda loss: tracer.not_kept.append(layer.name)
    try:
        merger, merged = _merged(run, tensors, list(symbols.values()))
        tracer.not_trained += merger.read_by_functions
    except IntactError:
        raise
    except BatchError as error:
        tracer.refuse(layer, error.reason)
    except Exception as error:
        _refuse(tracer, layer, error)
    finally:
        del layer.add_loss
    outputs, attributes = merged
    if not attributes:
        return _inline(tracer, layer, tensors, symbols, outputs)
    outputs, attributes = _inline(tracer, layer, tensors, symbols, (outputs, attributes))
    tracer.attributes.setdefault(id(layer), {}).update(attributes)
    return outputs


def _merged(run: RunOf, tensors: list[keras.KerasTensor], symbols: Any) -> tuple[Merger, Any]:
    """One graph of unknown sizes, of several runs of a `call` with known ones.

    Args:
        run: Runs it for a number of samples, a size for the first axis of unknown size, and the
            difference to the next; returns the inputs and the outputs.
        tensors: What it is called on.
        symbols: The inputs of the new graph.

    Returns:
        What has merged the runs, and the outputs.
    """

    def merge(runs: list[tuple[list[Any], Any]]) -> tuple[Merger, Any]:
        merger = Merger([inputs for inputs, _ in runs], symbols)
        return merger, merger.outputs(*(outputs for _, outputs in runs))

    if not any(None in t.shape[1:] for t in tensors):
        # Twice where all sizes are known, too: random numbers then differ.
        return merge([run(samples, 0, 0) for samples in SAMPLES[:2]])
    first: Exception | None = None
    for small, middle, apart in FREE:
        try:
            runs = [run(SAMPLES[0], small, apart), run(SAMPLES[1], middle, apart)]
            best = merge([*runs, runs[-1]])
            break
        except BatchError:
            raise
        except Exception as error:
            first = first or error
    else:
        assert first is not None
        raise first
    # The largest size that the code takes, such as the number of positions that it knows.
    low, high, size = middle, LARGEST + 1, LARGEST
    while low + 1 < high:
        try:
            best, low = merge([*runs, run(SAMPLES[-1], size, apart)]), size
        except Exception:
            high = size
        size = (low + high) // 2
    return best


def _run(
    layer: keras.layers.Layer, args: tuple, kwargs: dict, attributes: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Run a layer's `call` on symbolic tensors that also replace its weights.

    Args:
        layer: The layer.
        args: The arguments.
        kwargs: The keyword arguments.
        attributes: The tensors that earlier calls have left in the layer's attributes.

    Returns:
        The outputs, and the tensors that this call leaves in attributes.
    """
    stand_ins = StandIns()
    with stand_ins.inside(layer), symbolic_calls(stand_ins), _restored(layer):
        vars(layer).update(attributes)
        before = dict(vars(layer))
        outputs = latest(layer.call(*args, **in_inference(layer, args, kwargs)[0]))
        after = vars(layer).items()
        left = {k: v for k, v in after if is_symbolic(v) and v is not before.get(k)}
        return outputs, {k: v for k, v in left.items() if not stand_ins.is_assigned(v)}


@contextlib.contextmanager
def _restored(layer: keras.layers.Layer) -> Iterator[None]:
    """Behind a `with` block, no attribute of a layer or its sublayers is a tensor of the block."""
    old = [(vars(part), dict(vars(part))) for part in layer._flatten_layers()]
    try:
        yield
    finally:
        for now, before in old:
            for name in [k for k, v in now.items() if is_symbolic(v) and v is not before.get(k)]:
                now.pop(name)
                now.update({name: before[name]} if name in before else {})


def _symbols(tensors: list[keras.KerasTensor], masks: Masks, shape_of: ShapeOf) -> Symbols:
    """Symbolic inputs like tensors of the new graph, with the masks beside them."""
    symbols = {id(t): keras.Input(batch_shape=shape_of(t), dtype=t.dtype) for t in tensors}
    for i, mask in masks.items():
        set_mask(symbols[i], symbols[id(mask)])
    return symbols


def _shape(
    tracer: "Tracer", samples: int, size: int, apart: int, tensor: Any
) -> tuple[int | None, ...]:
    """The shape of a tensor of the new graph for a known number of samples, and other sizes."""
    shape = list(tensor.shape)
    batch = tensor.axis if isinstance(tensor, Displaced) else 0
    if shape and shape[batch] is None:
        first = tensor.tensor if isinstance(tensor, Displaced) else tensor
        shape[batch] = samples * batch_factor(first, tracer.factors)
    for axis in [axis for axis, known in enumerate(shape) if known is None]:
        shape[axis] = size
        size += apart
    return tuple(shape)


def _tensors(values: Any) -> list[keras.KerasTensor]:
    """The tensors of the new graph in nested values, each once."""
    return list({id(t): t for t in keras.tree.flatten(values) if _is_tensor(t)}.values())


def _is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of the new graph, wherever its batch is."""
    return is_symbolic(value) or isinstance(value, Displaced)


def _replaced(values: Any, symbols: Symbols) -> Any:
    """Nested values with symbols in the place of tensors of the new graph."""
    return keras.tree.map_structure(
        lambda value: symbols[id(value)] if _is_tensor(value) else value, values
    )


def _refuse(tracer: "Tracer", layer: Any, error: Exception) -> None:
    """Raise the error for a `call` that does not run on symbolic tensors."""
    inside = isinstance(layer, keras.layers.Activation)
    name, place = (activation_name(layer), "") if inside else ("call", _place(layer, error))
    reason = str(error)
    if "KerasTensor" in reason:
        reason = (
            "a function there takes no symbolic tensor; use the one of `keras.ops`: "
            f"{reason.partition('. ')[0]}"
        )
    tracer.refuse(layer, f"its `{name}` cannot be traced with symbolic tensors {place}({reason})")


def _place(layer: Any, error: Exception) -> str:
    """The line of a layer's code that raised an error."""
    try:
        file = inspect.getsourcefile(type(layer))
    except TypeError:
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == file:
            return f"at line {frame.lineno}, `{frame.line}` "
    return ""


def expand_function(
    tracer: "Tracer", layer: Any, function: Callable[..., Any], args: tuple, kwargs: dict
) -> Any:
    """Rewrite a layer as a function of layers and `keras.ops`.

    Args:
        tracer: Makes the new graph.
        layer: The layer, for names and errors.
        function: What it computes, of symbolic tensors.
        args: Its arguments; tensors are those of the new graph.
        kwargs: Its keyword arguments, likewise.

    Returns:
        The outputs in the new graph.
    """
    tensors = _tensors((args, kwargs))
    symbols = _symbols(tensors, {}, lambda t: t.shape)
    inner_args, inner_kwargs = _replaced((args, kwargs), symbols)
    try:
        outputs = function(*inner_args, **inner_kwargs)
    except IntactError:
        raise
    except Exception as error:
        _refuse(tracer, layer, error)
    return _inline(tracer, layer, tensors, symbols, outputs)


def _inline(
    tracer: "Tracer", layer: Any, tensors: list[keras.KerasTensor], symbols: Symbols, outputs: Any
) -> Any:
    """Rewrite a graph of symbolic tensors as a part of the new graph.

    Args:
        tracer: Makes the new graph.
        layer: The layer whose graph it is.
        tensors: Tensors of the new graph.
        symbols: Their symbolic counterparts, in the same order.
        outputs: The symbolic outputs; what no input reaches is an array or a variable.

    Returns:
        The outputs in the new graph.
    """
    unchanged = next((t for t in tensors if symbols[id(t)] is outputs), None)
    if unchanged is not None:
        return unchanged
    flat = keras.tree.flatten(outputs)
    computed = [t for t in flat if is_symbolic(t)]
    whole = len(computed) == len(flat)
    if not computed:
        return keras.tree.map_structure(partial(_constant, tracer, layer), outputs)
    inner = keras.Model(list(symbols.values()), outputs if whole else computed)
    tracer.output_names[id(layer)] = output_names(inner)
    values = not any(is_whole(t) or isinstance(t, Displaced) for t in tensors)
    steps = make_steps(inner) if values else None
    if whole and steps and len(steps) > 1:
        # One table is faster than many ops, and rounds once.
        return tracer.emit(Elementwise(steps, name=layer.name), tensors[0])
    tracer.kept.append(inner)
    for node in view(inner).nodes:
        if not isinstance(node.layer, keras.layers.Layer):
            # Keras' own name would depend on the models made before.
            node.layer.name = f"{layer.name}_{type(node.layer).__name__.lower()}"
    with tracer.scope(layer):
        traced = tracer.trace_model(inner, tuple(tensors), {})
    if whole:
        return traced
    rest = iter(traced)
    parts = [next(rest) if is_symbolic(t) else _constant(tracer, layer, t) for t in flat]
    return keras.tree.pack_sequence_as(outputs, parts)


def _constant(tracer: "Tracer", layer: Any, value: Any) -> Any:
    """An output that no input reaches, in the new graph."""
    if value is None:
        return None
    dtype = "int32" if is_whole(value) else "float32"
    tensor = tracer.constant(value, f"{layer.name}_constant", dtype=dtype)
    if not is_trainable(value):
        tracer.known[id(tensor)] = value
    return tensor


def _with_known(tracer: "Tracer", values: Any) -> Any:
    """Nested values with arrays in the place of the tensors whose values are known."""
    if not tracer.known:
        return values
    return keras.tree.map_structure(lambda value: tracer.known.get(id(value), value), values)


def fold_known(tracer: "Tracer", layer: Any, args: tuple, kwargs: dict) -> Any:
    """The outputs of an operation on tensors whose values are known; None if one is not.

    Args:
        tracer: Makes the new graph.
        layer: The operation.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    if isinstance(layer, keras.layers.Layer) or not tracer.known:
        return None
    known_args, known_kwargs = _with_known(tracer, (args, kwargs))
    if any(map(_is_tensor, keras.tree.flatten((known_args, known_kwargs)))):
        return None
    outputs = layer(*known_args, **known_kwargs)
    return keras.tree.map_structure(partial(_constant, tracer, layer), outputs)
