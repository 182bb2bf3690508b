"""Doorbells per second of CPU time under virtual time, against SimPy on the same traffic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tests.bench.figure import Bar, Figure, alternate
from tests.bench.setting import Setting
from tests.bench.simpy_model import crowd, storm

__all__ = ["measure_virtual"]

STORM_64 = Bar(3.0, 4.0, more_is_better=True)
VECTORS, BURST = 4, 64
RATE_HZ = 50.0


def measure_virtual(setting: Setting) -> Iterator[Figure]:
    """``storm_64``, and ``virtual_ring`` with fewer machines at a higher rate."""
    machines, rounds = setting.size(64, 4), setting.size(3, 1)
    short_s, long_s = setting.size(0.05, 0.01), setting.size(0.35, 0.2)
    settings = {"machines.storm.count": str(machines), "run.warmup_s": "0.0"}
    pairs = alternate(
        rounds,
        _ours(setting, "storm_64", settings, short_s, long_s),
        lambda: storm(machines, VECTORS, BURST, setting.size(0.05, 0.005)),
    )
    yield Figure("virtual", f"storm_64, {machines} machines", "/s", pairs, STORM_64)
    machines = setting.size(4096, 16)
    short_s, long_s = setting.size(0.1, 0.05), setting.size(0.6, 20.0)
    settings = {"machines.node.count": str(machines), "machines.node.parameters.rate_hz": str(RATE_HZ / 10)}
    pairs = alternate(
        rounds,
        _ours(setting, "virtual_ring", settings, short_s, long_s),
        lambda: crowd(machines, RATE_HZ / 10, long_s),
    )
    yield Figure("virtual", f"virtual_ring, {machines} machines", "/s", pairs)


def _ours(
    setting: Setting, topology: str, settings: dict[str, str], short_s: float, long_s: float
) -> Callable[[], float]:
    """What a longer run rings more than a short one, for the CPU time that it takes more: no start, no results."""

    def spent(duration_s: float) -> tuple[int, float]:
        overrides = {**settings, "run.engine": "virtual", "run.sample_every": "256", "run.duration_s": str(duration_s)}
        begin = time.process_time()
        run = setting.run(topology, overrides=overrides)
        return run.figures.rung, time.process_time() - begin

    def measure() -> float:
        rung, cpu_s = spent(short_s)
        more_rung, more_cpu_s = spent(long_s)
        return (more_rung - rung) / (more_cpu_s - cpu_s)

    return measure
