"""The resources that each group used over time, from the table of resources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.host.resource_row import COORDINATOR
from sim.results import Run
from sim.results.analysis.resource_usage import private_bytes
from sim.results.arrays import Floats

COORDINATOR_NAME = "(coordinator)"
BINS_MAX = 240
# The last look is taken when the machines have been told to stop.
LAST_LOOK_S = 0.5


@dataclass(frozen=True)
class Usage:
    """One machine of a group on average: CPU in percent of one, memory in bytes without the instrument's share.

    Each has its own moments in seconds since the start: CPU is the time between two looks, memory a look.
    """

    name: str
    cpu_time_s: Floats
    cpu_percent: Floats
    memory_time_s: Floats
    memory_bytes: Floats


def usage(run: Run, start_ns: int, stop_ns: int) -> list[Usage]:
    """For each group and the coordinator, without what is empty. Raises ``UsageError`` without table or manifest."""
    table, manifest = run.resources(), run.origin
    names = [group.name for group in manifest.groups]
    columns = {
        name: table[name].cast("float64").to_numpy(zero_copy_only=False)
        for name in ("cpu_user_s", "cpu_system_s", "rss_bytes", "uss_bytes", "instrument_bytes")
    }
    machine, time_ns = table["machine"].to_numpy(), table["time_ns"].to_numpy()
    order = np.lexsort((time_ns, machine))
    machine, time_ns = machine[order], time_ns[order]
    cpu_s = (columns["cpu_user_s"] + columns["cpu_system_s"])[order]
    private = private_bytes(table["machine"].to_numpy(), columns["uss_bytes"], columns["instrument_bytes"])
    # Where no memory was ever summed up there is only the other figure; never one now and the other then.
    memory = (columns["rss_bytes"] if np.isnan(private).all() else private)[order]
    time_s = (time_ns - start_ns) / 1e9
    span_s = (stop_ns - start_ns) / 1e9
    groups = [(COORDINATOR_NAME, [COORDINATOR])]
    groups = [
        (name, [machine.index for machine in manifest.machines if machine.group == name]) for name in names
    ] + groups
    found = []
    for name, members in groups:
        its = np.isin(machine, members) & (time_s >= 0) & (time_s <= span_s + LAST_LOOK_S)
        its_machine, its_s = machine[its], time_s[its]
        same = its_machine[1:] == its_machine[:-1]
        step_s = np.diff(its_s)
        same &= step_s > 0
        if not same.any():
            continue
        percent = 100 * np.diff(cpu_s[its])[same] / step_s[same]
        middle_s = ((its_s[1:] + its_s[:-1]) / 2)[same]
        every_s = max(float(np.median(step_s[same])), span_s / BINS_MAX, 1e-3)
        summed_up = ~np.isnan(memory[its])
        sizes = _averaged(its_s[summed_up], memory[its][summed_up], every_s)
        found.append(Usage(name, *_averaged(middle_s, percent, every_s), *sizes))
    return found


def _averaged(time_s: Floats, values: Floats, every_s: float) -> tuple[Floats, Floats]:
    """The means of what falls into each ``every_s`` seconds, where anything does."""
    place = (time_s / every_s).astype(np.int64)
    count = np.bincount(place)
    there = np.flatnonzero(count)
    return tuple(np.bincount(place, weights=column)[there] / count[there] for column in (time_s, values))  # type: ignore[return-value]
