"""The configuration of a worker: plain data, which reaches it in a memfd."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from sim.recording import RecordingLayout


@dataclass(frozen=True)
class DeviceConfiguration:
    """Where a device of a machine connects, and the recording that it writes to, of this ``layout``."""

    server: str
    domain: int
    memory_bytes: int
    recording: str
    layout: RecordingLayout


@dataclass(frozen=True, slots=True)
class WorkerConfiguration:
    """All that a worker is told when it starts.

    ``profiles`` has one for each device. ``peers`` and ``traces`` are parameters whose machines are given by index;
    their IDs follow in orders, and those of foreign peers for the parameters in ``foreign``. ``load`` are the pieces of
    `nodes.load.Load`. A machine of the kind "external" is awaited on ``socket`` for ``ready_timeout_s``.
    Garbage collections that take ``collections_from_ns`` or more are recorded; 0: none.
    """

    name: str
    kind: str
    machine: int
    vectors: int
    role: str
    profiles: tuple[str, ...]
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
    socket: str = ""
    ready_timeout_s: float = 0.0
    foreign: tuple[str, ...] = ()
    collections_from_ns: int = 0


decode_configuration = msgspec.msgpack.Decoder(WorkerConfiguration).decode
"""From bytes to a configuration. Made once, before workers are forked: they share what it needs of msgspec."""


def common_part(configuration: WorkerConfiguration) -> WorkerConfiguration:
    """What a machine's devices are made from: equal for all machines of a kind, the rest of the fields are empty."""
    return replace(
        configuration,
        name="",
        machine=0,
        program="",
        parameters={},
        peers={},
        traces={},
        seed="",
        cpus=(),
        policy="other",
        priority=0,
        nice=0,
        devices=tuple(replace(device, server="", recording="") for device in configuration.devices),
        socket="",
        foreign=(),
    )
