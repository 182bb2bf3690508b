"""What the timeline has done to machines, and for how long each of it lasted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.results.analysis.outlier.evidence import Deed

__all__ = ["Deeds"]

ENDED_BY = {"stall": ("resume",), "fill": ("resume",), "mask": ("unmask", "reset"), "slow": ("slow",)}
"""The actions that last, and those that end them."""
FOREVER = 1 << 62
KEPT = 256


class Deeds:
    """Follows the events of a run."""

    def __init__(self) -> None:
        self._over: list[Deed] = []
        self._open: dict[tuple[str, str], Deed] = {}

    def note(self, now_ns: int, kind: str, fields: Mapping[str, Any]) -> None:
        """An event has happened now."""
        match fields:
            case {"do": str(do), "machine": str(machine), **rest} if kind == "action" and "skipped" not in rest:
                self._act(now_ns, do, machine, rest)
            case {"machine": str(machine), "downtime_ms": float(downtime_ms)} if kind.startswith("migrat"):
                begin_ns = now_ns - round(downtime_ms * 1e6)
                text = f"{machine} migrated and stood still for {downtime_ms:.3g} ms"
                self._add(Deed(machine, "migrate", begin_ns, now_ns, text))

    def between(self, begin_ns: int, end_ns: int) -> list[Deed]:
        """What lasted in that span, in order."""
        every = [*self._over, *self._open.values()]
        return sorted(
            (deed for deed in every if deed.begin_ns < end_ns and deed.end_ns > begin_ns),
            key=lambda deed: deed.begin_ns,
        )

    def _act(self, now_ns: int, do: str, machine: str, rest: Mapping[str, Any]) -> None:
        for begun, ended_by in ENDED_BY.items():
            if do in ended_by and (deed := self._open.pop((machine, begun), None)) is not None:
                self._add(Deed(machine, begun, deed.begin_ns, now_ns, deed.text))
        if do in ENDED_BY and rest.get("delay_us") != 0:
            line = f" (line {rest['line']})" if rest.get("line") else ""
            text = f"{do} of {machine} by the timeline{line}"
            self._open[machine, do] = Deed(machine, do, now_ns, FOREVER, text)

    def _add(self, deed: Deed) -> None:
        self._over = [*self._over, deed][-KEPT:]
