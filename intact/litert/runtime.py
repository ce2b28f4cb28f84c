"""Runs LiteRT files on real values, whatever the file's types."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from intact.errors import IntactError, InvalidDataError
from intact.litert.reader import IDENTIFIER, read_bytes
from intact.litert.writing import pack, unpack
from intact.names import Kernels


def load_litert(
    file: str | os.PathLike | bytes, threads: int = 1, kernels: Kernels = "default"
) -> "LiteRTModel":
    """Load a LiteRT file.

    Args:
        file: Path of a `.tflite` file, or its bytes.
        threads: Threads that the runtime may use.
        kernels: "default" (XNNPACK where it takes an op), "builtin" (without XNNPACK)
            or "reference" (the plain kernels, as TFLite Micro rounds).

    Returns:
        The model; `predict` runs it.

    Raises:
        IntactError: There is no such file, or it is not a LiteRT file that runs.

    Example:

    >>> import intact, keras
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    >>> file = load_litert(intact.export(model))
    >>> file.input_names, file.output_names
    (['x'], ['y'])
    >>> file.predict(np.zeros((3, 4))).shape
    (3, 2)
    """
    return LiteRTModel(read_bytes(file), threads, kernels)


class LiteRTModel:
    """A LiteRT file, ready to run.

    Args:
        content: The file's bytes.
        threads: Threads that the runtime may use.
        kernels: As for `load_litert`.

    Example:

    >>> import intact, keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> file = LiteRTModel(intact.export(model))
    >>> file.predict(np.zeros((3, 4))).tolist()
    [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """

    input_details: dict[str, dict]
    """LiteRT's details of each input: "shape", "dtype", "quantization" and more."""

    resolvers = {
        "default": OpResolverType.AUTO,
        "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": OpResolverType.BUILTIN_REF,
    }

    def __init__(self, content: bytes, threads: int = 1, kernels: Kernels = "default") -> None:
        if content[4:8] != IDENTIFIER:
            raise IntactError("This is not a LiteRT file: its identifier is not 'TFL3'.")
        if kernels not in self.resolvers:
            raise IntactError(
                f"There are no kernels {kernels!r}. Choose among {', '.join(self.resolvers)}."
            )
        self.content = content
        try:
            self.interpreter = Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=self.resolvers[kernels],
            )
            self._allocated = self._allocate()
            self.input_details = self._details("input")
            self._outputs = self._details("output")
        except (RuntimeError, ValueError, KeyError) as error:
            # Wrong bytes in a name surface as a Unicode or key error.
            raise IntactError(f"LiteRT refuses this file: {error}") from error
        self._one_by_one = False
        self.input_names, self.output_names = list(self.input_details), list(self._outputs)
        self.output_tensors = [d["name"] for d in self.interpreter.get_output_details()]

    def __repr__(self) -> str:
        inputs, outputs = ", ".join(self.input_names), ", ".join(self.output_names)
        return f"<LiteRTModel: {inputs} -> {outputs}, {len(self.content)} bytes>"

    @property
    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shape of each input; None for any size."""
        return {name: _shape(detail) for name, detail in self.input_details.items()}

    def _allocate(self) -> bool:
        """Allocate the tensors, unless an open size is still too small for the kernels."""
        try:
            self.interpreter.allocate_tensors()
        except RuntimeError:
            details = self.interpreter.get_input_details()
            if not any(-1 in d["shape_signature"][1:] for d in details):
                raise
            return False
        return True

    def _details(self, side: str) -> dict[str, dict]:
        """The inputs or outputs by name, in the order of the graph."""
        details = getattr(self.interpreter, f"get_{side}_details")()
        if not self.interpreter.get_signature_list():
            return {d["name"]: d for d in details}
        runner = self.interpreter.get_signature_runner()
        names = {d["index"]: n for n, d in getattr(runner, f"get_{side}_details")().items()}
        return {names[d["index"]]: d for d in details}

    def predict(self, x: Any, batch_size: int = 32, raw: bool = False) -> Any:
        """Run the file on a batch.

        Args:
            x: An array, or a list or dict of arrays (by the signature's names), of
                real values; integers of the file's own input type are used unchanged.
            batch_size: How many samples run at once, where the file's batch is dynamic.
            raw: Return the output's integers instead of real values.

        Returns:
            One array, or a dict of arrays by output name if there are several.

        Raises:
            InvalidDataError: Wrong names or shapes.
        """
        arrays = self.stored(x)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self._outputs}
        dynamic = all(
            len(d["shape_signature"]) and d["shape_signature"][0] == -1
            for d in self.input_details.values()
        )
        fixed = int(next(iter(self.input_details.values()))["shape"][0])
        for batch, size, padding in _batches(arrays, batch_size if dynamic else fixed, dynamic):
            for name, value in self._run_batch(batch, dynamic).items():
                # A tensor inside may have several rows for each sample.
                parts[name].append(value[: len(value) * (size - padding) // size])
        results = {name: np.concatenate(values) for name, values in parts.items()}
        if not raw:
            results = {name: self._to_real(name, value) for name, value in results.items()}
        return next(iter(results.values())) if len(results) == 1 else results

    def runs_batches(self) -> bool:
        """Whether the file runs several samples at once; otherwise `predict` splits them.

        Some kernels reveal it only when they run.
        """
        shapes = {name: _shape(detail) for name, detail in self.input_details.items()}
        if any(not shape or shape[0] is not None for shape in shapes.values()):
            return any(shape and shape[0] != 1 for shape in shapes.values())
        try:
            self._run(
                {
                    name: np.zeros([size or 1 for size in (2, *shape[1:])], detail["dtype"])
                    for (name, shape), detail in zip(
                        shapes.items(), self.input_details.values(), strict=True
                    )
                }
            )
        except RuntimeError:
            self._one_by_one = True
        return not self._one_by_one

    def reset_states(self) -> None:
        """Reset the state of a file that keeps one between calls."""
        self.interpreter.reset_all_variables()

    def run_on_zeros(self) -> None:
        """Run once on zeros, one sample where the batch is dynamic.

        Raises:
            IntactError: The file does not run.
        """
        try:
            self._run(
                {
                    name: np.zeros([size or 1 for size in _shape(detail)], detail["dtype"])
                    for name, detail in self.input_details.items()
                }
            )
        except (RuntimeError, ValueError) as error:
            raise IntactError(f"LiteRT cannot run this file: {error}") from error

    def output_params(self, name: str) -> tuple[float, int] | None:
        """Scale and zero point of an output, or None if it is float."""
        scale, zero_point = self._outputs[name]["quantization"]
        return (scale, zero_point) if scale else None

    def stored(self, x: Any) -> dict[str, np.ndarray]:
        """Data as the file's inputs take it.

        Args:
            x: As for `predict`.

        Returns:
            Per input, in the file's order, an array of its type.

        Raises:
            InvalidDataError: Wrong names or shapes.
        """
        if isinstance(x, dict):
            if set(x) != set(self.input_details):
                raise InvalidDataError(
                    f"Expected inputs named {sorted(self.input_details)}. Received: {sorted(x)}."
                )
            named = x
        else:
            values = x if isinstance(x, list | tuple) else [x]
            if len(values) != len(self.input_details):
                raise InvalidDataError(
                    f"Expected {len(self.input_details)} inputs. Received: {len(values)}."
                )
            named = dict(zip(self.input_details, values, strict=True))
        arrays = {}
        for name, detail in self.input_details.items():
            array = np.asarray(named[name])
            shape = _shape(detail)
            fits = array.ndim == len(shape) and all(
                want in (None, got) for want, got in zip(shape[1:], array.shape[1:], strict=False)
            )
            if array.ndim and array.dtype.kind in "OSU":
                raise InvalidDataError(
                    f"Input {name!r} takes numbers. Received: an array of {array.dtype}."
                )
            if not fits:
                raise InvalidDataError(
                    f"Input {name!r} takes shape {shape}, None for any size. "
                    f"Received: {array.shape}."
                )
            arrays[name] = self._to_stored(array, detail)
        return arrays

    def _to_stored(self, array: np.ndarray, detail: dict) -> np.ndarray:
        dtype = np.dtype(detail["dtype"])
        scale, zero_point = detail["quantization"]
        if array.dtype == dtype or not scale:
            return array.astype(dtype)
        info = np.iinfo(dtype)
        n = np.rint(array.astype("float32") * (np.float32(1) / np.float32(scale))) + zero_point
        return np.clip(n, info.min, info.max).astype(dtype)

    def _to_real(self, name: str, value: np.ndarray) -> np.ndarray:
        params = self.output_params(name)
        if params is None:
            return value
        return (value.astype("float32") - np.float32(params[1])) * np.float32(params[0])

    def _run_batch(self, chunk: dict[str, np.ndarray], dynamic: bool) -> dict[str, np.ndarray]:
        size = len(next(iter(chunk.values())))
        if size == 1 or not self._one_by_one:
            try:
                return self._run(chunk)
            except RuntimeError as error:
                if size == 1 or not dynamic:
                    raise IntactError(f"LiteRT cannot run this file: {error}") from error
                # Some kernels (TRANSPOSE_CONV without XNNPACK) have a fixed batch.
                self._one_by_one = True
        samples = ({n: a[i : i + 1] for n, a in chunk.items()} for i in range(size))
        results = [self._run_batch(sample, dynamic) for sample in samples]
        return {name: np.concatenate([r[name] for r in results]) for name in results[0]}

    def _run(self, chunk: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.invoke(chunk)
        return {n: self.interpreter.get_tensor(d["index"]) for n, d in self._outputs.items()}

    def invoke(self, chunk: dict[str, np.ndarray]) -> None:
        """Run the kernels; `view` shows their outputs.

        Args:
            chunk: An array for each input, of the values that the file stores.
        """
        resized = not self._allocated
        for name, array in chunk.items():
            detail = self.input_details[name]
            if tuple(detail["shape"]) != array.shape:
                self.interpreter.resize_tensor_input(detail["index"], array.shape)
                detail["shape"] = np.array(array.shape)
                resized = True
        if resized:
            self.interpreter.allocate_tensors()
            self._allocated = True
        for name, array in chunk.items():
            detail = self.input_details[name]
            self.interpreter.set_tensor(detail["index"], np.asarray(array, detail["dtype"]))
        self.interpreter.invoke()

    def view(self, name: str) -> np.ndarray:
        """The output of the last run, not a copy: release it before the next run."""
        return self.interpreter.tensor(self._outputs[name]["index"])()


def _shape(detail: dict) -> tuple[int | None, ...]:
    shape = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return tuple(None if size == -1 else int(size) for size in shape)


def delegated(content: bytes, graph: int = 0) -> list[bool]:
    """Which ops of a file's graph the runtime hands to XNNPACK.

    Args:
        content: The file's bytes.
        graph: The graph. The runtime tells this only of the first one, so that another one, such as
            the body of a loop, is put in its place.

    Returns:
        For each op, whether it does.

    Raises:
        IntactError: LiteRT refuses the file.
    """
    if graph:
        model = unpack(content)
        model.subgraphs[0], model.signatureDefs = model.subgraphs[graph], []
        content = pack(model)
    interpreter = LiteRTModel(content).interpreter
    ops = interpreter._get_ops_details()
    maker = {int(t): op for op in ops if op["op_name"] != "DELEGATE" for t in op["outputs"]}
    taken: set[int] = set()
    for delegate in (op for op in ops if op["op_name"] == "DELEGATE"):
        inside, open_ends = set(map(int, delegate["inputs"])), list(map(int, delegate["outputs"]))
        while open_ends:
            tensor = open_ends.pop()
            if tensor in inside or tensor not in maker:
                continue
            inside.add(tensor)
            taken.add(maker[tensor]["index"])
            open_ends += [int(t) for t in maker[tensor]["inputs"]]
    return [op["index"] in taken for op in ops if op["op_name"] != "DELEGATE"]


def fix_sizes(content: bytes) -> bytes:
    """The same file with all sizes fixed, for a batch of one.

    Compilers and microcontrollers resize nothing. The sizes are those that the runtime finds.

    Args:
        content: A file of one subgraph.

    Returns:
        The bytes of the new file.

    Raises:
        IntactError: Sizes other than the batch are open, or depend on the data.
    """
    loaded = LiteRTModel(content, kernels="builtin")
    for detail in loaded.interpreter.get_input_details():
        if -1 in detail["shape_signature"][1:]:
            raise IntactError(
                f"The sizes of input {detail['name']!r} are open: "
                f"{tuple(int(n) for n in detail['shape_signature'])}. Build the model with an "
                "input of fixed sizes."
            )
    model = unpack(content)
    graph = model.subgraphs[0]
    details = {d["index"]: d for d in loaded.interpreter.get_tensor_details()}
    for index, tensor in enumerate(graph.tensors):
        if tensor.shapeSignature is not None:
            tensor.shape = details[index]["shape"].tolist()
            tensor.shapeSignature = None
    return pack(model)


def expose(content: bytes, names: list[str]) -> bytes:
    """The same file with more of its tensors as outputs, to look inside.

    The kernels stay the default ones, which is why the runtime's own way of keeping
    all tensors (it switches XNNPACK off) is of no use for comparisons.

    Args:
        content: A file of one subgraph.
        names: Tensors to add to the outputs.

    Returns:
        The bytes of the new file; it has no signature.
    """
    model = unpack(content)
    expose_in(model, names)
    return pack(model)


def expose_in(model: schema.ModelT, names: list[str]) -> None:
    """Make more tensors of a file outputs; it has no signature then.

    Args:
        model: The object form of a file of one subgraph.
        names: Tensors to add to the outputs.
    """
    graph = model.subgraphs[0]
    index = {
        t.name.decode() if isinstance(t.name, bytes) else t.name: i
        for i, t in enumerate(graph.tensors)
    }
    unknown = [name for name in names if name not in index]
    if unknown:
        raise IntactError(
            f"The file has no tensors {unknown}: it was not exported from this model."
        )
    graph.outputs = [*graph.outputs, *(index[n] for n in names if index[n] not in graph.outputs)]
    model.signatureDefs = []


def _batches(
    arrays: dict[str, np.ndarray], batch_size: int, dynamic: bool
) -> Iterator[tuple[dict[str, np.ndarray], int, int]]:
    """Batches of samples, each with its size and how many of its samples are padding.

    The last batch is smaller where the size is dynamic; otherwise its last sample is repeated.
    """
    counts = {name: len(a) for name, a in arrays.items()}
    if len(set(counts.values())) != 1 or not next(iter(counts.values())):
        raise InvalidDataError(
            f"All inputs need the same number of samples, at least one. Received: {counts}."
        )
    total = next(iter(counts.values()))
    for start in range(0, total, batch_size):
        size = min(batch_size, total - start) if dynamic else batch_size
        batch = {name: a[start : start + size] for name, a in arrays.items()}
        padding = size - len(next(iter(batch.values())))
        if padding:
            batch = {
                name: np.concatenate([a, np.repeat(a[-1:], padding, 0)])
                for name, a in batch.items()
            }
        yield batch, size, padding
