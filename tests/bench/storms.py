"""Machines that all ring all, on one core: doorbells per second of CPU, against as many processes in C.

The figure uses CPU time: other processes on the core take elapsed time from ours and from C, and not equally. On an
idle host both are the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.figure import Bar, Figure, alternate
from tests.bench.placement import pinned
from tests.bench.setting import Setting

__all__ = ["measure_storms"]

STORM_16 = Bar(0.8, 0.9, more_is_better=True)
STORM_64 = Bar(0.75, 0.85, more_is_better=True)
VECTORS, BURST = 4, 64
SECOND_NS = 1_000_000_000


def measure_storms(setting: Setting) -> Iterator[Figure]:
    """The included topologies ``doorbell_storm`` and ``storm_64``; their starts are short compared with the rest."""
    for topology, machines, full_s, bar in (("doorbell_storm", 16, 0.8, STORM_16), ("storm_64", 64, 2.0, STORM_64)):
        count, duration_s = setting.size(machines, 3), setting.size(full_s, 0.1)
        with pinned(setting.cpu):
            pairs = alternate(
                setting.size(3, 1),
                _ours(setting, topology, count, duration_s),
                _theirs(setting, count, duration_s),
            )
        yield Figure("storms", f"{topology}, {count} machines", "/s", pairs, bar)


def _theirs(setting: Setting, machines: int, duration_s: float) -> Callable[[], float]:
    return lambda: setting.reference.storm(machines, VECTORS, BURST, duration_s)


def _ours(setting: Setting, topology: str, machines: int, duration_s: float) -> Callable[[], float]:
    def measure() -> float:
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            overrides = {
                "machines.storm.count": str(machines),
                "machines.storm.program": "tests.bench.programs:storm_timed",
                "machines.storm.parameters.burst": str(BURST),
                "machines.storm.parameters.folder": json.dumps(folder),
                "run.duration_s": str(duration_s),
                "run.warmup_s": "0.0",
            }
            run = setting.run(topology, overrides=overrides)
            cpu_ns = [int(path.read_text()) for path in Path(folder).glob("*.cpu")]
            assert len(cpu_ns) == machines
            return float(run.figures.rung) * SECOND_NS / sum(cpu_ns)

    return measure
