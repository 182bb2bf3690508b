"""Lists what this program has on this host now, with its owners: runs, servers, memory, directories, processes.

Whatever has a name outside a run directory has an owner that can be proved dead: a runtime directory and a segment of
shared memory are locked by their owner (flock(2)), and a process of a run has the run's runtime directory in its
environment. `remove` takes away only what is proved to have no owner any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from sim.access import shown
from sim.host import runtime_directory
from sim.host.runtime_directory import RuntimeDirectory, runtime_directories
from sim.kernel.closeable import closing
from sim.kernel.processes import descriptors, run_of
from sim.kernel.segments import SHM_DIRECTORY, Segment, mappings, remove_segment, segments
from sim.telemetry import SOCKET, Found, Subscriber, running
from sim.telemetry.discovery import listening_sockets

ANSWER_S = 1.0
COMMAND_LENGTH_MAX = 100
JOBS = "dask-scratch-space"
"""What Dask makes in the directory of a worker."""

Kind = Literal["run", "worker", "server", "memory", "directory", "process"]
State = Literal["in use", "orphaned", "unknown"]


class Item(msgspec.Struct, frozen=True):
    """One thing. ``state``: its owner runs (or clients still use it); its owner has ended; it is not known."""

    kind: Kind
    state: State
    pid: int | None
    """The process it belongs to, where that is known."""
    name: str
    """A path, or the command line of a process."""
    detail: tuple[str, ...] = ()


def inventory() -> list[Item]:
    """Return all that belongs to this user: runs first, then servers, memory, directories, processes."""
    directories = runtime_directories()
    items = [*_runs(directories), *_servers(), *map(_memory, segments())]
    items += [
        Item("directory", "orphaned", directory.pid or None, str(directory.path))
        for directory in directories
        if not directory.owned
    ]
    return items + list(_orphaned_processes(directories))


def remove(item: Item) -> bool:
    """Remove what has no owner any more. Returns whether it is gone; anything else is left alone."""
    if item.state != "orphaned":
        return False
    match item.kind:
        case "memory":
            return remove_segment(Path(item.name).name)
        case "directory":
            return runtime_directory.remove(RuntimeDirectory(Path(item.name), item.pid or 0, owned=False))
        case "process":
            return _end_process(item)
    return False


def _runs(directories: list[RuntimeDirectory]) -> Iterator[Item]:
    telemetry = {found.path: found for found in running()}
    for directory in directories:
        if directory.owned:
            found = telemetry.get((directory.path / SOCKET).resolve())
            yield _run(directory, found)


def _run(directory: RuntimeDirectory, found: Found | None) -> Item:
    snapshot = None
    if found is not None:
        with Subscriber(found.endpoint) as subscriber:
            snapshot = subscriber.receive(ANSWER_S)
    if snapshot is None and (directory.path / JOBS).is_dir():
        return Item("worker", "in use", directory.pid or None, str(directory.path), ("carries out jobs of a cluster",))
    if snapshot is None:
        return Item("run", "in use", directory.pid or None, str(directory.path), ("starting, ending, or busy",))
    detail = (
        f"{snapshot.title}: {snapshot.phase}, {snapshot.up} of {snapshot.machines} machines",
        *shown(snapshot.access),
    )
    return Item("run", "in use", directory.pid, snapshot.path, detail)


def _memory(segment: Segment) -> Item:
    name = f"{SHM_DIRECTORY}/{segment.name}"
    size = f"{segment.size_bytes} bytes"
    match segment.state:
        case "owned":
            return Item("memory", "in use", segment.pid, name, (size,))
        case "used":
            users = ", ".join(str(mapping) for mapping in mappings(segment.name)) or "processes of another user"
            return Item("memory", "in use", None, name, (size, f"its server was killed; used by {users}"))
        case "orphaned":
            return Item("memory", "orphaned", None, name, (size,))
    return Item(
        "memory", "unknown", None, name, (size, "not made by this version: remove it by hand if it is not used")
    )


def _servers() -> Iterator[Item]:
    """Processes of `ivsim serve`, `record`, `replay` and `scheduler`, each with the sockets that it listens at."""
    names = {inode: path for path, inode in listening_sockets().items()}
    for pid, words in _processes():
        command = _command(words)
        if command in ("serve", "record", "replay", "scheduler"):
            sockets = sorted(names[inode] for inode in _sockets(pid) if inode in names)
            yield Item("server", "in use", pid, _shown(words), tuple(f"listens at {path}" for path in sockets))


def _orphaned_processes(directories: list[RuntimeDirectory]) -> Iterator[Item]:
    owned = {str(directory.path) for directory in directories if directory.owned}
    for pid, words in _processes():
        run = run_of(pid)
        if run and run not in owned and not Path(run).exists():
            yield Item("process", "orphaned", pid, _shown(words), (f"of the run with {run}, which has ended",))


def _end_process(item: Item) -> bool:
    """End a process by its descriptor, once it has been looked at again: its number may belong to another by now."""
    assert item.pid is not None
    with contextlib.suppress(ProcessLookupError), closing(os.pidfd_open(item.pid)) as descriptor:
        again = next((process for process in _orphaned_processes(runtime_directories()) if process == item), None)
        if again is None:
            return run_of(item.pid) == ""
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    return True


def _processes() -> Iterator[tuple[int, list[str]]]:
    """The processes of this user except this one, each with the words of its command line; zombies have none."""
    os.stat("/proc/self")  # without /proc, nothing is known of processes
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if pid != os.getpid() and os.stat(f"/proc/{pid}").st_uid == os.getuid():
                text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                if text:
                    yield pid, text.rstrip("\0").split("\0")


def _command(words: list[str]) -> str:
    """Return the command of an `ivsim` command line, run as a console script or by ``python -m sim``; "" for others."""
    for place, word in enumerate(words):
        if Path(word).name == "ivsim" or (word == "sim" and words[place - 1] == "-m"):
            return next((word for word in words[place + 1 :] if not word.startswith("-")), "")
    return ""


def _shown(words: list[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= COMMAND_LENGTH_MAX else text[: COMMAND_LENGTH_MAX - 3] + "..."


def _sockets(pid: int) -> set[int]:
    return {int(link[8:-1]) for _, link in descriptors(pid) if link.startswith("socket:[")}
