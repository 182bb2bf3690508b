"""``python -m tests.bench.ladder``: what each layer of a doorbell under virtual time costs, by the number of machines.

The traffic is that of ``virtual_ring``, with the same doorbells a second for any number of machines. Each step does
what the one before does and one thing more: a heap of generators (`tests.bench.heap_model`); machines of `nodes` on
that heap, with device, driver, program and counts; the same with their recordings; the engine, with CPUs, costs that
are drawn, and a coordinator. SimPy is measured beside them. Each figure is from a process of its own.
"""

from __future__ import annotations

import functools
import gc
import heapq
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sim
from nodes.device import profiles
from nodes.ledger import NoLedger
from nodes.programs import storm
from nodes.vm import Vm
from sim.engines.shared.recorder import Recorder
from sim.recording import Recording, RecordingLayout, RecordingPack
from tests.bench.heap_model import SECOND_NS, WAKE_NS, ring_on_a_heap
from tests.bench.programs import SHARES
from tests.bench.simpy_model import ring
from tests.bench.virtual import alone, doorbells_per_s

__all__ = ["main", "recorded_on_a_heap", "vms_on_a_heap"]

DOORBELLS_HZ, SECONDS = 32_768, 8.0
SIZES = 64, 1_024, 16_384, 65_536
LAYOUT = RecordingLayout(vectors=1, edges=9, rings=32, drains=56)
"""As `virtual_ring` has it with 65,536 machines."""


def vms_on_a_heap(machines: int, rate_hz: float, duration_s: float, pack: RecordingPack | None = None) -> float:
    """Machines of `nodes` on a heap of events; doorbells per second of CPU time, as `ring_on_a_heap`.

    ``pack`` makes their recordings; None: they have none.
    """
    order, events = itertools.count().__next__, list[tuple[int, int, Callable[[int], None], int]]()
    now_ns, rung, counters, vms = 0, 0, [0] * machines, list[Vm]()
    records: list[Callable[[int, int, int, int], None]] = []
    recordings: list[Recording] = []

    def signal(line: int, _: int) -> None:
        nonlocal rung
        rung += 1
        counters[line] += 1
        if counters[line] == 1:
            heapq.heappush(events, (now_ns + WAKE_NS, order(), interrupted, line))

    def interrupted(own: int) -> None:
        count, counters[own] = counters[own], 0
        wait(own, vms[own].deliver(0, count), is_new=False)
        if records:
            records[own](0, count, now_ns, now_ns)

    def expired(own: int) -> None:
        wait(own, vms[own].expire(), is_new=True)

    def wait(own: int, at_ns: int | None, *, is_new: bool) -> None:
        if is_new and at_ns is not None:
            heapq.heappush(events, (at_ns, order(), expired, own))

    for own in range(machines):
        ledger: Recorder | NoLedger = NoLedger()
        if pack is not None:
            recordings.append(pack.create(own, LAYOUT, sample_every=256, of=own, incarnation=1, domain=0))
            ledger = Recorder(recordings[-1])
            records.append(ledger.make_drains().record)
        vm = Vm(
            profiles.QEMU_DOORBELL,
            vectors=1,
            role="peer",
            signal=signal,
            ledger=ledger,
            clock=lambda: now_ns,
            random=random.Random(own),
            sample_every=256,
        )
        vms.append(vm)
        vm.place(own, memoryview(bytearray(4096)))
        for peer in (own, (own + 1) % machines):
            vm.connect(peer, 0, peer)
        program = functools.partial(storm, to=[(own + 1) % machines], rate_hz=rate_hz, arrivals="poisson")
        wait(own, vm.start(program), is_new=True)
    looks = []
    gc.freeze()  # as under `rare_collections`: one look at all machines takes as long as the measurement
    for share in SHARES:
        until_ns = round(duration_s * share * SECOND_NS)
        while events[0][0] < until_ns:
            now_ns, _, happen, own = heapq.heappop(events)
            happen(own)
        looks.append((time.process_time(), rung))
    gc.unfreeze()
    (begin_s, before), (end_s, after) = looks
    return (after - before) / (end_s - begin_s)


def recorded_on_a_heap(machines: int, rate_hz: float, duration_s: float) -> float:
    """As `vms_on_a_heap`, with a recording for each machine."""
    with tempfile.TemporaryDirectory(prefix="ivsim-bench-") as folder:
        pack = RecordingPack(lambda row: Path(folder, str(row)))
        return vms_on_a_heap(machines, rate_hz, duration_s, pack)


def engine(machines: int, rate_hz: float, duration_s: float) -> float:
    """The virtual engine."""
    settings = {"machines.node.count": str(machines), "machines.node.parameters.rate_hz": str(rate_hz)}
    with tempfile.TemporaryDirectory(prefix="ivsim-bench-") as folder:
        run = functools.partial(sim.run, runs=folder, resources_every_s=0)
        return doorbells_per_s(run, Path(folder), "virtual_ring", duration_s, settings)


def main(sizes: list[int]) -> None:
    """Print the table: thousands of doorbells a second of CPU time."""
    steps = {
        "heap alone": ring_on_a_heap,
        "+ machines": vms_on_a_heap,
        "+ recordings": recorded_on_a_heap,
        "engine": engine,
        "SimPy": ring,
    }
    print(f"{'machines':>9}" + "".join(f"{step:>14}" for step in steps))
    for machines in sizes or SIZES:
        print(f"{machines:>9,}", end="", flush=True)
        for model in steps.values():
            rate = alone(model, machines - 1, DOORBELLS_HZ / machines, SECONDS)()
            print(f"{rate / 1e3:14.1f}", end="", flush=True)
        print()


if __name__ == "__main__":
    from tests.bench.ladder import main  # the models are imported by this name

    main([int(size) for size in sys.argv[1:]])
