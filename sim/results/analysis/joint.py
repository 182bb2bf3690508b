"""The summary of a run over several hosts, from those of its parts.

Counts are sums. Each doorbell is rung and taken on one host, so that each latency was measured with one clock; but
hosts differ, and latencies of machines on several hosts are not put together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from nodes.errors import UsageError
from sim.recording import Counters
from sim.results.analysis.balance import COUNTED
from sim.results.analysis.latency.distribution import NOTHING
from sim.results.ending import Ending
from sim.results.run import Run
from sim.results.store.manifest import MachineRow, Manifest
from sim.results.summary import GroupFigures, PartFigures, Summary

LATENCIES_NOTE = (
    "latencies are known within a host only: counts are sums over the hosts, latencies of machines on several hosts "
    "are left out"
)
SUMS = (*COUNTED, "machines", "samples", "unmatched", "drains", "overfull_drains", "cpus", "short_deliveries")


def join_machines(manifest: Manifest, parts: Mapping[str, Run]) -> Manifest:
    """The manifest with the further incarnations and devices of machines that the parts have found."""
    rows = [row for row in manifest.machines if row.of is None]
    index_of = {row.name: row.index for row in rows}
    numbers = {name: number for number, name in enumerate(manifest.domains)}
    for run in parts.values():
        theirs = run.origin
        for row in theirs.machines:
            if row.of is not None and row.name not in index_of:
                index_of[row.name] = len(rows)
                domain = numbers.get(theirs.domains[row.domain], 0) if row.domain < len(theirs.domains) else 0
                of = index_of[theirs.machines[row.of].name]
                rows.append(MachineRow(len(rows), row.name, row.group, row.vectors, domain, of))
    return msgspec.structs.replace(manifest, machines=rows)


def join_summaries(manifest: Manifest, parts: Mapping[str, Run], ending: Ending) -> Summary:
    """The summary of the whole.

    Args:
        manifest: that of the whole.
        parts: those of its parts that are there, by host.
        ending: how the command saw it end.
    """
    figures, problems = {}, []
    for host in (row.host for row in manifest.parts):
        try:
            figures[host] = parts[host].figures
        except KeyError:
            problems.append(f"{host}: its part is missing, and its doorbells are in no count")
        except UsageError as error:
            problems.append(f"{host}: {error}")
    every = list(figures.values())
    elapsed_s = max((part.elapsed_s for part in every), default=0.0)
    ready = [part.ready_s for part in every]
    differences = [part.guest_difference for part in every if part.guest_difference is not None]
    alone = every[0] if len(manifest.parts) == len(every) == 1 else None
    return Summary(
        schema_version=manifest.schema_version,
        version=manifest.version,
        title=manifest.title,
        status=ending.status,
        reason=ending.reason,
        balanced=all(part.balanced for part in every),
        **_sums(every, SUMS),
        pending_derived=any(part.pending_derived for part in every),
        seed=manifest.seed,
        duration_s=max((part.duration_s for part in every), default=0.0),
        elapsed_s=elapsed_s,
        warmup_s=manifest.warmup_s,
        ready_s=max((ready_s for ready_s in ready if ready_s is not None), default=None) if None not in ready else None,
        latency_ns=alone.latency_ns if alone else NOTHING,
        groups=_groups(manifest, every),
        coordinator=None,
        deaths={name: how for part in every for name, how in part.deaths.items()},
        problems=problems + [f"{host}: {problem}" for host, part in figures.items() for problem in part.problems],
        warnings=[
            *([] if alone else [LATENCIES_NOTE]),
            *(f"{host}: {warning}" for host, part in figures.items() for warning in part.warnings),
        ],
        migrations=[outcome for part in every for outcome in part.migrations],
        statistics={name: values for part in every for name, values in part.statistics.items()},
        missed_oldest_ns=max((part.missed_oldest_ns for part in every), default=0),
        unscheduled=sum(part.unscheduled for part in every),
        guest_difference=sum(differences) if differences else None,
        outlier=next((part.outlier for part in every if part.outlier is not None), None),
        parts={
            host: PartFigures(**{name: getattr(part, name) for name in PartFigures.__struct_fields__})
            for host, part in figures.items()
        },
    )


def _sums(parts: Collection[Summary] | Collection[GroupFigures], names: Iterable[str]) -> dict[str, Any]:
    """What adds up, and the rates of that."""
    sums: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in names}
    sums["coalescing"] = round(sums["delivered"] / sums["interrupts"], 4) if sums["interrupts"] else None
    for rate in ("doorbells_per_s", "interrupts_per_s"):
        known = [value for part in parts if (value := getattr(part, rate)) is not None]
        sums[rate] = round(sum(known), 1) if known else None
    return sums | Counters.total(parts).named()


def _groups(manifest: Manifest, parts: Collection[Summary]) -> dict[str, GroupFigures]:
    """The figures of every group: those of its only part, or sums."""
    names = dict.fromkeys([group.name for group in manifest.groups])
    names |= dict.fromkeys(name for part in parts for name in part.groups)
    found = {name: [part.groups[name] for part in parts if name in part.groups] for name in names}
    return {name: groups[0] if len(groups) == 1 else _joined(groups) for name, groups in found.items() if groups}


def _joined(parts: Sequence[GroupFigures]) -> GroupFigures:
    return GroupFigures(**_sums(parts, (*COUNTED, "machines", "sent", "unscheduled")), latency_ns=NOTHING)
