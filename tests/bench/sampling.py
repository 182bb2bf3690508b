"""The cost of the instrument: one interrupt from ring to handler, with more samples and with fewer."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator

from nodes import programs
from sim.kernel.eventfd import drain
from tests.bench.figure import Bar, Figure, alternate
from tests.bench.machine import Wired, wired_machine
from tests.bench.placement import pinned
from tests.bench.setting import Setting

__all__ = ["measure_sampling"]

ONE_IN_SIXTEEN = Bar(1.05, 1.03)
DRAINS = Bar(1.2, 1.15)


def measure_sampling(setting: Setting) -> Iterator[Figure]:
    """A machine rings itself and takes the interrupt as in the worker's loop; the ratio is to no samples."""
    interrupts, rounds = setting.size(1000, 200), setting.size(201, 2)
    for sample_every, bar in ((16, ONE_IN_SIXTEEN), (1, None)):
        pairs = _compare(setting, interrupts, rounds, sample_every)
        name = f"1 in {sample_every} sampled / none" if sample_every > 1 else "all sampled / none"
        yield Figure("sampling", name, "ns", pairs, bar)
    with (
        pinned(setting.cpu),
        wired_machine(setting.folder, peers=1, vectors=1, sample_every=0, drains=2 * rounds * interrupts) as wired,
    ):
        pairs = alternate(rounds, _interrupt(wired, interrupts), _interrupt_unseen(wired, interrupts))
    yield Figure("sampling", "drains recorded / nothing", "ns", pairs, DRAINS)


def _compare(setting: Setting, interrupts: int, rounds: int, sample_every: int) -> list[tuple[float, ...]]:
    drains = rounds * interrupts
    rings = drains // sample_every + 1024
    with (
        pinned(setting.cpu),
        wired_machine(
            setting.folder, peers=1, vectors=1, sample_every=sample_every, rings=rings, drains=drains
        ) as sampled,
        wired_machine(setting.folder, peers=1, vectors=1, sample_every=0, drains=drains) as unsampled,
    ):
        return alternate(rounds, _interrupt(sampled, interrupts), _interrupt(unsampled, interrupts))


def _interrupt(wired: Wired, interrupts: int) -> Callable[[], float]:
    """The body of ``sim.engines.process.worker``'s loop, line by line."""
    vm, own = wired.vm, {wired.lines[0, 0]: 0}
    ring, deliver = vm.guest.ring, wired.recorder.make_drains().recording(vm, time.monotonic_ns)
    vm.start(programs.idle)

    def measure() -> float:
        with select.epoll() as epoll:
            epoll.register(wired.lines[0, 0], select.EPOLLIN)
            poll = epoll.poll
            begin_ns = time.thread_time_ns()
            for _ in range(interrupts):
                ring(0)
                for descriptor, _ in poll(-1, 3):
                    vector = own.get(descriptor)
                    count = drain(descriptor)
                    deliver(vector, count)
            return (time.thread_time_ns() - begin_ns) / interrupts

    return measure


def _interrupt_unseen(wired: Wired, interrupts: int) -> Callable[[], float]:
    """The same without recording the drains."""
    vm, own = wired.vm, {wired.lines[0, 0]: 0}
    ring, deliver = vm.guest.ring, vm.deliver

    def measure() -> float:
        with select.epoll() as epoll:
            epoll.register(wired.lines[0, 0], select.EPOLLIN)
            poll = epoll.poll
            begin_ns = time.thread_time_ns()
            for _ in range(interrupts):
                ring(0)
                for descriptor, _ in poll(-1, 3):
                    vector = own.get(descriptor)
                    count = drain(descriptor)
                    deliver(vector, count)
            return (time.thread_time_ns() - begin_ns) / interrupts

    return measure
