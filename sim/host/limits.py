"""The resources left for a run: limits of the process, its control group, the kernel and file systems."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nodes.errors import HostError

CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_SYS_RESOURCE = 21, 23, 24
SHM_DIRECTORY = "/dev/shm"


class Remaining(NamedTuple):
    """The amount of a resource that is left, and the name of the limit."""

    amount: int
    limit: str


@dataclass(frozen=True)
class Host:
    """The limits of this process; None: unlimited, or unknown. ``descriptors_open`` are this process's own."""

    descriptors: Remaining | None
    descriptors_open: int
    in_flight: Remaining | None
    files: Remaining | None
    processes: Remaining | None
    memory_bytes: Remaining | None
    shm_bytes: Remaining | None
    disk_bytes: Remaining | None
    cpus: frozenset[int]
    cpus_online: int
    real_time_priority: int
    nice: int
    address_space_bytes: Remaining | None = None
    file_bytes: Remaining | None = None
    cpu_s: Remaining | None = None

    @classmethod
    def here(cls, runs: Path) -> Host:
        """Read the limits of this host.

        Args:
            runs: The directory in which run directories are made; it need not exist.
        """
        capabilities = int(_field("/proc/self/status", "CapEff") or "0", 16)
        mighty = bool(capabilities & (1 << CAP_SYS_RESOURCE | 1 << CAP_SYS_ADMIN))
        nimble = bool(capabilities & 1 << CAP_SYS_NICE)
        return cls(
            descriptors=_hard(resource.RLIMIT_NOFILE, "ulimit -Hn"),
            descriptors_open=len(os.listdir("/proc/self/fd")),
            in_flight=None if mighty else _hard(resource.RLIMIT_NOFILE, "ulimit -Hn, for all processes of a user"),
            files=_files(),
            processes=_least(*_processes(mighty)),
            memory_bytes=_least(_available(), *_of_groups("memory")),
            shm_bytes=_room(Path(SHM_DIRECTORY)) if os.path.isdir(SHM_DIRECTORY) else None,
            disk_bytes=_room(runs),
            cpus=frozenset(os.sched_getaffinity(0)),
            cpus_online=os.cpu_count() or 1,
            real_time_priority=99 if nimble else min(99, _finite(resource.RLIMIT_RTPRIO, 99)),
            nice=-20 if nimble else min(os.getpriority(os.PRIO_PROCESS, 0), 20 - _finite(resource.RLIMIT_NICE, 40)),
            address_space_bytes=_soft(resource.RLIMIT_AS, "ulimit -v"),
            file_bytes=_soft(resource.RLIMIT_FSIZE, "ulimit -f"),
            cpu_s=_soft(resource.RLIMIT_CPU, "ulimit -t"),
        )


def _hard(limit: int, name: str) -> Remaining | None:
    hard = resource.getrlimit(limit)[1]
    return None if hard == resource.RLIM_INFINITY else Remaining(hard, name)


def _soft(limit: int, name: str) -> Remaining | None:
    soft = resource.getrlimit(limit)[0]
    return None if soft == resource.RLIM_INFINITY else Remaining(soft, name)


def _finite(limit: int, unlimited: int) -> int:
    soft = _soft(limit, "")
    return unlimited if soft is None else soft.amount


def _least(*known: Remaining | None) -> Remaining | None:
    return min((limit for limit in known if limit is not None), default=None)


def _files() -> Remaining | None:
    """How many more open files the kernel allows."""
    words = "".join(_lines("/proc/sys/fs/file-nr")).split()
    return Remaining(int(words[2]) - int(words[0]), "fs.file-max") if len(words) == 3 else None


def _processes(mighty: bool) -> Iterator[Remaining | None]:
    """How many more processes and threads each limit allows."""
    load = "".join(_lines("/proc/loadavg")).split()
    tasks = int(load[3].partition("/")[2]) if len(load) > 3 else 0
    for path, name in (("kernel/pid_max", "kernel.pid_max"), ("kernel/threads-max", "kernel.threads-max")):
        if (most := _number(f"/proc/sys/{path}")) is not None:
            yield Remaining(most - tasks, name)
    soft = _soft(resource.RLIMIT_NPROC, "ulimit -u")
    if soft is not None and not mighty:  # user_namespaces(7): capable processes are not limited
        yield soft._replace(amount=soft.amount - _own_tasks())
    yield from _of_groups("pids")


def _own_tasks() -> int:
    """Threads of all processes of this user."""
    uid, count = os.getuid(), 0
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                count += len(os.listdir(f"/proc/{entry.name}/task"))
    return count


def _available() -> Remaining | None:
    kib = _field("/proc/meminfo", "MemAvailable")
    return Remaining(int(kib) << 10, "available memory") if kib else None


def _of_groups(controller: str) -> Iterator[Remaining]:
    """The resources that control groups of either version leave, from this process's group up to the root."""
    names = {"memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"), "pids": ("pids.max", "pids.current")}
    for is_unified, folders in control_groups(_lines("/proc/self/cgroup"), controller):
        most, used = (f"{controller}.max", f"{controller}.current") if is_unified else names[controller]
        for folder in folders:
            limit, now = _number(folder / most), _number(folder / used)
            if limit is not None and now is not None:
                yield Remaining(
                    limit - now + (_cached(folder) if controller == "memory" else 0), f"control group, {most}"
                )


def control_groups(
    lines: Iterable[str], controller: str, mounted: Path = Path("/sys/fs/cgroup")
) -> Iterator[tuple[bool, list[Path]]]:
    """The control groups of a process that have a controller, as /proc/PID/cgroup lists them (cgroups(7)).

    Yields:
        Whether they are of version 2, and their directories, from the process's own up to the root.
    """
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = mounted / controller if controllers else mounted
            own = top / path.strip("/")
            yield not controllers, [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]


def _cached(group: Path) -> int:
    """The file cache of a group, which the kernel can reclaim."""
    words = (line.split() for line in _lines(group / "memory.stat"))
    return sum(int(word[1]) for word in words if word[0] in ("active_file", "inactive_file"))


def _room(path: Path) -> Remaining | None:
    """Free bytes of the file system of ``path``, which need not exist."""
    for folder in (path.absolute(), *path.absolute().parents):
        with contextlib.suppress(OSError):
            room = os.statvfs(folder)
            return Remaining(room.f_bavail * room.f_frsize, f"free on the file system of {folder}")
    raise HostError(f"{path}: no file system for it")


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _field(path: str, name: str) -> str:
    """The first word after a name that begins a line; "" where no line does."""
    return next((line.split()[1] for line in _lines(path) if line.startswith(f"{name}:")), "")


def _number(path: str | Path) -> int | None:
    """Read a file with one number; None for other content ("max") and without a file."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None
