"""Steps that repeat along the time, as one layer that holds the model of a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from intact.graph.view import Graph, Node, view
from intact.numerics.light_ops import ops
from intact.numerics.scanning import joined, scan
from intact.numerics.tensors import Tensor
from intact.ops.base import INTEGERS, Case, Op
from intact.ops.registry import register_op


@dataclass(frozen=True)
class LoopForm:
    """How the tensors of a loop are connected.

    Args:
        sequences: How many sequences it reads, `(batch, steps, ...)`.
        starts: For each state, whether its first value is an input; else it is 0.
        joins: Whether the first output of a step is collected, for all steps.
        backwards: Whether the last step is the first to be computed.
        turned: Whether the output that is computed first is collected as the last one.
    """

    sequences: int
    starts: tuple[bool, ...]
    joins: bool
    backwards: bool = False
    turned: bool = False

    def get_config(self) -> dict[str, Any]:
        """The fields, as they are saved."""
        return {**vars(self), "starts": list(self.starts)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LoopForm":
        """The form of a config.

        Args:
            config: What `get_config` returned.
        """
        return cls(**{**config, "starts": tuple(config["starts"])})

    def shapes(self, step: Sequence[Any], steps: int | None) -> list[tuple[int | None, ...]]:
        """The shapes of a loop's outputs.

        Args:
            step: The shapes of a step's outputs: its output, where that is collected, and the
                states.
            steps: How many steps there are.
        """
        first = [(step[0][0], steps, *step[0][2:])] if self.joins else []
        return [*first, *map(tuple, step[self.joins :])]


@keras.saving.register_keras_serializable("intact")
class Loop(layers.Layer):
    """Repeats a model of one step along the time of its inputs.

    It takes a list of tensors: sequences `(batch, steps, ...)`, and the first states that are
    inputs. It returns a list: all outputs `(batch, steps, ...)`, if they are collected, and the
    final states.

    Args:
        step: A functional model. It takes the step's parts of the sequences, `(batch, 1, ...)`,
            and the states; it returns the output, where that is collected, and the new states.
        form: A `LoopForm`, or its config.
    """

    def __init__(self, step: keras.Model, form: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.step = step
        self.form = form if isinstance(form, LoopForm) else LoopForm.from_config(form)
        self.built = True

    def call(self, inputs: list[Tensor]) -> list[Tensor]:
        """The outputs of the steps, and the final states."""
        sequences, starts = inputs[: self.form.sequences], iter(inputs[self.form.sequences :])
        symbols = self.step.inputs[self.form.sequences :]
        states = [
            next(starts) if is_input else zeros_of(symbol, sequences[0])
            for is_input, symbol in zip(self.form.starts, symbols, strict=True)
        ]

        def body(states: list[Tensor], now: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            outputs = keras.tree.flatten(self.step([*now, *states]))
            return outputs[self.form.joins :], outputs[: self.form.joins]

        final, outputs = scan(body, states, sequences, self.form.backwards)
        return [*(joined(x, self.form.turned) for x in outputs), *final]

    def compute_output_spec(self, inputs: Any) -> Any:
        shapes = self.form.shapes([t.shape for t in self.step.outputs], inputs[0].shape[1])
        dtypes = [t.dtype for t in self.step.outputs]
        return [keras.KerasTensor(s, dtype) for s, dtype in zip(shapes, dtypes, strict=True)]

    def get_config(self) -> dict[str, Any]:
        step = keras.saving.serialize_keras_object(self.step)
        return {**super().get_config(), "step": step, "form": self.form.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Loop":
        step = keras.saving.deserialize_keras_object(config.pop("step"))
        return cls(step, **config)


def zeros_of(symbol: Any, x: Tensor) -> Tensor:
    """The zero state before the first step.

    Args:
        symbol: The symbolic state, `(batch, 1, ...)`.
        x: A tensor with the same batch.
    """
    return ops.zeros((ops.shape(x)[0], *symbol.shape[1:]), symbol.dtype)


class Opening(layers.Layer):
    """Stands for the begin of a loop, where its inputs become those of a step.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: Loop) -> None:
        super().__init__(name=f"{loop.name}_begin")
        self.loop = loop.name
        self.form = loop.form
        self.own_rule = getattr(loop, "own_rule", None)


@register_op
class Repeat(Op):
    """Steps of a recurrent layer: a WHILE, or the steps one after the other."""

    keras_layers = (Loop, Opening)
    litert = ("WHILE",)
    dtypes = INTEGERS
    cases = (Case(lambda: layers.SimpleRNN(2, activation="relu"), (8, 2)),)

    def lower(self, node: Any, builder: Any) -> None:
        raise NotImplementedError("`intact.lowering.loops` writes loops.")


def layers_of(model: keras.Model) -> dict[str, Any]:
    """By its name, each layer that a plan has a step for.

    Args:
        model: A canonical model.
    """
    return {node.layer.name: node.layer for node in opened(view(model)).nodes if not node.is_input}


def opened(graph: Graph) -> Graph:
    """A graph with the steps of its loops in it, each once.

    A loop becomes the nodes of its step between two nodes: one with an `Opening`, whose outputs
    are the inputs of the step, and one with the `Loop`, whose inputs are the outputs of the step.

    Args:
        graph: The view of a canonical model.
    """
    if not any(isinstance(node.layer, Loop) for node in graph.nodes):
        return graph
    nodes: list[Node] = []
    for node in graph.nodes:
        if not isinstance(node.layer, Loop):
            nodes.append(node)
            continue
        step = opened(view(node.layer.step))
        nodes.append(Node(Opening(node.layer), (), {}, node.inputs, step.inputs))
        nodes += [inner for inner in step.nodes if not inner.is_input]
        nodes.append(Node(node.layer, (), {}, step.outputs, node.outputs))
    return Graph(tuple(nodes), graph.inputs, graph.outputs)
