"""From the account of a run to its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sim.host.resource_row import COORDINATOR
from sim.recording import Counters
from sim.results.analysis.account import Account
from sim.results.analysis.balance import LineAccount, totals
from sim.results.analysis.labels import group_of_machines
from sim.results.analysis.latency.distribution import NOTHING, LatencyDistribution
from sim.results.analysis.resource_usage import host_use, profile
from sim.results.analysis.warnings import warnings
from sim.results.arrays import sums_at
from sim.results.ending import Ending
from sim.results.store.manifest import SCHEMA_VERSION
from sim.results.summary import BaselineFigures, GroupFigures, Latencies, Percentiles, ProcessUse, Summary

NOWHERE, FOREIGN = "nowhere", "foreign"


def summarize(
    account: Account, latencies: LatencyDistribution, drained: tuple[Percentiles, list[Percentiles]]
) -> Summary:
    """The content of ``summary.json``. ``drained``: doorbells for each drain, of all and of each group."""
    manifest, ending, records = account.manifest, account.ending, account.records
    groups = _groups(account, latencies, drained[1])
    sums: dict[str, Any] = totals(account.lines)
    nowhere = sum(record.counters.rung_nowhere for record in records)
    sums["rung"] += nowhere
    sums["refused"] += nowhere
    sums |= Counters.total(record.counters for record in records).named()
    # The start did not wait for machines that joined during the run.
    first = [record.ready_ns for record in records if not ending.start_ns or record.ready_ns < ending.start_ns]
    ready = [ready_ns - manifest.started_ns for ready_ns in first if ready_ns or not ending.start_ns]
    if ending.start_ns and ending.start_ns == ending.stop_ns:
        ready = []  # it ended before it began, so one at least was never ready
    status, reason = _verdict(account)
    machines = [machine.index for machine in manifest.machines]
    used = profile(account.resources, machines, ending.start_ns, ending.stop_ns)
    baseline = _baseline(ending, latencies.all.delivery)
    figures = Summary(
        schema_version=SCHEMA_VERSION,
        version=manifest.version,
        title=manifest.title,
        status=status,
        reason=reason,
        balanced=not any(line.missing for line in account.lines),
        machines=sum(machine.of is None for machine in manifest.machines),
        **sums,
        **_rates(sums, ending.elapsed_s),
        guest_difference=account.guest_difference,
        samples=account.matching.samples,
        unmatched=account.matching.unmatched,
        drains=account.matching.drains,
        overfull_drains=account.matching.overfull,
        pending_derived=ending.pending is None,
        seed=manifest.seed,
        duration_s=round(max(0, ending.stop_ns - ending.measure_start_ns) / 1e9, 6) if ending.start_ns else 0.0,
        elapsed_s=round(ending.elapsed_s, 6),
        warmup_s=manifest.warmup_s,
        ready_s=round(max(ready) / 1e9, 6) if min(ready, default=0) > 0 else None,
        cpus=manifest.host.cpus,
        latency_ns=latencies.all,
        groups=groups,
        coordinator=profile(account.resources, [COORDINATOR], ending.start_ns, ending.stop_ns),
        deaths={
            manifest.machines[machine].name: how
            for machine, how in sorted(ending.deaths.items())
            if machine < len(manifest.machines)
        },
        problems=account.problems,
        drained=drained[0],
        phases=latencies.phases,
        resources=used,
        cpu_ns_per_doorbell=_per_doorbell(used, sums["rung"], ending.elapsed_s),
        host=host_use(account.resources, ending.start_ns, ending.stop_ns),
        wake_up_baseline=baseline,
        clock_source=manifest.host.clock_source,
        missed_oldest_ns=max((record.missed_oldest_ns for record in records), default=0),
        short_deliveries=account.matching.short,
        unscheduled=int(account.matching.unscheduled.sum()),
        start_ns=ending.start_ns,
        measure_start_ns=ending.measure_start_ns,
        stop_ns=ending.stop_ns,
        outlier=ending.outlier,
    )
    return msgspec.structs.replace(figures, warnings=list(warnings(figures)))


def _per_doorbell(used: ProcessUse | None, rung: int, seconds: float) -> float | None:
    """CPU nanoseconds for each doorbell: of all machines, ringing, taking and handling together."""
    if used is None or used.cpu_percent_sum is None or not rung:
        return None
    return round(used.cpu_percent_sum / 100 * seconds * 1e9 / rung, 1)


def _baseline(ending: Ending, delivery: Percentiles) -> BaselineFigures | None:
    """The lower of the two baselines that were measured, and delivery as a multiple of it."""
    if not ending.baselines:
        return None
    its = min(ending.baselines, key=lambda one: one.p50_ns)
    pairs = {"p50": (delivery.p50, its.p50_ns), "p99": (delivery.p99, its.p99_ns)}
    return BaselineFigures(
        **msgspec.structs.asdict(its),
        times_baseline={name: round(run / bare, 2) for name, (run, bare) in pairs.items() if run is not None and bare},
    )


def _groups(
    account: Account, latencies: LatencyDistribution, drained: Sequence[Percentiles]
) -> dict[str, GroupFigures]:
    """Figures of every group; of foreign peers, and of doorbells rung at no peer, if there are any."""
    manifest = account.manifest
    names = [group.name for group in manifest.groups]
    foreign, nowhere = _free(FOREIGN, names), _free(NOWHERE, names)
    sent = sums_at(group_of_machines(manifest)[account.edges[:, 0]], account.edges[:, 3], len(names) + 1)
    lines: dict[str, list[LineAccount]] = {name: [] for name in [*names, foreign]}
    for line in account.lines:
        lines[manifest.machines[line.machine].group if line.machine >= 0 else foreign].append(line)
    groups = {}
    for code, name in enumerate(names):
        members = [machine.index for machine in manifest.machines if machine.group == name]
        own = [account.records[machine] for machine in members]
        rung = int(sent[code]) + sum(record.counters.rung_nowhere for record in own)
        made = _group(account, lines[name], latencies.groups[code], sent=rung, members=members)
        groups[name] = msgspec.structs.replace(
            made,
            drained=drained[code],
            unscheduled=int(account.matching.unscheduled[members].sum()),
            **Counters.total(record.counters for record in own).named(),
        )
    if lines[foreign]:
        groups[foreign] = _group(account, lines[foreign], latencies.groups[-1], sent=0, members=[])
    rung_nowhere = sum(record.counters.rung_nowhere for record in account.records)
    if rung_nowhere:
        lines_nowhere = [LineAccount(-1, -1, -1, rung=rung_nowhere, refused=rung_nowhere)]
        groups[nowhere] = _group(account, lines_nowhere, NOTHING, sent=0, members=[])
    return groups


def _group(
    account: Account, lines: Sequence[LineAccount], latency_ns: Latencies, *, sent: int, members: Sequence[int]
) -> GroupFigures:
    sums: dict[str, Any] = totals(lines)
    ending = account.ending
    used = profile(account.resources, members, ending.start_ns, ending.stop_ns) if members else None
    return GroupFigures(
        machines=sum(account.manifest.machines[machine].of is None for machine in members),
        sent=sent,
        **sums,
        **_rates(sums, ending.elapsed_s),
        latency_ns=latency_ns,
        cpu_percent=used.cpu_percent if used else None,
        uss_bytes=used.uss_bytes if used else None,
        resources=used,
    )


def _verdict(account: Account) -> tuple[str, str]:
    """Status and reason: a run that does not balance has failed, whatever else it was."""
    status, reason = account.ending.status, account.ending.reason
    wrong = [line for line in account.lines if line.missing]
    if not wrong:
        return status, reason
    line = wrong[0]
    at = account.manifest.machines[line.machine].name if line.machine >= 0 else f"foreign peer {line.peer}"
    said = (
        f"the counts do not balance on {len(wrong)} of {len(account.lines)} lines; the first is {at}, vector "
        f"{line.vector}: rung {line.rung}, delivered {line.delivered}, pending {line.pending}, "
        f"refused {line.refused}"
    )
    return ("failed" if status in {"finished", "degraded"} else status), "; ".join(filter(None, (reason, said)))


def _rates(sums: Mapping[str, int], elapsed_s: float) -> dict[str, Any]:
    interrupts = sums["interrupts"]
    return {
        "coalescing": round(sums["delivered"] / interrupts, 4) if interrupts else None,
        "doorbells_per_s": round(sums["rung"] / elapsed_s, 1) if elapsed_s else None,
        "interrupts_per_s": round(interrupts / elapsed_s, 1) if elapsed_s else None,
    }


def _free(name: str, taken: Sequence[str]) -> str:
    """``name``, changed if a group of the topology has that name."""
    while name in taken:
        name += "_"
    return name
