"""Who is told which IDs machines have: those whose programs work with them."""

from __future__ import annotations

import itertools

from sim.coordination.machines import LiveMachines
from sim.engines.process import control
from sim.engines.process.handle import WorkerHandle

__all__ = ["introduce", "make_known"]

KNOWN_AT_ONCE = 4096


def introduce(machines: LiveMachines, handle: WorkerHandle, *, anew: bool) -> None:
    """Tell a machine which IDs those have that it works with."""
    ids: dict[int, int] = {}
    alone = len(machines.topology.domains) == 1
    for machine in sorted({each for machines in _named(handle) for each in machines}):
        other = machines.current[machine]
        if alone:
            if other.peers[0] is not None:
                ids[machine] = other.peers[0]
            continue
        domain = _first_shared(handle, other)
        peer = next((other.peers[place] for place, row in enumerate(other.rows) if row.domain == domain), None)
        if peer is not None:
            ids[machine] = peer
    pairs = iter(ids.items())
    if anew:
        handle.tell(control.Known({}, anew=True))
    while chunk := dict(itertools.islice(pairs, KNOWN_AT_ONCE)):
        handle.tell(control.Known(chunk))


def make_known(machines: LiveMachines, handle: WorkerHandle, place: int) -> None:
    """Tell those who work with a machine which ID it has now."""
    domain, peer = handle.rows[place].domain, handle.peers[place]
    assert peer is not None
    for other in machines.current:
        if other.ready and _first_shared(other, handle) == domain and _names(other, handle.machine.index):
            other.tell(control.Known({handle.machine.index: peer}))


def _named(handle: WorkerHandle) -> list[tuple[int, ...]]:
    """The machines that a hand's program works with."""
    return [*handle.plan.peers.values(), *(machines for machines, _ in handle.plan.traces.values())]


def _names(handle: WorkerHandle, machine: int) -> bool:
    return any(machine in machines for machines in _named(handle))


def _first_shared(handle: WorkerHandle, other: WorkerHandle) -> int | None:
    """The first domain of ``hand`` that ``other`` is in, too."""
    theirs = {row.domain for row in other.rows}
    return next((row.domain for row in handle.rows if row.domain in theirs), None)
