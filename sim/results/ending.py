"""How a run ended: in its coordinator's words (``Outcome``), and as the figures need it (``Ending``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from sim.results.store.files import DIED, RUNNING, STATUSES
from sim.results.store.manifest import Phase

__all__ = ["BaselineLook", "Ending", "Outcome"]

Natural = Annotated[int, Meta(ge=0, le=1 << 62)]
Count = Annotated[int, Meta(ge=0, le=1 << 44)]
Index = Annotated[int, Meta(ge=0, lt=1 << 16)]
ForeignPeer = Annotated[int, Meta(ge=0, lt=1 << 32)]
"""The number of a domain, and the ID of a peer in it: ``domain << 16 | peer``."""


@dataclass(frozen=True)
class Outcome:
    """A run's end in the coordinator's words.

    ``status`` is finished, degraded, failed or interrupted; ``exits`` says of each machine that ended
    otherwise than by its own will how that was (``"SIGKILL"``, ``"exit 1"``); a machine that is not there, or
    None, ended cleanly and its last counts are stored.
    """

    status: str
    reason: str = ""
    exits: Mapping[int, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES or self.status in {RUNNING, DIED}:
            raise ValueError(f"a coordinator cannot end as {self.status!r}")


class BaselineLook(msgspec.Struct, frozen=True):
    """One measurement of the floor, as ``sim.host.wake_up_baseline`` made it."""

    p50_ns: Natural
    p99_ns: Natural
    count: Natural
    placement: Annotated[str, Meta(max_length=200)]
    clock_ns: Annotated[float, Meta(ge=0, le=1e9)]


class Ending(msgspec.Struct, frozen=True):
    """``ending.json``: all that the figures need and the recordings do not hold.

    Written first of all, so that whoever finds the directory later comes to the same figures. ``pending`` has
    (machine, vector, doorbells), ``foreign_pending`` (peer, vector, doorbells); None: nobody looked. Times
    are CLOCK_MONOTONIC, 0 when the run never got there. ``refused_...`` count what the disk did not take;
    ``floors`` are what was measured before and after the run.
    """

    status: str
    reason: str
    deaths: dict[Index, str]
    pending: list[tuple[Index, Index, Count]] | None
    foreign_pending: list[tuple[ForeignPeer, Index, Count]]
    start_ns: Natural
    measure_start_ns: Natural
    stop_ns: Natural
    refused_events: Natural = 0
    refused_resources: Natural = 0
    floors: list[BaselineLook] = []
    phases: list[Phase] = []
    identities: list[tuple[Index, Natural, Index]] = []
    moves: list[tuple[Index, Natural, Index, Natural]] = []

    def __post_init__(self) -> None:
        if self.status not in STATUSES or self.status == RUNNING:
            raise ValueError(f"no run ends as {self.status!r}")
