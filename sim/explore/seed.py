"""Runs one seed of a topology in this process, with nothing on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from sim.coordination.coordinator import Coordinator
from sim.coordination.monitor import Observer
from sim.engines.virtual.chaos import Decision, draw_decisions, with_faults
from sim.explore.checks import BrokenInvariantError, Checks
from sim.explore.outcome import Broken, Outcome
from sim.explore.tracer import Tracer
from sim.recording import header
from topologies import Topology

BALANCE_EVERY = 256


def run_seed(
    topology: Topology,
    seed: int,
    schedule: Iterable[Decision] | None = None,
    *,
    balance_every: int = BALANCE_EVERY,
    observe: Callable[[Checks], object] = lambda checks: None,
) -> Outcome:
    """Run a topology under virtual time and check all invariants.

    Args:
        topology: the topology; its own seed is not used.
        seed: the seed instead.
        schedule: these decisions are taken, and no others; None: they are drawn from the seed.
        balance_every: the counts of all lines are compared once in so many events, and at the end.
        observe: is called before the run begins.

    Returns:
        What came of it. The same arguments give the same outcome.
    """
    seeded = msgspec.structs.replace(topology, seed=seed)
    decisions = draw_decisions(seeded, schedule)
    faulty = with_faults(seeded, decisions)
    checks = Checks(faulty, decisions, balance_every=balance_every)
    observe(checks)
    with checks.engine as engine:

        def event(kind: str, **fields: Any) -> None:
            if kind == "ready":
                checks.state.start_ns = fields["start_ns"]
            if kind == "warning":
                checks.warned(fields["machine"], fields["text"])
            if checks.tracer is not None:
                checks.tracer.event(kind, fields)

        coordinator = Coordinator(
            faulty, engine, recording_path=lambda row: None, event=event, observe=lambda run, loop: Observer()
        )
        try:
            checks.coordinator = coordinator
            broken = _run(coordinator, checks)
            doorbells = _rung(coordinator)
        finally:
            coordinator.close()
    return Outcome(seed, checks.events, doorbells, tuple(decisions.taken), broken)


def trace_seed(topology: Topology, seed: int, schedule: Iterable[Decision], tell: Callable[[str], object]) -> Outcome:
    """As `run_seed` with a schedule; ``tell`` gets a line about each event. All is checked after each event."""

    def observe(checks: Checks) -> None:
        checks.tracer = tracer = Tracer(checks.engine, checks.state, checks.engine.host.decisions, tell)
        checks.interrupts.on_wait, checks.interrupts.on_resume = tracer.waits, tracer.resumes

    return run_seed(topology, seed, schedule, balance_every=1, observe=observe)


def _run(coordinator: Coordinator, checks: Checks) -> Broken | None:
    try:
        end = coordinator.run()
    except BrokenInvariantError as error:
        return error.broken
    return checks.finish(end.status, end.reason, end.pending)


def _rung(coordinator: Coordinator) -> int:
    rung = 0
    for incarnation in coordinator.machines.incarnations:
        for recording in incarnation.recordings:
            at = recording.layout.edges_at
            rung += sum(recording.words[at + 1 : at + 3 * recording.words[header.EDGES_USED] : 3])
    return rung
