"""Several processes or devices train as one does: same ranges, statistics, weights and files."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

from intact.litert.reader import read

WORKLOAD = str(pathlib.Path(__file__).parent / "distributed" / "workload.py")
ALONE = {
    "torch": "int8,learned,schedule,folded",
    "tensorflow": "int8,schedule,workers",
    "jax": "int8",
}[keras.backend.backend()]
# Engine, processes, replicas, and what they train, one after the other.
RUNS = {
    "torch": [("torch", 2, 2, f"{ALONE},loop,ragged,different,frozen,lost")],
    "tensorflow": [
        ("tensorflow_mirrored", 1, 2, "int8,schedule"),
        ("tensorflow_workers", 2, 2, "workers,different,frozen,lost"),
    ],
    "jax": [("jax_devices", 1, 8, "int8,sharded"), ("jax_processes", 2, 2, "int8,different,lost")],
}[keras.backend.backend()]
TRAINED = [
    (engine, ranks, world, scheme)
    for engine, ranks, world, schemes in RUNS
    for scheme in schemes.split(",")
    if scheme not in ("different", "frozen", "lost")
]
REFUSED = {
    (engine, scheme)
    for engine, _, _, schemes in RUNS
    for scheme in schemes.split(",")
    if scheme in ("different", "frozen")
}
# Float sums in another order may round a value to its neighbour, and training goes on from there;
# so it does in these schemes. With local ranges, results would be 30 % off.
TOLERANCE = {"learned": 1e-2, "schedule": 5e-2, "folded": 1e-2}
OF_SCALES = {"learned": 1e-2, "schedule": 5e-2, "folded": 1e-3}
SECONDS = 600


def free_ports(count):
    """The first of some ports in a row that nobody listens to."""
    for first in range(20000 + os.getpid() % 20000, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("No free ports.")


def start(engine, schemes, folder, rank, world, port):
    arguments = [engine, schemes, str(folder), str(rank), str(world), str(port)]
    with (folder / f"{engine}-{rank}.log").open("w") as log:
        return subprocess.Popen([sys.executable, WORKLOAD, *arguments], stdout=log, stderr=log)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run one process alone and all engines, and end them in time: folder, codes and logs."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = {"alone": start(keras.backend.backend(), ALONE, folder, 0, 1, 0)}
    port = free_ports(10)
    for engine, ranks, world, schemes in RUNS:
        for rank in range(ranks):
            jobs[f"{engine} {rank}"] = start(engine, schemes, folder, rank, world, port)
        port += ranks
    try:
        codes = {name: job.wait(SECONDS) for name, job in jobs.items()}
    finally:
        for job in jobs.values():
            job.kill()
            job.wait()
    return folder, codes, "\n".join(log.read_text() for log in folder.glob("*.log"))


def scales(file):
    """The scales of the tensors of a file that have one for each channel: the weights."""
    tensors = [tensor for graph in read(file.tobytes()).graphs for tensor in graph.tensors]
    return [np.asarray(t.scales) for t in tensors if t.scales is not None and len(t.scales) > 1]


def test_processes_end_as_they_should(runs):
    """The last one is killed, and the other ends by the error of its engine."""
    _, codes, logs = runs
    (lost,) = (f"{engine} 1" for engine, *_, schemes in RUNS if "lost" in schemes)
    assert codes == dict.fromkeys(codes, 0) | {lost: 9}, logs
    assert re.search(r"lost 0: \S", logs), logs


@pytest.mark.parametrize(("engine", "ranks", "world", "scheme"), TRAINED)
def test_many_train_as_one(engine, ranks, world, scheme, runs):
    folder, _, logs = runs
    alone = scheme if scheme in ALONE.split(",") else "int8"
    names = [f"{keras.backend.backend()}-{alone}-1-0"]
    names += [f"{engine}-{scheme}-{world}-{rank}" for rank in range(ranks)]
    assert all((folder / f"{name}.npz").exists() for name in names), logs
    one, *many = (dict(np.load(folder / f"{name}.npz")) for name in names)
    for other in many[1:]:
        for name, value in many[0].items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)
    files = [scales(result.pop("litert")) for result in (one, many[0])]
    for theirs, ours in zip(*files, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=OF_SCALES.get(scheme, 1e-5))
    for name, value in one.items():
        allowed = TOLERANCE.get(scheme, 2e-3) * np.abs(value).max(initial=1e-3)
        error = np.abs(many[0][name] - value).max(initial=0)
        assert error <= allowed, f"{name}: {error}"


@pytest.mark.parametrize(("engine", "scheme"), sorted(REFUSED))
def test_processes_with_different_ranges_are_refused(engine, scheme, runs):
    # JAX itself compares what processes assign.
    said = "not the same on each" if engine == "jax_processes" else "have different ranges for"
    for rank in range(2):
        log = (runs[0] / f"{engine}-{rank}.log").read_text()
        assert re.search(rf"{scheme} {rank}: .*{said}", log, re.DOTALL), log


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="others give parts of a batch")
def test_a_process_without_samples_is_refused(runs):
    assert re.search("lost 1: .*batch without samples", runs[2], re.DOTALL)
    assert re.search("lost 0: .*by peer", runs[2], re.DOTALL)
