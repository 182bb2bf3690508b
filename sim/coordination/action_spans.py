"""The actions of the timeline on machines, and how long each lasted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.results.analysis.outlier.evidence import ActionSpan

ENDED_BY = {"stall": ("resume",), "fill": ("resume",), "mask": ("unmask", "reset"), "slow": ("slow",)}
"""The actions that last, and those that end them."""
FOREVER = 1 << 62
KEPT = 256


class ActionSpans:
    """Follows the events of a run."""

    def __init__(self) -> None:
        self._over: list[ActionSpan] = []
        self._open: dict[tuple[str, str], ActionSpan] = {}

    def note(self, now_ns: int, kind: str, fields: Mapping[str, Any]) -> None:
        """Take in an event of the run, which happens now."""
        match fields:
            case {"do": str(do), "machine": str(machine), **rest} if kind == "action" and "skipped" not in rest:
                self._act(now_ns, do, machine, rest)
            case {"machine": str(machine), "downtime_ms": float(downtime_ms)} if kind.startswith("migrat"):
                begin_ns = now_ns - round(downtime_ms * 1e6)
                text = f"{machine} migrated and stood still for {downtime_ms:.3g} ms"
                self._add(ActionSpan(machine, "migrate", begin_ns, now_ns, text))

    def between(self, begin_ns: int, end_ns: int) -> list[ActionSpan]:
        """The actions in effect during that span, in order."""
        every = [*self._over, *self._open.values()]
        return sorted(
            (action for action in every if action.begin_ns < end_ns and action.end_ns > begin_ns),
            key=lambda action: action.begin_ns,
        )

    def _act(self, now_ns: int, do: str, machine: str, rest: Mapping[str, Any]) -> None:
        for begun, ended_by in ENDED_BY.items():
            if do in ended_by and (action := self._open.pop((machine, begun), None)) is not None:
                self._add(ActionSpan(machine, begun, action.begin_ns, now_ns, action.text))
        if do in ENDED_BY and rest.get("delay_us") != 0:
            line = f" (line {rest['line']})" if rest.get("line") else ""
            text = f"{do} of {machine} by the timeline{line}"
            self._open[machine, do] = ActionSpan(machine, do, now_ns, FOREVER, text)

    def _add(self, action: ActionSpan) -> None:
        self._over = [*self._over, action][-KEPT:]
