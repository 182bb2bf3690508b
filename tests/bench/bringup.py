"""How long sixty-four machines take to be ready, and the private memory of each; without a reference in C."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.figure import Bar, Figure
from tests.bench.setting import Setting

__all__ = ["measure_bringup"]

READY = Bar(2.0, 2.0)
MEMORY = Bar(3.2, 2.6)
MEBIBYTE = 1 << 20


def measure_bringup(setting: Setting) -> Iterator[Figure]:
    """The included topology ``storm_64``, on all CPUs; memory without the pages of the recording."""
    ready, memory, memory_max = [], [], []
    overrides = {"run.duration_s": str(setting.size(1.0, 0.2)), "run.warmup_s": "0.0"}
    if setting.tiny:
        overrides["machines.storm.count"] = "3"
    for _ in range(setting.size(3, 1)):
        run = setting.run("storm_64", overrides=overrides, resources_every_s=0.1)
        resources = run.figures.groups["storm"].resources
        assert run.figures.ready_s is not None
        assert resources is not None
        ready.append((run.figures.ready_s, 0.0))
        memory.append(((resources.private_bytes or 0) / MEBIBYTE, 0.0))
        memory_max.append(((resources.private_bytes_max or 0) / MEBIBYTE, 0.0))
    yield Figure("bringup", "storm_64: all Ready after", "s", ready, READY, absolute=True)
    yield Figure("bringup", "storm_64: private, each machine", "MiB", memory, MEMORY, absolute=True)
    yield Figure("bringup", "storm_64: private, the largest", "MiB", memory_max, MEMORY, absolute=True)
