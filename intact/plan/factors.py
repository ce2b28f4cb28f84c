"""Finds the factors of a canonical model, and the tensors that they are multiplied with."""

from collections.abc import Callable
from dataclasses import dataclass

import keras

from intact.graph.view import Graph, Node
from intact.ops.elementwise import Multiply
from intact.ops.moves import RESHAPES
from intact.ops.norm import ByChannel
from intact.ops.registry import get_op
from intact.ops.table import Table

Shape = tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Product:
    """A product that a factor is part of.

    Args:
        partner: The other operand.
        shape: The factor's shape in the product, without the batch; None where it is its own.
    """

    partner: keras.KerasTensor
    shape: Shape | None


class Factors:
    """Finds the factors of a graph.

    A factor is an elementwise function, such as `1 / x` or `rsqrt(x)`, or proportional to one. Only
    products read it, perhaps through other elementwise functions.

    Args:
        graph: The view of a canonical model.
        integer: Whether a node computes on integers.
    """

    def __init__(self, graph: Graph, integer: Callable[[Node], bool]) -> None:
        self.graph = graph
        self.integer = integer
        self._products: dict[int, list[Product]] = {}

    def products(self, tensor: keras.KerasTensor) -> list[Product]:
        """The products that determine how far the range of a tensor has to reach.

        Args:
            tensor: A node's output.

        Returns:
            The products; none where the tensor is no factor, or a partner depends on it.
        """
        if not self._is_factor(tensor):
            return []
        own = self.graph.producer(tensor)
        reads = self._read(tensor, tensor.shape) or []
        products = [
            Product(partner, None if shape == tensor.shape else shape[1:])
            for partner, shape in reads
        ]
        unknown = any(None in (product.shape or ()) for product in products)
        if unknown or any(self._depends(partner, own) for partner, _ in reads):
            return []
        self._products[id(own)] = products
        return products

    def _is_factor(self, tensor: keras.KerasTensor) -> bool:
        node = self.graph.producer(tensor)
        if node.is_input:
            return False
        op = get_op(node.layer)
        if isinstance(op, Multiply):
            return all(map(self._is_factor, node.inputs))
        return isinstance(op, Table) or (_is_simple(node) and self._is_factor(node.inputs[0]))

    def _read(
        self, tensor: keras.KerasTensor, shape: Shape
    ) -> list[tuple[keras.KerasTensor, Shape]] | None:
        """The partners of a factor, with its shape beside each; None if it has other readers.

        Args:
            tensor: The factor, or a tensor computed from it.
            shape: The factor's shape beside `tensor`.
        """
        reads: list[tuple[keras.KerasTensor, Shape]] = []
        for node in self.graph.consumers(tensor):
            beyond = self._read_by(node, tensor, shape) if self.integer(node) else None
            if beyond is None:
                return None
            reads += beyond
        return None if self.graph.is_output(tensor) else reads

    def _read_by(
        self, node: Node, tensor: keras.KerasTensor, shape: Shape
    ) -> list[tuple[keras.KerasTensor, Shape]] | None:
        (out,) = node.outputs
        if isinstance(node.layer, RESHAPES):
            return self._read(out, out.shape) if tensor.shape == shape else None
        if _is_simple(node):
            return self._read(out, shape)
        if not isinstance(get_op(node.layer), Multiply):
            return None
        # A product of factors is a factor itself, if it is multiplied in turn.
        beyond = self._read(out, shape) if self._is_factor(out) else None
        if beyond:
            return beyond
        partners = [other for other in node.inputs if other is not tensor]
        if len(partners) != 1 or len(partners[0].shape) != len(shape):
            return None
        return [(partners[0], shape)]

    def _depends(self, tensor: keras.KerasTensor, node: Node) -> bool:
        """Whether a tensor is computed from a node's output, or from ranges that are."""
        waiting, seen = [tensor], set()
        while waiting:
            source = self.graph.producer(waiting.pop())
            if source is node:
                return True
            if id(source) not in seen:
                seen.add(id(source))
                waiting += source.inputs
                waiting += (product.partner for product in self._products.get(id(source), ()))
        return False


def _is_simple(node: Node) -> bool:
    """Whether a node computes each value from one input value, wherever that stands."""
    op = get_op(node.layer)
    return len(node.inputs) == 1 and (
        op.pointwise or isinstance(op, ByChannel) or isinstance(node.layer, RESHAPES)
    )
