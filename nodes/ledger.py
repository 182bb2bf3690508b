"""Where a machine's doorbells are counted and time-stamped: what an instrument offers to `nodes.doorbells`."""

from __future__ import annotations

from typing import Protocol


class Ledger(Protocol):
    """Where an instrument keeps what was rung; all times in nanoseconds of one monotonic clock."""

    def open_edge(self, peer: int, vector: int) -> int:
        """Allocate the counters of an edge; returns its number. Called once for each edge, before its first ring."""

    def store_edge(self, edge: int, rung: int, refused: int) -> None:
        """Store the counts of one edge: doorbells in all, and those of them that were refused."""

    def sample(self, edge: int, rung: int, refused: int, intended_ns: int, rung_ns: int) -> None:
        """Store the counts of one edge, then the time stamps of its latest doorbell, which is about to be rung.

        If the machine is killed between these two, that doorbell is known to be missing. ``intended_ns`` is 0 without a
        schedule.
        """

    def store_nowhere(self, rung: int) -> None:
        """Store how many doorbells were rung at a peer or vector that was never connected."""


class NoLedger:
    """A `Ledger` that keeps nothing, for a machine that is not measured."""

    def open_edge(self, peer: int, vector: int) -> int:
        return 0

    def store_edge(self, edge: int, rung: int, refused: int) -> None:
        pass

    def sample(self, edge: int, rung: int, refused: int, intended_ns: int, rung_ns: int) -> None:
        pass

    def store_nowhere(self, rung: int) -> None:
        pass
