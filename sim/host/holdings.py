"""The resources of this process: descriptors, threads, children, sockets, segments. For tests that check for leaks."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple

from sim.kernel.processes import children, descriptors


class Holdings(NamedTuple):
    """The resources that this process holds.

    Attributes:
        descriptors: their numbers, and what the kernel calls them (proc_pid_fd(5)).
        threads: of Python and of ZeroMQ.
        processes: the IDs of children. The resource tracker of ``multiprocessing`` and its pipe are the interpreter's.
        sockets: socket files and the private directories of runs.
        segments: the names in /dev/shm that have this process's ID.
    """

    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[str]
    processes: frozenset[int]
    sockets: frozenset[str]
    segments: frozenset[str]

    def beyond(self, before: Holdings) -> dict[str, list[object]]:
        """The resources that are new since ``before``, by kind; kinds without a difference are left out."""
        return {
            kind: sorted(now - then, key=str)
            for kind, now, then in zip(self._fields, self, before, strict=True)
            if now - then
        }


def holdings(sockets: Iterable[str] = ()) -> Holdings:
    """What this process holds now; ``sockets`` are those that the caller has found."""
    return Holdings(
        frozenset(_descriptors()),
        frozenset(_threads()),
        frozenset(children() - {getattr(resource_tracker, "_resource_tracker")._pid}),  # noqa: B009
        frozenset(sockets),
        frozenset(name for name in os.listdir("/dev/shm") if str(os.getpid()) in name.replace("-", " ").split()),
    )


def _descriptors() -> Iterator[tuple[int, str]]:
    tracker = getattr(resource_tracker, "_resource_tracker")._fd  # noqa: B009
    yield from (each for each in descriptors(os.getpid()) if each[0] != tracker)


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        yield f"{thread.name} ({thread.native_id})"
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # ended meanwhile
            name = Path(f"/proc/self/task/{task}/comm").read_text().strip()
            if name.startswith("ZMQbg"):
                yield f"{name} ({task})"
