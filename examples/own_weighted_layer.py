"""A layer of one's own with weights: bias, batch norm and activation become part of its kernel."""

import keras
from keras import ops

import intact
from intact.numerics.scale_layout import ScaleLayout
from intact.ops import Case, Weight, Weighted
from intact.testing import check_op


@keras.saving.register_keras_serializable("examples")
class Projection(keras.layers.Layer):
    """A product with a matrix that has a row for each output."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(self.units, shape[-1]))
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.kernel)) + self.bias

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@intact.register_op
class ProjectionOp(Weighted):
    """A row of the kernel has a scale, for a row makes an output."""

    keras_layers = (Projection,)
    litert = ("FULLY_CONNECTED",)
    kernel_rounding = "double"
    weights = {"kernel": Weight(ScaleLayout((0,)))}
    cases = (
        Case(lambda: Projection(4), (8,)),
        Case(lambda: lambda x: keras.layers.ReLU()(Projection(4)(x)), (8,)),
    )

    def products(self, layer, x, kernel):
        return ops.matmul(x, ops.transpose(kernel))

    def lower(self, node, builder):
        kernel, options = node.constant("kernel"), {"fusedActivationFunction": node.activation}
        builder.add("FULLY_CONNECTED", [node.input, kernel, node.bias()], [node.output], options)


def main():
    """Run the project's own battery on the layer: equality with its file, gradients, saving."""
    check_op(ProjectionOp)
    return ProjectionOp


if __name__ == "__main__":
    main()
