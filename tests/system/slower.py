"""Runs with a timeline, slower again for as long as the host cannot keep up with it.

A timeline names times. On a busy host a machine that joins at 0.5 s may be Ready after 0.9 s, and what was planned for
0.7 s then meets no machine. Such a run says nothing about the product, so all its times are doubled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sim
from topologies import loads

__all__ = ["SCALES", "run_in_time", "scaled"]

SCALES = (1, 2, 4, 8)
LATE_NS = 100_000_000
"""How late an action may have its effect at scale 1: less than what the tests leave between two actions."""

_TIMES = re.compile(r"^(at_s|every_s|period_s|duration_s|warmup_s) = ([0-9.]+)$", re.MULTILINE)
_EFFECTS = {
    "join": {"machine_joined"},
    "leave": {"machine_left"},
    "kill": {"machine_left"},
    "migrate": {"migrated", "migration_failed", "machine_left"},
}


def run_in_time(text: str, runs: Path, overrides: Mapping[str, str] | None = None) -> sim.Run:
    """Run a topology; again and slower while an action takes its effect too late for the times of the file."""
    for scale in SCALES:
        slower = scaled(text, scale)
        times = {key: value for key, value in (overrides or {}).items() if key.endswith("_s")}
        more = {**(overrides or {}), **{key: str(float(value) * scale) for key, value in times.items()}}
        result = sim.run(loads(slower, overrides=more), runs=runs, resources_every_s=0)
        if _latest_effect_ns(result.events()) <= LATE_NS * scale:
            break
    return result


def scaled(text: str, scale: int) -> str:
    """The text of a topology with all its times multiplied."""
    return _TIMES.sub(lambda found: f"{found[1]} = {float(found[2]) * scale:.6f}", text)


def _latest_effect_ns(events: list[dict[str, Any]]) -> int:
    """The longest time from an action to its effect; of an action without one, to the end of the events."""
    begun: dict[tuple[str, str], int] = {}
    latest_ns = 0
    for event in events:
        machine = str(event.get("machine")).partition(".")[0]
        if event["kind"] == "action" and event["do"] in _EFFECTS and not {"skipped", "refused"} & event.keys():
            begun.setdefault((event["do"], machine), event["time_ns"])
        for do, kinds in _EFFECTS.items():
            if event["kind"] in kinds and (at_ns := begun.pop((do, machine), None)) is not None:
                latest_ns = max(latest_ns, event["time_ns"] - at_ns)
    return max([latest_ns, *(events[-1]["time_ns"] - at_ns for at_ns in begun.values())])
