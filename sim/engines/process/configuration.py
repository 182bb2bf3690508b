"""What a worker is told at its birth: plain data, pickled to it through the fork server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["DeviceConfiguration", "WorkerConfiguration"]


@dataclass(frozen=True)
class DeviceConfiguration:
    """Where a device of a machine connects, and what it writes to."""

    server: str
    domain: int
    memory_bytes: int
    recording: str


@dataclass(frozen=True)
class WorkerConfiguration:
    """All that a worker is told at its birth.

    ``peers`` and ``traces`` are parameters too, with machines by their indices: which IDs these have comes later.
    ``load`` are the pieces of `nodes.load.Load`.
    """

    name: str
    machine: int
    vectors: int
    role: str
    profile: str
    program: str
    parameters: dict[str, Any]
    peers: dict[str, tuple[int, ...]]
    traces: dict[str, tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]]
    seed: str
    sample_every: int
    load: tuple[tuple[int, float, float], ...]
    cpus: tuple[int, ...]
    policy: str
    priority: int
    nice: int
    devices: tuple[DeviceConfiguration, ...]
    runtime: str
