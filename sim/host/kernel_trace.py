"""A trace of the kernel's scheduler and interrupts, where this host lets the user have one (tracefs).

The trace is an instance of its own below ``instances``, so it disturbs no other one, with the clock of the run and a
buffer that keeps the latest events (Linux's Documentation/trace/ftrace.rst).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PLACES = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
EVENTS = (
    "sched/sched_switch",
    "sched/sched_wakeup",
    "irq/irq_handler_entry",
    "irq/irq_handler_exit",
    "irq/softirq_entry",
    "irq/softirq_exit",
)
PREFIX = "ivsim-"
BUFFER_KIB, ALL_BUFFERS_KIB = 8192, 1 << 17
EVENTS_MAX = 400_000
"""The latest so many are kept."""

LINE = re.compile(
    r"^ *(?P<name>.*)-(?P<pid>\d+) +\[(?P<cpu>\d+)\] \S+ +(?P<s>\d+)\.(?P<us>\d{6}): (?P<kind>\w+): (?P<rest>.*)$"
)
SWITCH = re.compile(
    r"prev_comm=.* prev_pid=\d+ prev_prio=-?\d+ prev_state=(\S+) ==> next_comm=(.*) next_pid=(\d+) next_prio="
)
WAKEUP = re.compile(r"comm=(.*) pid=(\d+) prio=-?\d+ target_cpu=(\d+)")
IRQ = re.compile(r"irq=(\d+) name=(.*)")
SOFTIRQ = re.compile(r"vec=\d+ \[action=(\w+)\]")


class KernelEvent(NamedTuple):
    """One event of one CPU.

    ``kind`` is ``switch`` (from the process ``pid``, then in ``state``, to ``next_pid``), ``wakeup`` (of ``next_pid``,
    on the CPU ``cpu``), ``irq`` or ``softirq`` (``next_name`` begins), ``irq_end`` or ``softirq_end``.
    """

    time_ns: int
    cpu: int
    kind: str
    pid: int
    name: str
    state: str
    next_pid: int
    next_name: str


def parse_trace(lines: Iterator[str]) -> Iterator[KernelEvent]:
    """The events in the text of a trace; lines of another kind are left out."""
    for line in lines:
        if (found := LINE.match(line)) is None:
            continue
        time_ns = int(found["s"]) * 1_000_000_000 + int(found["us"]) * 1000
        cpu, pid, name, rest = int(found["cpu"]), int(found["pid"]), found["name"], found["rest"]
        match found["kind"]:
            case "sched_switch" if its := SWITCH.match(rest):
                yield KernelEvent(time_ns, cpu, "switch", pid, name, its[1][:1], int(its[3]), its[2])
            case "sched_wakeup" if its := WAKEUP.match(rest):
                yield KernelEvent(time_ns, int(its[3]), "wakeup", pid, name, "", int(its[2]), its[1])
            case "irq_handler_entry" if its := IRQ.match(rest):
                yield KernelEvent(time_ns, cpu, "irq", pid, name, "", 0, f"{its[2]} ({its[1]})")
            case "softirq_entry" if its := SOFTIRQ.match(rest):
                yield KernelEvent(time_ns, cpu, "softirq", pid, name, "", 0, its[1])
            case "irq_handler_exit" | "softirq_exit" as end:
                kind = "irq_end" if end.startswith("irq") else "softirq_end"
                yield KernelEvent(time_ns, cpu, kind, pid, name, "", 0, "")


class KernelTrace:
    """A trace that runs until it is frozen; close it to remove it from the kernel."""

    def __init__(self, place: Path) -> None:
        self._place = place

    @classmethod
    def begin(cls, places: tuple[Path, ...] = PLACES) -> tuple[KernelTrace | None, str]:
        """Begin one. Returns None where the host does not allow it, and why."""
        there = [place / "instances" for place in places if (place / "instances").is_dir()]
        if not there:
            return None, "none: tracefs is not mounted, or not readable (/sys/kernel/tracing)"
        instances = there[0]
        _remove_orphaned(instances)
        trace = cls(instances / f"{PREFIX}{os.getpid()}")
        try:
            trace._place.mkdir()
            trace._set_up()
        except OSError as error:
            trace.close()
            return None, f"none: {instances} is not writable ({error.strerror})"
        return trace, ""

    def _set_up(self) -> None:
        size_kib = min(BUFFER_KIB, ALL_BUFFERS_KIB // (os.cpu_count() or 1))
        for file, value in (("trace_clock", "mono"), ("buffer_size_kb", str(size_kib))):
            (self._place / file).write_text(value)
        for event in EVENTS:
            (self._place / "events" / event / "enable").write_text("1")

    def freeze(self) -> None:
        """Record nothing more; what was recorded stays."""
        with contextlib.suppress(OSError):
            (self._place / "tracing_on").write_text("0")

    def read(self, begin_ns: int) -> list[KernelEvent]:
        """The events since then, in order, the latest ``EVENTS_MAX`` at most."""
        try:
            with (self._place / "trace").open(errors="replace") as file:
                found = [event for event in parse_trace(file) if event.time_ns >= begin_ns]
        except OSError:
            return []
        return found[-EVENTS_MAX:]

    def close(self) -> None:
        _remove(self._place)


def _remove(place: Path) -> None:
    with contextlib.suppress(OSError):
        (place / "events" / "enable").write_text("0")
    with contextlib.suppress(OSError):
        place.rmdir()


def _remove_orphaned(instances: Path) -> None:
    """Remove the traces of runs whose coordinator was killed."""
    for place in instances.glob(f"{PREFIX}*"):
        number = place.name.removeprefix(PREFIX)
        if number.isdigit() and (int(number) == os.getpid() or not Path("/proc", number).exists()):
            _remove(place)
