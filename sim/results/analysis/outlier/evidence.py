"""The evidence about one outlier, as ``outlier.json`` has it: the last second of the run, and its surroundings."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from sim.host.process_looks import CpuLook, OtherProcess, ProcessLook

Name = Annotated[str, Meta(max_length=200)]


class LatencyPart(msgspec.Struct, frozen=True):
    """A part of the doorbell's time in which one machine had to act: ``name`` is a latency."""

    name: Name
    machine: Name
    begin_ns: int
    end_ns: int

    @property
    def span_ns(self) -> int:
        return self.end_ns - self.begin_ns


class ActionSpan(msgspec.Struct, frozen=True):
    """What the timeline did to a machine, and for how long it lasted."""

    machine: Name
    do: Name
    begin_ns: int
    end_ns: int
    text: Annotated[str, Meta(max_length=1000)]


class MachineEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one machine around that time.

    Attributes:
        pid: its process; None without one of its own.
        looks: at its process, in order.
        collections: (begin, end) of garbage collections; end 0 for one that goes on.
        drains: (delivered, handled) of its latest drains.
        throttled: how often the quota of its cgroup stopped it, and for how long in nanoseconds.
        masked, dropped, refused: doorbells since the doorbell was due that found their vector masked, that the device
            dropped, that it was refused because its counter was full.
    """

    pid: int | None = None
    looks: list[ProcessLook] = []
    collections: list[tuple[int, int]] = []
    drains: list[tuple[int, int]] = []
    throttled: tuple[int, int] = (0, 0)
    masked: int = 0
    dropped: int = 0
    refused: int = 0


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All evidence about a doorbell.

    Attributes:
        parts: its time in parts, in order.
        machines: by name; the sender and the receiver at least.
        actions: of the timeline, as far as they overlap that time.
        cpus: looks at all CPUs, in order.
        others: the processes beside the run that ran most in that time.
        fault_ns: what one page fault costs on this host.
        vector: the vector that was rung.
    """

    parts: list[LatencyPart]
    machines: dict[Name, MachineEvidence]
    actions: list[ActionSpan] = []
    cpus: list[CpuLook] = []
    others: list[OtherProcess] = []
    fault_ns: float = 0.0
    vector: int = 0
