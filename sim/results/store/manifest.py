"""The manifest: what was run, where, with what, by which process; and whether that process still runs."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sim.access import Access
from sim.kernel.processes import stat_fields

SCHEMA_VERSION = 1
VECTORS_LIMIT = 1 << 22
HOST_NAME_VARIABLE = "IVSIM_HOST_NAME"
"""The variable in which a worker of a cluster (`ivsim worker`) tells its runs the name of their host."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
Count = Annotated[int, Meta(ge=0, le=1 << 16)]
MACHINE_NAME_MAX = 160
MachineName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,160}\Z")]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class Owner(msgspec.Struct, frozen=True):
    """A process, identified by its ID, its start time (clock ticks) and the boot of the host."""

    pid: Annotated[int, Meta(ge=1)]
    start_ticks: int
    boot: str

    @classmethod
    def this(cls) -> Owner:
        """This process."""
        return cls(os.getpid(), _start_ticks(os.getpid()) or 0, _boot())

    def is_running(self) -> bool:
        """Whether that process still runs; a zombie does not."""
        return self.boot == _boot() and _start_ticks(self.pid) == self.start_ticks


class HostFacts(msgspec.Struct, frozen=True):
    """The properties of the host that figures depend on. ``cpus`` is how many the run may use, of ``cpus_online``."""

    kernel: str
    machine: str
    cpus: int
    cpus_online: int
    cpu_model: str
    clock_source: str
    memory_bytes: int
    python: str
    limits: dict[str, int | None]
    name: Annotated[str, Meta(max_length=256)] = ""
    """The name of the host among those of a cluster; "" for a run that was started on its host."""

    @classmethod
    def this(cls) -> HostFacts:
        """This host. Its name is in it only if a worker of a cluster has told it."""
        return cls(
            kernel=platform.release(),
            machine=platform.machine(),
            cpus=len(os.sched_getaffinity(0)),
            cpus_online=os.cpu_count() or 1,
            cpu_model=_cpu_model(),
            clock_source=_line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            python=f"{platform.python_implementation()} {platform.python_version()}",
            limits={
                "descriptors": _soft(resource.RLIMIT_NOFILE),
                "processes": _soft(resource.RLIMIT_NPROC),
                "locked_bytes": _soft(resource.RLIMIT_MEMLOCK),
                "address_space_bytes": _soft(resource.RLIMIT_AS),
            },
            name=os.environ.get(HOST_NAME_VARIABLE, "")[:256],
        )


class GroupRow(msgspec.Struct, frozen=True):
    """A group of machines, as the topology has it."""

    name: Name
    count: Count
    vectors: Count
    program: str = ""
    real: str = ""
    """Which of them are real QEMUs: "qemu", "4 of 8 qemu"."""


class MachineRow(msgspec.Struct, frozen=True):
    """One machine. Its place in the list is its index; its peer ID is in its recording."""

    index: Annotated[int, Meta(ge=0, lt=1 << 16)]
    name: MachineName
    group: Name
    vectors: Count
    domain: Count = 0
    of: Annotated[int, Meta(ge=0, lt=1 << 16)] | None = None
    """The machine of which this is a further incarnation, or a further device; None for the machine itself."""


class Phase(msgspec.Struct, frozen=True):
    """A part of the run with a name, between two moments of CLOCK_MONOTONIC; the second one is not in it.

    What is not ``measured`` is left out of the latencies, as the warm-up is.
    """

    name: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,80}\Z")]
    start_ns: Annotated[int, Meta(ge=0, le=1 << 62)]
    end_ns: Annotated[int, Meta(ge=0, le=1 << 62)]
    measured: bool = True


class PartRow(msgspec.Struct, frozen=True):
    """The part of a run that one host ran: the directory of a run of its own, below that of the whole."""

    host: Annotated[str, Meta(max_length=256)]
    directory: Name
    domains: Annotated[list[Name], Meta(max_length=1 << 10)]


class Manifest(msgspec.Struct, frozen=True):
    """``manifest.json``. ``started_ns`` is CLOCK_MONOTONIC, ``started`` the same moment as UTC.

    ``access`` is what another program needed to join while the run lasted.
    ``engine`` is the engine that ran it (``[run] engine``).
    ``parts`` are those of a run over several hosts, empty for any other; ``host`` is then the host of the command.
    Without ``phases`` the time after the warm-up is one phase: measured.
    """

    schema_version: int
    version: str
    title: Annotated[str, Meta(max_length=4096)]
    seed: int
    started: str
    started_ns: int
    duration_s: Seconds
    warmup_s: Seconds
    sample_every: Annotated[int, Meta(ge=0)]
    owner: Owner
    host: HostFacts
    argv: list[str]
    arguments: dict[str, Any]
    groups: Annotated[list[GroupRow], Meta(max_length=1 << 16)]
    machines: Annotated[list[MachineRow], Meta(max_length=1 << 16)]
    phases: Annotated[list[Phase], Meta(max_length=1 << 10)] = []
    domains: Annotated[list[Name], Meta(max_length=1 << 10)] = msgspec.field(default_factory=lambda: ["main"])
    engine: Name = "process"
    access: Annotated[list[Access], Meta(max_length=1 << 10)] = []
    parts: Annotated[list[PartRow], Meta(max_length=1 << 10)] = []

    def __post_init__(self) -> None:
        if sum(machine.vectors for machine in self.machines) > VECTORS_LIMIT:
            raise ValueError(f"more than {VECTORS_LIMIT} vectors: no host has that many eventfds")
        names = {group.name for group in self.groups}
        for index, machine in enumerate(self.machines):
            if machine.index != index:
                raise ValueError(f"machine {machine.index} stands in place {index}")
            if machine.group not in names:
                raise ValueError(f"machine {index} is of group {machine.group}, which there is not")


def _start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or a zombie."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def _boot() -> str:
    return _line("/proc/sys/kernel/random/boot_id")


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _cpu_model() -> str:
    for line in _line("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "cpu model", "Processor"}:
            return value.strip()
    return platform.processor()


def _soft(limit: int) -> int | None:
    """The soft limit, None when there is none."""
    soft = resource.getrlimit(limit)[0]
    return None if soft == resource.RLIM_INFINITY else soft
