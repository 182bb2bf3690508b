"""A round trip between two machines, each a process, against two processes in C: on one core, and on two."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import numpy as np

from tests.bench.figure import Bar, Figure, alternate
from tests.bench.placement import pinned
from tests.bench.setting import Setting
from topologies import loads

__all__ = ["measure_cross_core", "measure_same_core"]

SAME_CORE = Bar(2.0, 1.8)
CROSS_CORE = Bar(1.15, 1.05)

TOPOLOGY = """
title = "Bench: round trips"
[run]
duration_s = {duration_s}
warmup_s = 0.05
sample_every = 0
[machines.ping]
program = "tests.bench.programs:{program}"
parameters = {{ to = "echo", cpu = {cpu} }}
[machines.echo]
program = "tests.bench.programs:echo_on"
parameters = {{ to = "ping", cpu = {other_cpu} }}
"""


def measure_same_core(setting: Setting) -> Iterator[Figure]:
    """Both on one core, so that the placement makes no difference."""
    rounds, cpu = setting.size(5, 1), setting.cpu
    measured = alternate(
        rounds,
        _ours(setting, "serve_on", cpu, cpu),
        _ours(setting, "ping_on", cpu, cpu),
        _theirs(setting, "read", cpu, cpu),
        _theirs(setting, "epoll", cpu, cpu),
    )
    served = [(ours, read) for ours, _, read, _ in measured]
    yield Figure("same-core", "round trip p50 / C read", "ns", served, SAME_CORE)
    yield Figure("same-core", "round trip p50 / C epoll", "ns", [(ours, epoll) for ours, _, _, epoll in measured])
    yield Figure("same-core", "shipped ping p50 / C read", "ns", [(ping, read) for _, ping, read, _ in measured])


def measure_cross_core(setting: Setting) -> Iterator[Figure]:
    """Each on its own core; nothing on a host with one CPU."""
    if setting.other_cpu is None:
        return
    rounds, cpu, other_cpu = setting.size(5, 1), setting.cpu, setting.other_cpu
    measured = alternate(
        rounds,
        _ours(setting, "serve_on", cpu, other_cpu),
        _theirs(setting, "epoll", cpu, other_cpu),
        _theirs(setting, "read", cpu, other_cpu),
    )
    yield Figure("cross-core", "round trip p50 / C epoll", "ns", [row[:2] for row in measured], CROSS_CORE)
    yield Figure("cross-core", "round trip p50 / C read", "ns", [(ours, read) for ours, _, read in measured])


ENOUGH = 8


def _theirs(setting: Setting, way: str, cpu: int, other_cpu: int) -> Callable[[], float]:
    # Waking another core takes ten times as long.
    round_trips = setting.size(30_000 if cpu == other_cpu else 8_000, 200)
    return lambda: statistics.median(setting.reference.ping_pong(way, cpu, other_cpu, round_trips))


def _ours(setting: Setting, program: str, cpu: int, other_cpu: int) -> Callable[[], float]:
    """A whole run: server, workers, recordings. The drains of one machine give its round trips."""
    text = TOPOLOGY.format(duration_s=setting.size(0.4, 0.1), program=program, cpu=cpu, other_cpu=other_cpu)

    def measure() -> float:
        while True:
            with pinned(cpu):
                drains = setting.run(loads(text)).drains()
            stamps = drains["delivered_ns"].to_numpy()[drains["machine"].to_numpy() == 0]
            if len(stamps) >= ENOUGH:  # a machine that hardly gets its CPU has made no round trips
                return float(np.median(np.diff(stamps[len(stamps) // 8 :])))

    return measure
