"""Doorbells per second of CPU time under virtual time, against SimPy on the same traffic."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from sim.results import Run
from tests.bench.figure import Bar, Figure, alternate
from tests.bench.heap_model import ring_on_a_heap
from tests.bench.setting import Setting
from tests.bench.simpy_model import ring, storm
from topologies import Topology, loads

__all__ = ["alone", "doorbells_per_s", "measure_virtual"]

STORM_64 = Bar(3.0, 4.0, more_is_better=True)
VECTORS, BURST = 4, 64
ROOT = Path(__file__).parents[2]
RING_65536 = Bar(6.0, 8.0, more_is_better=True)
RING_MACHINES, RATE_HZ = 65_535, 0.5
STOPWATCH = """
[machines.stopwatch]
program = "tests.bench.programs:stopwatch"
parameters = { path = "" }
"""
"""Both are measured between the same two shares of the run: no start, no results."""


def measure_virtual(setting: Setting) -> Iterator[Figure]:
    """``storm_64``, and ``virtual_ring`` with all IDs: one of them is that of the stopwatch."""
    machines, seconds = setting.size(64, 4), setting.size(0.8, 0.2)
    pairs = alternate(
        setting.size(3, 1),
        _ours(setting, "storm_64", seconds, {"machines.storm.count": str(machines)}),
        alone(storm, machines, VECTORS, BURST, setting.size(0.05, 0.005)),
    )
    yield Figure("virtual", f"storm_64, {machines} machines", "/s", pairs, STORM_64)
    machines, seconds = setting.size(RING_MACHINES, 15), setting.size(8.0, 20.0)
    simpy = alone(ring, machines, RATE_HZ, seconds)
    heap = alternate(1, alone(ring_on_a_heap, machines, RATE_HZ, seconds), simpy)
    yield Figure("virtual", f"heap alone, {machines:,} machines", "/s", heap)
    pairs = alternate(
        1,
        _ours(setting, "virtual_ring", seconds, {"machines.node.count": str(machines)}),
        simpy,
    )
    yield Figure("virtual", f"virtual_ring, {machines:,} machines", "/s", pairs, RING_65536)


def alone(model: Callable[..., float], *sizes: float) -> Callable[[], float]:
    """Measure a model in a process of its own.

    The objects that a run of 65,536 machines leaves here would be looked at by each garbage collection: they made SimPy
    four times slower.
    """
    script = f"from {model.__module__} import {model.__name__} as model; print(model(*{sizes!r}))"
    command = [sys.executable, "-c", script]
    return lambda: float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)


def _ours(setting: Setting, topology: str, seconds: float, settings: dict[str, str]) -> Callable[[], float]:
    return lambda: doorbells_per_s(setting.run, Path(setting.folder), topology, seconds, settings)


def doorbells_per_s(
    run: Callable[[Topology], Run], folder: Path, topology: str, seconds: float, settings: dict[str, str]
) -> float:
    """Doorbells of an included topology under virtual time, per second of CPU time."""
    path = folder / "stopwatch"
    overrides = {
        **settings,
        "run.engine": "virtual",
        "run.sample_every": "256",
        "run.duration_s": str(seconds),
        "run.warmup_s": "0.0",
        "machines.stopwatch.parameters.path": json.dumps(str(path)),
    }
    text = resources.files("topologies").joinpath(f"scenarios/{topology}.toml").read_text()
    finished = run(loads(text + STOPWATCH, overrides=overrides))
    cpu_s, share = map(float, path.read_text().split())
    return finished.figures.rung * share / cpu_s
