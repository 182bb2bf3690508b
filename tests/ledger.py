"""A ledger for machines whose books nobody reads."""

from __future__ import annotations


class NoLedger:
    """Implements ``nodes.doorbells.Ledger`` and keeps nothing."""

    def open_edge(self, peer: int, vector: int) -> int:
        return 0

    def store_edge(self, edge: int, rung: int, refused: int) -> None:
        pass

    def sample(self, peer: int, vector: int, intended_ns: int, rung_ns: int) -> None:
        pass

    def store_nowhere(self, rung: int) -> None:
        pass
