"""The published state of a run at one moment."""

from __future__ import annotations

import msgspec

from sim.access import Access


class Group(msgspec.Struct, frozen=True):
    """The machines of one group together, since the start."""

    machines: int
    up: int
    rung: int
    delivered: int
    interrupts: int
    refused: int


class RecentEvent(msgspec.Struct, frozen=True):
    """An event of the run: its kind, and a sentence about it."""

    time_ns: int
    kind: str
    text: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """The state of a run. Times are nanoseconds of CLOCK_MONOTONIC on this host.

    ``heartbeats_late`` counts the times that a machine had not answered a ping when the next one was due.
    What has a default is not told by every version: ``title`` and ``path`` of the run, ``happened`` (the latest
    events, oldest first), ``latency_ns`` (percentiles of delivery in the last moments, by name), ``access`` (how to
    join its domains, of at most 16).
    """

    number: int
    time_ns: int
    phase: str
    machines: int
    up: int
    start_ns: int | None
    stop_ns: int | None
    heartbeats_late: int
    groups: dict[str, Group]
    title: str = ""
    path: str = ""
    happened: tuple[RecentEvent, ...] = ()
    latency_ns: dict[str, int] = {}
    access: tuple[Access, ...] = ()
