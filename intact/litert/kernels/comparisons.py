"""Kernels of comparisons, logic and indices."""

from intact.litert.kernels.row import Kernel, on, versions

COMPARISONS = (
    Kernel(
        "ARG_MAX",
        versions={"float32": 1, "int8": 2, "uint8": 1},
        runs_on=on(int8="M568", uint8="568", float32="M"),
    ),
    Kernel("ARG_MIN", versions={"float32": 1, "int8": 2, "uint8": 1}),
    Kernel(
        "CAST", scaled=False, runs_on=on(int8="M8", int16="M", int32="M", bool="M", float32="M")
    ),
    Kernel(
        "EQUAL",
        versions(2, 4),
        data=(0, 1),
        scaled=False,
        runs_on=on(int8="M", int32="M8", int64="M", bool="M", float32="M"),
    ),
    Kernel(
        "GREATER",
        versions(2, 2),
        data=(0, 1),
        scaled=False,
        runs_on=on(int8="M", int16="M", int32="M8", int64="M", float32="M"),
    ),
    Kernel(
        "GREATER_EQUAL",
        versions(2, 3),
        data=(0, 1),
        scaled=False,
        runs_on=on(int8="M8", int32="M8", int64="M", float32="M"),
    ),
    Kernel(
        "LESS",
        versions(2, 3),
        data=(0, 1),
        scaled=False,
        runs_on=on(int8="M8", int32="M8", int64="M", float32="M"),
    ),
    Kernel(
        "LESS_EQUAL",
        versions(2, 2),
        data=(0, 1),
        scaled=False,
        runs_on=on(int8="M", int32="M8", int64="M", float32="M"),
    ),
    Kernel("LOGICAL_AND", data=(0, 1), runs_on=on(bool="M8")),
    Kernel("LOGICAL_NOT", runs_on=on(bool="M8")),
    Kernel("LOGICAL_OR", data=(0, 1), runs_on=on(bool="M8")),
    Kernel(
        "NOT_EQUAL",
        versions(2, 4),
        data=(0, 1),
        scaled=False,
        runs_on=on(int8="M", int32="M8", int64="M", bool="M", float32="M"),
    ),
    Kernel("REDUCE_ALL", table="ReducerOptions", runs_on=on(bool="M8")),
    Kernel("REDUCE_ANY", table="ReducerOptions", runs_on=on(bool="8")),
)
