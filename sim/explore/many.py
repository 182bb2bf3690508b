"""Runs many seeds, in this process or in several."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait

import msgspec

from nodes.errors import HostError, UsageError
from sim.explore.outcome import Outcome
from sim.explore.seed import run_seed
from topologies import Topology

BATCH = 16


class Exploration(msgspec.Struct):
    """The sums over many seeds. ``broken`` are the outcomes of those that broke an invariant, in the order of seeds."""

    seeds: int = 0
    events: int = 0
    doorbells: int = 0
    decisions: int = 0
    broken: list[Outcome] = []

    def add(self, other: Exploration) -> None:
        """Count further seeds."""
        self.seeds += other.seeds
        self.events += other.events
        self.doorbells += other.doorbells
        self.decisions += other.decisions
        self.broken = sorted([*self.broken, *other.broken], key=lambda outcome: outcome.seed)


def explore(
    topology: Topology,
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    keep_going: bool = False,
    progress: Callable[[Exploration], object] = lambda exploration: None,
) -> Exploration:
    """Run a topology with each seed; stop at the first that breaks an invariant, unless ``keep_going``.

    Args:
        topology: the topology; its own seed is not used.
        seeds: the seeds.
        jobs: how many processes; 1: this one.
        keep_going: run all seeds.
        progress: called with the sums so far, now and then.

    Raises:
        HostError: a process has died.
        UsageError: a machine is a real QEMU.
    """
    if real := next((machine for machine in topology.machines if machine.kind != "simulated"), None):
        raise UsageError(f"{real.name} is a real QEMU ({real.kind}), which has no place under virtual time")
    exploration = Exploration()
    with contextlib.closing(_batches(topology, seeds) if jobs < 2 else _parallel(topology, seeds, jobs)) as batches:
        for batch in batches:
            exploration.add(batch)
            progress(exploration)
            if exploration.broken and not keep_going:
                break
    return exploration


def _batches(topology: Topology, seeds: Sequence[int]) -> Generator[Exploration, None, None]:
    """The outcomes of seeds, in batches; a batch ends with a seed that broke an invariant."""
    batch = Exploration()
    for seed in seeds:
        found = run_seed(topology, seed)
        broken = [] if found.broken is None else [found]
        batch.add(Exploration(1, found.events, found.doorbells, len(found.decisions), broken))
        if batch.seeds == BATCH or batch.broken:
            yield batch
            batch = Exploration()
    if batch.seeds:
        yield batch


def _parallel(topology: Topology, seeds: Sequence[int], jobs: int) -> Generator[Exploration, None, None]:
    """The same from several processes, each of which takes every so many-th seed."""
    fork = multiprocessing.get_context("fork")
    gc.collect()
    gc.freeze()  # what is loaded now: many short runs follow
    processes, open_ends = [], []
    try:
        for job in range(jobs):
            mine, its = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(topology, seeds[job::jobs], its), daemon=True)
            process.start()
            its.close()
            processes.append(process)
            open_ends.append(mine)
        while open_ends:
            for end in wait(open_ends):
                assert isinstance(end, Connection)
                try:
                    data = end.recv_bytes()
                except EOFError:
                    raise HostError("a process that runs seeds has died") from None
                if data:
                    yield msgspec.msgpack.decode(data, type=Exploration)
                else:
                    open_ends.remove(end)
                    end.close()
    finally:
        for process in processes:
            process.kill()
            process.join()
        for end in open_ends:
            end.close()


def _work(topology: Topology, seeds: Sequence[int], end: Connection) -> None:
    """Run seeds until all are done, or the parent has gone; an empty message is the last one."""
    parent = os.getppid()
    for batch in _batches(topology, seeds):
        if os.getppid() != parent:
            return
        end.send_bytes(msgspec.msgpack.encode(batch))
    end.send_bytes(b"")
