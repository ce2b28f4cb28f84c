"""The cases of all ops, and what is known of some of them."""

from intact.ops import REGISTRY

# Keras on torch repeats the edge where SAME average pooling leaves values out of the mean,
# unlike its other backends and every runtime.
UPSTREAM = {("torch", "AveragePooling2D-1")}
# On JAX, Keras' own `predict` begins every batch with the same state.
UPSTREAM |= {("jax", f"SequenceLSTM-{case}") for case in range(3)}
# Keras' own `bincount`, `rearrange` and `perspective_transform` of a batch do not run on JAX.
UPSTREAM |= {("jax", f"Formula-{case}") for case in (24, 39, 55)}

# Cases that lose something in 8 bits, by their nature: values so small that they are 0 are
# compared with 0, a part of a concatenation is a thousandth of the other, largest values are all
# nearly 1, and a remainder jumps.
LOSSY = {"Compare-4", "Concatenate-4", "GlobalPooling3D-1", "Formula-9"}


def all_cases():
    """`(id, op, case)` of every registered op."""
    return [(f"{op.name}-{i}", op, case) for op in REGISTRY for i, case in enumerate(op.cases)]
