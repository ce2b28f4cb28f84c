"""Tells Keras about intact's classes without importing them.

A saved model names the classes of its layers, and Keras looks them up among those that are
registered. Importing them all takes time, which a program that loads no model should not spend.
So Keras gets a stand-in for each class, as soon as Keras itself is imported. A stand-in is
replaced by the class when a model needs it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SAVED_CLASSES = {
    "intact": (
        *(
            "AlignedResizing",
            "BatchMatMul",
            "BatchReshape",
            "Bins",
            "Carried",
            "ChannelScale",
            "Clamp",
        ),
        *("Comparison", "Constant", "Convert", "CumulativeSum", "DepthToSpace", "Dequantize"),
        *("Elementwise", "EmbeddingTable", "FakeQuantize", "FirstValues"),
        *("FreeConv2DTranspose", "FreeUpSampling2D", "Frozen", "Gather", "GatherAlong", "Loop"),
        *("Max", "Mean", "Min", "Pad", "PadLowest", "PadNumber", "PairProducts", "Place", "Powers"),
        *("Quantized", "QuantizedLoop", "QuantizedModel", "QuantizedWeights", "ScaledSoftmax"),
        *("Select", "SizedReshape", "Slice", "SpaceToDepth", "StatefulLSTM"),
        *("StatefulQuantize", "StepModel", "Sum", "Take", "Together", "TopPlaces", "TopValues"),
        *("Truncated", "Truth", "TurnedPairs", "WholeNumbers", "WithoutGradient", "Zeros"),
    ),
    "intact.tfmot": (
        *("AllValuesQuantizer", "FixedQuantizer", "LastValueQuantizer"),
        *("MovingAverageQuantizer", "QuantizeAnnotate"),
    ),
}
"""By package, the classes that Keras finds by name; a test compares them with the code."""

MODULES = ("intact.api", "intact.tfmot")
"""These import every module that has such a class."""


class _StandIn:
    """Stands for a class until Keras asks it for an attribute, such as `from_config`.

    Args:
        name: The name that the class is registered under.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return getattr(self._load(), attribute)

    def _load(self) -> type:
        import keras

        for module in MODULES:
            importlib.import_module(module)
        return keras.saving.get_custom_objects()[self._name]


class _KerasFinder:
    """Finds Keras as the other finders do, and registers the stand-ins once it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "keras":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    import keras

    # The only function among what is registered; its module needs nothing but Keras.
    importlib.import_module("intact.keras_files.activations")
    registry = keras.saving.get_custom_objects()
    # An `.h5` file has the plain name of a model's class.
    names = ["QuantizedModel"]
    names += [f"{package}>{name}" for package in SAVED_CLASSES for name in SAVED_CLASSES[package]]
    for name in names:
        registry.setdefault(name, _StandIn(name))


def register() -> None:
    """Register the stand-ins, now or when Keras is imported."""
    if "keras" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _KerasFinder())
