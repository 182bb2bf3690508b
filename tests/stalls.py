"""Guest programs that stall, each in its own way, and the topology of a run that such a stall ends.

The receiver stalls at an interrupt in the middle of the run, for longer than the limit of the run. It notes when.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import time
from typing import Any

from nodes.guest import FOREVER, OTHERS, Guest, Peers, Program
from nodes.programs import storm

STALL_S = 0.3
AT = 40
"""The number of the interrupt at which the receiver stalls."""
PAGES_BYTES = 32 << 20
OBJECTS = 100_000


def _spin(until_s: float) -> None:
    while time.monotonic() < until_s:
        pass


def _in_child(action: Any) -> None:
    if os.fork() == 0:
        try:
            action()
        finally:
            os._exit(0)


def _continue_later(pid: int) -> None:
    """Stop a process now, and let it continue after the stall."""

    def continue_it() -> None:
        time.sleep(STALL_S)
        os.kill(pid, signal.SIGCONT)

    _in_child(continue_it)
    os.kill(pid, signal.SIGSTOP)


def _sleep(_guest: Guest) -> None:
    time.sleep(STALL_S)


def _stop_receiver(_guest: Guest) -> None:
    _continue_later(os.getpid())


def _stop_sender(guest: Guest) -> None:
    _continue_later(int.from_bytes(guest.memory[:8], "little"))


def _collect(_guest: Guest) -> None:
    gc.unfreeze()
    end_s = time.monotonic() + STALL_S
    while time.monotonic() < end_s:
        gc.collect()


def _touch_memory(_guest: Guest) -> None:
    end_s = time.monotonic() + STALL_S
    while time.monotonic() < end_s:
        with mmap.mmap(-1, PAGES_BYTES) as memory:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            for at in range(0, len(memory), mmap.PAGESIZE):
                memory[at] = 1


def _mask(guest: Guest) -> None:
    guest.mask(0)


def _compete(_guest: Guest) -> None:
    """Run on one CPU with the lowest priority, beside a process that does not yield it."""
    cpu = min(os.sched_getaffinity(0))
    end_s = time.monotonic() + STALL_S
    os.sched_setaffinity(0, {cpu})
    _in_child(lambda: _spin(end_s))
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    _spin(end_s)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _compute(_guest: Guest) -> None:
    _spin(time.monotonic() + STALL_S)


STALLING = {
    "slept": _sleep,
    "stopped": _stop_receiver,
    "stopped_sender": _stop_sender,
    "garbage_collection": _collect,
    "page_faults": _touch_memory,
    "masked": _mask,
    "no_cpu": _compete,
    "computed": _compute,
}


def receive(guest: Guest, *, stall: str = "") -> Program:
    """Take interrupts; stall at one of them as ``stall`` says."""
    taken = 0
    objects = [[number] for number in range(OBJECTS if stall == "garbage_collection" else 0)]
    while True:
        if (yield FOREVER) is None:
            continue
        taken += 1
        if taken == AT and stall in STALLING:
            guest.statistics["begin_ns"] = time.monotonic_ns()
            STALLING[stall](guest)
            guest.statistics["end_ns"] = time.monotonic_ns()
            objects.clear()


def send(guest: Guest, *, to: Peers = OTHERS, rate_hz: float = 200.0) -> Program:
    """Ring on a schedule, with the own process ID in the memory."""
    guest.memory[:8] = os.getpid().to_bytes(8, "little")
    yield from storm(guest, to=to, rate_hz=rate_hz)
