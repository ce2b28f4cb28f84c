"""The layer of a quantized model that repeats a step."""

import functools
from typing import Any

import keras

from intact.graph.view import Node, made_by, structure, view
from intact.layers.base import Gives, QuantizedLayer
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.loop_programs import LoopProgram, program_of
from intact.layers.loop_runs import Run, TrainingRun, UnroundedRun
from intact.numerics.affine import QTensor, first_part
from intact.numerics.light_ops import ops
from intact.numerics.scanning import has_no_values
from intact.numerics.tensors import Tensor
from intact.ops.loop import LoopForm


@keras.saving.register_keras_serializable("intact")
class QuantizedLoop(QuantizedLayer):
    """Repeats a step of integers along the time.

    It takes and returns lists as `intact.ops.loop.Loop` does, of `QTensor`s and float tensors. The
    ranges of a step are those of all steps. While training, they follow the data of all steps at
    once, after the last one; a step is rounded by the ranges of the batches before. If there were
    none, the steps run unrounded first, to find ranges.

    Args:
        body: A functional model of a step, as that of `Loop`; the parts of each `QTensor` are a
            list. Its last inputs are the first states that are inputs, and its last outputs these
            states in the ranges in which a step reads them.
        form: A `LoopForm`, or its config.
    """

    def __init__(self, body: keras.Model, form: Any, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        self.body = body
        self.form = form if isinstance(form, LoopForm) else LoopForm.from_config(form)
        self.built = True
        self.graph = view(body)
        inputs, outputs = structure(body)
        count, states = self.form.sequences, len(self.form.starts)
        self.sequences, rest = inputs[:count], inputs[count:]
        self.states, self.first = rest[:states], rest[states:]
        ends = states + self.form.joins
        self.ends, self.started = outputs[:ends], outputs[ends:]
        # The calls that convert the first states, and those of a step.
        starting = {id(t) for t in keras.tree.flatten(self.first)}
        self.start_nodes: list[Node] = []
        self.nodes: list[Node] = []
        for node in self.graph.nodes:
            if node.is_input:
                continue
            starts = any(id(t) in starting for t in node.inputs)
            starting |= {id(t) for t in node.outputs} if starts else set()
            (self.start_nodes if starts else self.nodes).append(node)

    @property
    def gives(self) -> Gives:
        """What a call returns; its first output counts."""
        return "integers" if isinstance(self.ends[0], list | tuple) else "real"

    @functools.cached_property
    def program(self) -> LoopProgram | None:
        """The program by which the steps train; None if an operation has no instruction."""
        return program_of(self)

    @functools.cached_property
    def reads_trained_scales(self) -> bool:
        """Whether the scale of an input may be trained, so that it needs a gradient."""
        inputs = [t for node in self._inbound_nodes for t in node.input_tensors]
        return any(_is_trained(tensor) for tensor in inputs)

    @property
    def step_layers(self) -> list[keras.layers.Layer]:
        """The layers of a step."""
        return [x for x in self.body.layers if not isinstance(x, keras.layers.InputLayer)]

    @property
    def quantizers(self) -> list[Node]:
        """The calls of a step's quantizers whose ranges are observed."""
        calls = [node for node in self.nodes if isinstance(node.layer, FakeQuantize)]
        return [node for node in calls if node.layer.fixed is None]

    def index_of(self, symbol: Any) -> int:
        """The index of a state among the states, by the symbol that a step reads."""
        return next(i for i, state in enumerate(self.states) if state is symbol)

    def range_of(self, tensor: keras.KerasTensor) -> FakeQuantize | None:
        """The quantizer whose range an output of the loop has, or None.

        Args:
            tensor: The values of an output, in the graph around the loop.
        """
        for node in self._inbound_nodes:
            for place, output in enumerate(node.outputs):
                if output is tensor:
                    source = self.source(keras.tree.flatten(self.ends)[place])
                    return None if source is None else source.layer
        return None

    def source(self, tensor: keras.KerasTensor) -> Node | None:
        """The call of the quantizer whose range a tensor of a step has, or None.

        Args:
            tensor: The tensor.
        """
        node = self.graph.producer(tensor)
        while node.inputs and not isinstance(node.layer, FakeQuantize):
            node = self.graph.producer(node.inputs[0])
        return node if node.inputs else None

    def call(self, inputs: list[Any], training: bool | None = None) -> list[Any]:
        """The outputs of the steps, and the final states."""
        x = first_part(inputs[0])
        if has_no_values(x):
            specs = self.compute_output_spec(inputs)
            return [keras.tree.map_structure(lambda t: _blank(t, x), spec) for spec in specs]
        observing = any(node.layer.observing for node in self.quantizers)
        if training and self.trainable and not observing:
            return TrainingRun(self).run(inputs)
        return Run(self).run(inputs)

    def unrounded(self, inputs: list[Any]) -> list[Any]:
        return UnroundedRun(self).run(inputs)

    def watched(self, inputs: list[Any], tensors: list[Any]) -> list[Tensor]:
        """Tensors of all steps, with a first axis for the time.

        Args:
            inputs: As for a call.
            tensors: Tensors of the body's graph.
        """
        run = Run(self)
        run.watched = tensors
        run.run(inputs)
        return run.seen

    def compute_output_spec(self, inputs: Any, training: Any = None) -> Any:
        steps = first_part(inputs[0]).shape[1]
        shapes = self.form.shapes([first_part(end).shape for end in self.ends], steps)
        return [
            QTensor.symbolic(shape)
            if isinstance(end, list | tuple)
            else keras.KerasTensor(shape, end.dtype)
            for shape, end in zip(shapes, self.ends, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        body = keras.saving.serialize_keras_object(self.body)
        return {**super().get_config(), "body": body, "form": self.form.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedLoop":
        body = keras.saving.deserialize_keras_object(config.pop("body"))
        return cls(body, **config)


def _blank(spec: keras.KerasTensor, x: Tensor) -> Tensor:
    """A tensor of a shape, with the batch of another one."""
    shape = (x.shape[0], *spec.shape[1:]) if spec.shape else ()
    return ops.zeros(shape, spec.dtype)


def _is_trained(tensor: keras.KerasTensor) -> bool:
    """Whether the quantizer behind a tensor, or behind what moves it, has trained numbers."""
    node = made_by(tensor)
    if isinstance(node.layer, FakeQuantize):
        return bool(node.layer.learns)
    if isinstance(node.layer, QuantizedLoop):
        return any(inner.layer.learns for inner in node.layer.quantizers)
    return any(map(_is_trained, node.inputs))
