"""The account of a run: its recordings, its ending and its resources, joined."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from nodes.errors import UsageError
from sim.recording import State
from sim.recording.reader import Records, places, read
from sim.results.analysis.balance import LineAccount, balance
from sim.results.analysis.matching import DrainIndex, LineNumbers, Matching
from sim.results.arrays import Integers, sums_at
from sim.results.ending import Ending
from sim.results.store import files, schemas
from sim.results.store.manifest import MACHINE_NAME_MAX, MachineRow, Manifest


@dataclass
class Account:
    """The joined data of a run, from which the summary is computed.

    ``records`` by machine; ``lines`` balanced, own ones in the order of machines and vectors, then foreign
    ones; ``edges`` has a row (source, key, target, rung, refused) for each edge, key = peer << 16 | vector,
    target -1 for a foreign peer; ``matching`` is still to be gone through; ``problems`` in words;
    ``guest_difference`` as `_confirm` says.
    """

    manifest: Manifest
    ending: Ending
    records: list[Records]
    lines: list[LineAccount]
    edges: Integers
    matching: Matching
    resources: pa.Table
    problems: list[str]
    guest_difference: int | None


def account(path: Path, manifest: Manifest, ending: Ending | None) -> Account:
    """The account of the run directory ``path``, balanced and matched.

    Without an ``ending``, the coordinator died early: the ending is inferred from the recordings and the status.
    """
    there = {
        row: (file, at) for first, file in files.recordings(path).items() for row, at in places(file, first).items()
    }
    records = [_records(there, machine.index) for machine in manifest.machines]
    first_domain: dict[int, int] = {}
    for row, domain, _ in ending.identities if ending is not None else ():
        first_domain.setdefault(row, domain)  # an incarnation that migrated keeps its first name
    further = [read(file, row, at) for row, (file, at) in sorted(there.items()) if row >= len(records)]
    later, manifest = _with_further(manifest, further, first_domain)
    records += later
    if ending is not None and ending.phases:
        manifest = msgspec.structs.replace(manifest, phases=ending.phases)
    ending = ending or inferred_ending(path, manifest, records)
    problems = [problem for record in records for problem in record.problems]
    numbers = LineNumbers(manifest.machines, records, ending.identities)
    lines, edges = _lines(manifest, ending, records, numbers, problems)
    guest_difference = _confirm(lines, records)
    matching = Matching(
        records,
        DrainIndex(records, numbers, ending.moves, ending.stays),
        ending.measure_start_ns,
        [(phase.start_ns, phase.end_ns) for phase in manifest.phases if not phase.measured],
        min((one.p50_ns for one in ending.baselines), default=0),
    )
    resources, cut = schemas.read_stream(path / files.RESOURCE_STREAM)
    problems += [cut] if cut else []
    for what, refused in (("events", ending.refused_events), ("rows of resources", ending.refused_resources)):
        problems += [f"{refused} {what} could not be written"] if refused else []
    return Account(
        manifest=manifest,
        ending=ending,
        records=records,
        lines=lines,
        edges=edges,
        matching=matching,
        resources=resources,
        problems=problems,
        guest_difference=guest_difference,
    )


def _confirm(lines: Sequence[LineAccount], records: Sequence[Records]) -> int | None:
    """Compare the doorbells that guests report as rung with those that came from them.

    Counts that agree need no settling, nor do the counters of a guest: only its device takes doorbells from them.

    Returns:
        How many more doorbells guests have counted than came from them; None unless all guests have counted.
    """
    guests = {record.machine for record in records if record.counts_nothing}
    said = [record.guest_rung for record in records if record.counts_nothing and record.guest_rung is not None]
    for line in lines:
        if line.machine in guests:
            line.settled = 0
    if not said or len(said) < len(guests):
        return None
    difference = sum(said) - sum(line.settled for line in lines)
    if not difference:
        for line in lines:
            line.settled = 0
    return difference


def _records(there: Mapping[int, tuple[Path, int]], machine: int) -> Records:
    if machine in there:
        file, at = there[machine]
        return read(file, machine, at)
    return Records(machine, problems=[f"recording of machine {machine} is missing"])


def _with_further(
    manifest: Manifest, records: Sequence[Records], first_domain: Mapping[int, int]
) -> tuple[list[Records], Manifest]:
    """The manifest with a row for each further recording: other incarnations, and other devices, of its machines."""
    sound: list[Records] = []
    rows = list(manifest.machines)
    for record in records:
        if record.machine != len(rows) or record.of >= len(manifest.machines) or record.problems:
            continue  # not of this run, or so damaged that its machine is not known
        of = manifest.machines[record.of]
        name = of.name if record.incarnation == 1 else f"{of.name}.{record.incarnation}"
        domain = first_domain.get(record.machine, record.domain)
        if domain != of.domain:
            name += f".{manifest.domains[domain]}" if domain < len(manifest.domains) else f".{domain}"
        rows.append(MachineRow(record.machine, name[:MACHINE_NAME_MAX], of.group, of.vectors, domain, record.of))
        sound.append(record)
    return sound, msgspec.structs.replace(manifest, machines=rows)


def inferred_ending(path: Path, manifest: Manifest, records: Sequence[Records]) -> Ending:
    """The ending of a run whose coordinator died or failed, from the stamps and states in its recordings."""
    status, reason = files.DIED, f"the coordinator (process {manifest.owner.pid}) died"
    with contextlib.suppress(UsageError):
        last_status, last_reason = files.read_status(path)
        if last_status != files.RUNNING:
            status, reason = last_status, last_reason
    names = dict(enumerate(State.NAMES))
    started = [record.started_ns for record in records if record.started_ns]
    stamps = [entries.latest_ns for record in records for entries in (record.rings, record.drains)]
    start_ns = min(started, default=0)
    return Ending(
        status=status,
        reason=reason,
        deaths={
            record.machine: f"last seen {names.get(record.state, 'in no known state')}"
            for record in records
            if not record.clean
        },
        pending=None,
        foreign_pending=[],
        start_ns=start_ns,
        measure_start_ns=start_ns + round(manifest.warmup_s * 1e9) if start_ns else 0,
        stop_ns=max([start_ns, *stamps, *(record.stopped_ns for record in records)]),
    )


def _lines(
    manifest: Manifest, ending: Ending, records: Sequence[Records], numbers: LineNumbers, problems: list[str]
) -> tuple[list[LineAccount], Integers]:
    """``Account.lines`` and ``Account.edges``."""
    sizes = [len(record.edges) for record in records]
    source = np.repeat(np.array([record.machine for record in records], np.int64), sizes)
    rows = np.concatenate([np.zeros((0, 3), np.int64), *(record.edges for record in records)])
    target, _, line = numbers.of_keys(rows[:, 0])
    beyond = int(np.count_nonzero((target >= 0) & (line < 0)))
    if beyond:
        problems.append(f"{beyond} edges lead to vectors that their targets do not have")
    # A foreign peer is known by its domain and its ID in one number, as `LineAccount.peer` has it.
    far = target < 0
    foreign_keys, place = np.unique(rows[far, 0], return_inverse=True)
    line[far] = numbers.count + place
    kept = line >= 0
    source, rows, target, line = source[kept], rows[kept], target[kept], line[kept]

    lines = [
        LineAccount(machine.index, -1, vector) for machine in manifest.machines for vector in range(machine.vectors)
    ]
    lines += [LineAccount(-1, int(key) >> 16, int(key) & 0xFFFF) for key in foreign_keys]
    rung, refused = (sums_at(line, column, len(lines)).tolist() for column in rows[:, 1:].T)
    for its, its_rung, its_refused in zip(lines, rung, refused, strict=True):
        its.rung, its.refused = its_rung, its_refused
    for sender, at in zip(source.tolist(), line.tolist(), strict=True):
        lines[at].senders.add(sender)
    for record in records:
        first, has = int(numbers.first[record.machine]), int(numbers.vectors[record.machine])
        for vector, (delivered, interrupts) in enumerate(record.vectors[:has].tolist()):
            lines[first + vector].delivered = delivered
            lines[first + vector].interrupts = interrupts
    _put_pending(lines, ending, problems)
    _share_rings(lines, numbers, ending.stays)
    uncounted = {record.machine for record in records if record.problems or record.counts_nothing}
    balance(
        lines,
        dead={*ending.deaths, *uncounted},
        # Machines that ring a foreign peer have met one, also where a coordinator died and could not say so.
        foreign=ending.foreign_peers > 0 or len(foreign_keys) > 0 or bool(uncounted),
        pending_known=ending.pending is not None,
    )
    return lines, np.column_stack((source, rows[:, 0], target, rows[:, 1:]))


def _share_rings(
    lines: Sequence[LineAccount], numbers: LineNumbers, stays: Sequence[tuple[int, int, int, int]]
) -> None:
    """Divide what was rung at an ID among the machines that have had it, one after the other.

    Senders count by ID, so the count is with the last machine. Of the others it is known what they took; what was left
    in their counters is counted as pending at the last one.
    """
    for machine, domain, peer, _ in stays:
        last = int(numbers.machine_of[domain, peer])
        if machine == last:
            continue
        for vector in range(min(int(numbers.vectors[machine]), int(numbers.vectors[last]))):
            line, of_last = lines[int(numbers.first[machine]) + vector], lines[int(numbers.first[last]) + vector]
            line.rung += line.delivered
            line.senders |= of_last.senders
            of_last.rung -= line.delivered


def _put_pending(lines: Sequence[LineAccount], ending: Ending, problems: list[str]) -> None:
    own = {(line.machine, line.vector): line for line in lines if line.machine >= 0}
    foreign = {(line.peer, line.vector): line for line in lines if line.machine < 0}
    for known, rows in ((own, ending.pending or []), (foreign, ending.foreign_pending)):
        for number, vector, pending in rows:
            if (number, vector) in known:
                known[number, vector].pending = pending
            elif pending:
                problems.append(f"{pending} doorbells pend at {number}, vector {vector}, which is not known")
