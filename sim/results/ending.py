"""The ending of a run, as its figures need it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from sim.results.store.files import RUNNING, STATUSES
from sim.results.store.manifest import Phase
from sim.results.summary import BaselineMeasurement, Natural, Outlier

Count = Annotated[int, Meta(ge=0, le=1 << 44)]
Index = Annotated[int, Meta(ge=0, lt=1 << 16)]
ForeignPeer = Annotated[int, Meta(ge=0, lt=1 << 32)]
"""The number of a domain, and the ID of a peer in it: ``domain << 16 | peer``."""


class Ending(msgspec.Struct, frozen=True):
    """``ending.json``: all that the figures need and the recordings do not hold.

    It is written first of all, so that a later reader of the directory computes the same figures. ``deaths`` say of
    each row that ended otherwise than by its own will how that was ("SIGKILL", "exit 1"). ``pending`` has (row,
    vector, doorbells), None when it was not counted; ``foreign_pending`` has (domain << 16 | peer, vector,
    doorbells), ``foreign_peers`` the number of those that have joined. Times are CLOCK_MONOTONIC, 0 when the run
    never got there. ``refused_...`` count what the disk did not take; ``baselines`` are the wake-up baselines before
    and after the run. ``stays`` has (row, domain, peer, since when) of each peer ID that more than one row has had:
    only ivshmem v2 reuses IDs. ``outlier`` is the doorbell that ended the run, if one did.
    """

    status: str
    reason: str
    deaths: dict[Index, str]
    pending: list[tuple[Index, Index, Count]] | None
    foreign_pending: list[tuple[ForeignPeer, Index, Count]]
    start_ns: Natural
    measure_start_ns: Natural
    stop_ns: Natural
    foreign_peers: Natural = 0
    refused_events: Natural = 0
    refused_resources: Natural = 0
    baselines: list[BaselineMeasurement] = []
    phases: list[Phase] = []
    identities: list[tuple[Index, Natural, Index]] = []
    moves: list[tuple[Index, Natural, Index, Natural]] = []
    stays: list[tuple[Index, Natural, Index, Natural]] = []
    outlier: Outlier | None = None

    @property
    def elapsed_s(self) -> float:
        """How long the machines ran; 0 when they were never started."""
        return max(0, self.stop_ns - self.start_ns) / 1e9 if self.start_ns else 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES or self.status == RUNNING:
            raise ValueError(f"no run ends as {self.status!r}")
