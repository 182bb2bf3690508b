"""The migrations of a run, from its events: the verdict on each, how long it took, what it carried and left.

The coordinator notes the time when a machine says that it goes on. It stood still before that, for as long as it says
itself: no drain of its own falls into the pause, so that the drains before and after it can be told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from sim.results.analysis.account import Account
from sim.results.store.batches import batches
from sim.results.store.events import Event
from sim.results.summary import MigrationOutcome

KINDS = frozenset({"action", "migrated", "migration_failed", "left_behind", "machine_left", "machine_died"})


Natural = Annotated[int, Meta(ge=0, lt=1 << 62)]


class _MigrationEvent(msgspec.Struct):
    """Any event about migrations; absent fields have their default."""

    kind: str
    machine: str = ""
    time_ns: Natural = 0
    do: str = ""
    refused: str = ""
    skipped: str = ""
    fault: str = ""
    hand_over: bool = False
    from_peer: Natural | None = None
    to_peer: Natural | None = None
    from_domain: str = ""
    to_domain: str = ""
    downtime_ms: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    state_bytes: Natural = 0
    memory_bytes: Natural = 0
    pending_vectors: Natural = 0
    reason: str = ""
    how: str | None = None
    peer: Annotated[int, Meta(ge=-1, lt=1 << 62)] = -1
    domain: str = ""
    doorbells: Natural = 0


@dataclass
class _Attempt:
    """One migration that was begun, and the event that it ended with.

    ``before`` and ``after`` are the doorbells delivered since the pause before, and until the next one; ``during`` are
    the samples rung while the machine paused. None where they are not known.
    """

    machine: str
    begun: _MigrationEvent
    ended: _MigrationEvent
    before: int | None = None
    after: int | None = None
    during: int | None = None


def migrations(events: Iterable[Event], account: Account, place: Path) -> list[MigrationOutcome]:
    """The migrations in the order in which they began, without those that were skipped; ``place`` has the tables."""
    told = list(_migration_events(events))
    attempts = list(_attempts(told))
    behind = {
        (event.machine, event.domain, event.peer): event.doorbells for event in told if event.kind == "left_behind"
    }
    rows = _rows(account)
    _count_around(account, attempts, rows, place)
    found = [_migration(account, attempt, behind, _whereabouts(account, attempt, rows)) for attempt in attempts]
    return sorted(found, key=lambda outcome: outcome.at_s)


def _rows(account: Account) -> dict[str, int]:
    """The row of each incarnation of a machine, by its name in the events."""
    names = [machine.name for machine in account.manifest.machines]
    rows: dict[str, int] = {}
    for record in account.records:
        of = record.of if record.of < len(names) else record.machine
        rows.setdefault(names[of] if record.incarnation == 1 else f"{names[of]}.{record.incarnation}", record.machine)
    return rows


def _migration_events(events: Iterable[Event]) -> Iterator[_MigrationEvent]:
    for event in events:
        if event.get("kind") in KINDS:
            try:
                yield msgspec.convert(event, _MigrationEvent)
            except msgspec.ValidationError:
                continue  # damaged, or of something else


def _attempts(events: Iterable[_MigrationEvent]) -> Iterator[_Attempt]:
    """Each attempt with its outcome. An action names the machine; the later events name its incarnation."""
    begun: dict[str, _MigrationEvent] = {}
    for event in events:
        if event.kind == "action" and event.do == "migrate" and not event.skipped:
            if event.refused:
                yield _Attempt(event.machine, event, event)
            else:
                begun[event.machine] = event
        elif event.kind in ("migrated", "migration_failed", "machine_left", "machine_died"):
            name = event.machine if event.machine in begun else event.machine.rpartition(".")[0]
            if name in begun:
                yield _Attempt(event.machine, begun.pop(name), event)
    for name, event in begun.items():
        yield _Attempt(
            name, event, _MigrationEvent("migration_failed", reason="it had come to no end when the run did")
        )


def _paused_ns(ended: _MigrationEvent) -> int:
    return ended.time_ns - round((ended.downtime_ms or 0.0) * 1e6)


def _count_around(account: Account, attempts: Sequence[_Attempt], rows: dict[str, int], place: Path) -> None:
    """Count what came before, after and during the pause of each attempt that paused a machine."""
    spans: list[tuple[_Attempt, int, int, int, int]] = []
    """An attempt: the row of its machine, the pause before, its own, the next one."""
    paused = [attempt for attempt in attempts if attempt.ended.downtime_ms and attempt.machine in rows]
    for attempt in paused:
        at_ns = _paused_ns(attempt.ended)
        its_ns = [_paused_ns(other.ended) for other in paused if other.machine == attempt.machine]
        begin_ns = max((time_ns for time_ns in its_ns if time_ns < at_ns), default=0)
        end_ns = min((time_ns for time_ns in its_ns if time_ns > at_ns), default=1 << 62)
        spans.append((attempt, rows[attempt.machine], begin_ns, at_ns, end_ns))
    sums = np.zeros((len(spans), 3), np.int64)
    for batch in batches(place, "samples", ("target", "rung_ns")) if spans else ():
        for its, (attempt, row, _, at_ns, _) in zip(sums, spans, strict=True):
            rung_ns = batch["rung_ns"][batch["target"] == row]
            its[2] += np.count_nonzero((rung_ns >= at_ns) & (rung_ns < attempt.ended.time_ns))
    for batch in batches(place, "drains", ("machine", "count", "delivered_ns")) if spans else ():
        for its, (_, row, begin_ns, at_ns, end_ns) in zip(sums, spans, strict=True):
            own = batch["machine"] == row
            times, counts = batch["delivered_ns"][own], batch["count"][own]
            its[0] += counts[(times >= begin_ns) & (times < at_ns)].sum()
            its[1] += counts[(times >= at_ns) & (times < end_ns)].sum()
    for (before, after, during), (attempt, row, *_) in zip(sums.tolist(), spans, strict=True):
        attempt.during = during
        if not account.records[row].counters.drains_refused:
            attempt.before, attempt.after = before, after


def _whereabouts(account: Account, attempt: _Attempt, rows: dict[str, int]) -> tuple[str, int | None]:
    """The domain and the ID that a machine had when its migration began; ("", None) if they are not known."""
    at_ns = attempt.begun.time_ns
    row = rows.get(attempt.machine)
    if attempt.ended.refused:  # which names the machine: the incarnation that began last
        incarnations = [index for name, index in rows.items() if attempt.machine in (name, name.rpartition(".")[0])]
        begun = [incarnation for incarnation in incarnations if account.records[incarnation].ready_ns <= at_ns]
        row = max(begun, key=lambda index: account.records[index].ready_ns, default=row)
    first = [(domain, peer) for of, domain, peer in account.ending.identities if of == row]
    moves = [(domain, peer) for of, domain, peer, since_ns in account.ending.moves if of == row and since_ns <= at_ns]
    for number, peer in [*first[:1], *moves][-1:]:
        domains = account.manifest.domains
        return domains[number] if number < len(domains) else "", peer
    return "", None


def _migration(
    account: Account, attempt: _Attempt, behind: dict[tuple[str, str, int], int], whereabouts: tuple[str, int | None]
) -> MigrationOutcome:
    begun, ended = attempt.begun, attempt.ended
    groups = {machine.name: machine.group for machine in account.manifest.machines}
    moved = ended.kind == "migrated"
    reason = ended.refused or ended.reason
    if ended.kind in ("machine_left", "machine_died"):
        reason = f"its process ended meanwhile ({ended.how or 'left'})"
    left: int | None = None
    if moved and ended.from_peer is not None:
        same = (ended.from_domain, ended.from_peer) == (ended.to_domain, ended.to_peer)
        left = 0 if same else behind.get((attempt.machine, ended.from_domain, ended.from_peer))
    return MigrationOutcome(
        machine=attempt.machine,
        group=groups.get(begun.machine, ""),
        verdict="moved" if moved else "refused" if ended.refused else "failed",
        reason=reason,
        at_s=round((begun.time_ns - account.ending.start_ns) / 1e9, 6),
        hand_over=begun.hand_over,
        fault=begun.fault,
        from_domain=ended.from_domain or whereabouts[0],
        to_domain=ended.to_domain or begun.to_domain,
        from_peer=whereabouts[1] if ended.from_peer is None else ended.from_peer,
        to_peer=ended.to_peer,
        downtime_ms=ended.downtime_ms,
        state_bytes=ended.state_bytes,
        memory_bytes=ended.memory_bytes,
        pending_vectors=ended.pending_vectors,
        left_behind=left,
        delivered_before=attempt.before,
        delivered_after=attempt.after,
        sampled_during=attempt.during,
    )
