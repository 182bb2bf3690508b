"""From the account of a run to its summary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sim.results.account import Account
from sim.results.balance import Line, totals
from sim.results.latency import LATENCIES, Samples, grouped, values
from sim.results.manifest import SCHEMA_VERSION
from sim.results.profile import COORDINATOR, profile
from sim.results.summary import Group, Latencies, Percentiles, Summary

__all__ = ["summarize"]

Table = npt.NDArray[np.int64]

NOBODY, FOREIGN = "nobody", "foreign"


def _latencies(samples: Samples, codes: Table, groups: int) -> list[Latencies]:
    """The four latencies of the samples of each code, warm-up left out."""
    columns = {}
    for name in LATENCIES:
        figures, there = values(samples, name)
        there = there & ~samples.warmup & (codes >= 0)
        columns[name] = grouped(codes[there], figures[there], groups)
    return [
        Latencies(**{name: Percentiles(**columns[name][code]) for name in LATENCIES})  # type: ignore[arg-type]
        for code in range(groups)
    ]


def summarize(account: Account) -> Summary:
    """Everything that ``summary.json`` says."""
    manifest, ending, records = account.manifest, account.ending, account.records
    groups = _groups(account)
    sums = totals(account.lines)
    nowhere = sum(each.rung_nowhere for each in records)
    seconds = max(0, ending.stop_ns - ending.start_ns) / 1e9 if ending.start_ns else 0.0
    ready = [each.ready_ns - manifest.started_ns for each in records]
    status, reason = _verdict(account)
    return Summary(
        schema_version=SCHEMA_VERSION,
        version=manifest.version,
        title=manifest.title,
        status=status,
        reason=reason,
        balanced=not any(line.missing for line in account.lines),
        machines=len(manifest.machines),
        rung=sums["rung"] + nowhere,
        delivered=sums["delivered"],
        pending=sums["pending"],
        refused=sums["refused"] + nowhere,
        interrupts=sums["interrupts"],
        settled=sums["settled"],
        samples=len(account.samples),
        samples_refused=sum(each.rings_refused for each in records),
        unmatched=int(np.count_nonzero(account.samples.delivered_ns == 0)),
        drains=len(account.drains.machine),
        drains_refused=sum(each.drains_refused for each in records),
        overfull_drains=account.overfull,
        pending_derived=ending.pending is None,
        pended=sum(each.pended for each in records),
        dropped=sum(each.dropped for each in records),
        seed=manifest.seed,
        duration_s=round(seconds, 6),
        warmup_s=manifest.warmup_s,
        ready_s=round(max(ready) / 1e9, 6) if min(ready, default=0) > 0 else None,
        coalescing=_ratio(sums["delivered"], sums["interrupts"]),
        doorbells_per_s=_ratio(sums["rung"] + nowhere, seconds, 1),
        interrupts_per_s=_ratio(sums["interrupts"], seconds, 1),
        cpus=manifest.host.cpus,
        latency_ns=_latencies(account.samples, np.zeros(len(account.samples), np.int64), 1)[0],
        groups=groups,
        coordinator=profile(account.resources, [COORDINATOR], ending.start_ns, ending.stop_ns),
        deaths={
            manifest.machines[machine].name: how
            for machine, how in sorted(ending.deaths.items())
            if machine < len(manifest.machines)
        },
        problems=account.problems,
    )


def _groups(account: Account) -> dict[str, Group]:
    """Figures of every group; of foreign peers, and of doorbells rung at nobody, when there are any."""
    manifest, samples = account.manifest, account.samples
    names = [group.name for group in manifest.groups]
    foreign, nobody = _free(FOREIGN, names), _free(NOBODY, names)
    code_of = {name: code for code, name in enumerate(names)}
    codes = np.array([code_of[machine.group] for machine in manifest.machines] + [len(names)], dtype=np.int64)
    # Machine -1 picks the last entry: the foreign ones.
    latencies = _latencies(samples, codes[samples.target], len(names) + 1)
    sent = np.zeros(len(names) + 1, np.int64)
    np.add.at(sent, codes[account.edges[:, 0]], account.edges[:, 3])
    lines: dict[str, list[Line]] = {name: [] for name in [*names, foreign]}
    for line in account.lines:
        lines[manifest.machines[line.machine].group if line.machine >= 0 else foreign].append(line)
    groups = {}
    for code, name in enumerate(names):
        members = [machine.index for machine in manifest.machines if machine.group == name]
        own = [account.records[machine] for machine in members]
        rung = int(sent[code]) + sum(each.rung_nowhere for each in own)
        groups[name] = _group(account, lines[name], latencies[code], sent=rung, members=members)
    if lines[foreign]:
        groups[foreign] = _group(account, lines[foreign], latencies[-1], sent=0, members=[])
    nowhere = sum(each.rung_nowhere for each in account.records)
    if nowhere:
        at_nobody = [Line(-1, -1, -1, rung=nowhere, refused=nowhere)]
        none = _latencies(samples, np.full(len(samples), -1, np.int64), 1)[0]
        groups[nobody] = _group(account, at_nobody, none, sent=0, members=[])
    return groups


def _group(
    account: Account, lines: Sequence[Line], latency_ns: Latencies, *, sent: int, members: Sequence[int]
) -> Group:
    sums = totals(lines)
    ending = account.ending
    seconds = max(0, ending.stop_ns - ending.start_ns) / 1e9 if ending.start_ns else 0.0
    used = profile(account.resources, members, ending.start_ns, ending.stop_ns) if members else None
    own = [account.records[machine] for machine in members]
    return Group(
        machines=len(members),
        sent=sent,
        **sums,
        pended=sum(each.pended for each in own),
        dropped=sum(each.dropped for each in own),
        coalescing=_ratio(sums["delivered"], sums["interrupts"]),
        doorbells_per_s=_ratio(sums["rung"], seconds, 1),
        interrupts_per_s=_ratio(sums["interrupts"], seconds, 1),
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


def _ratio(count: int, of: float, digits: int = 4) -> float | None:
    return round(count / of, digits) if of else None


def _free(name: str, taken: Sequence[str]) -> str:
    """``name``, set apart from a group of the topology that is called so."""
    while name in taken:
        name += "_"
    return name
