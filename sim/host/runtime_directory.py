"""The private directory of a run for its sockets, outside the run directory; its owner can be proved dead.

The directory has a file with the process ID of its owner, which holds a lock on that file to its end. A directory whose
owner was killed is removed by the next run, or by `ivsim clean`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nodes.errors import HostError
from sim.kernel.locks import is_locked

__all__ = [
    "PREFIX",
    "RuntimeDirectory",
    "remove",
    "runtime_directories",
    "runtime_directory",
    "runtime_parents",
]

LENGTH_MAX = 64
"""A socket's path holds 107 bytes (unix(7)): this much for the parent of the directory."""
OWNER = "owner.pid"
PREFIX = "ivsim-"


class RuntimeDirectory(NamedTuple):
    """A runtime directory of this user. ``pid`` is 0 where the owner has not written it yet."""

    path: Path
    pid: int
    owned: bool
    """Whether the owner still runs, or has not written its process ID yet."""


def runtime_parents() -> list[Path]:
    """The directories in which runs make their private directories."""
    named = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    return [Path(path) for path in dict.fromkeys(named) if path]


@contextlib.contextmanager
def runtime_directory() -> Iterator[Path]:
    """Make a private directory (mode 0700) with a path short enough for sockets; remove it in the end.

    Directories of killed owners in the same place are removed first.

    Raises:
        HostError: No place is short enough and can be written.
    """
    parents = runtime_parents()
    usable = (path for path in parents if len(str(path)) <= LENGTH_MAX and os.access(path, os.W_OK | os.X_OK))
    parent = next(usable, None)
    if parent is None:
        names = ", ".join(map(str, parents))
        raise HostError(
            f"no directory for sockets: none of {names} can be written and has at most {LENGTH_MAX} characters. "
            "Name another one in XDG_RUNTIME_DIR"
        )
    for left in runtime_directories([parent]):
        remove(left)
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as path,
        Path(path, OWNER).open("x") as owner,
    ):
        # Written only under the lock, which this process holds to its end: written and not locked, its owner is dead.
        fcntl.flock(owner, fcntl.LOCK_EX)
        print(os.getpid(), file=owner, flush=True)
        yield Path(path)


def runtime_directories(parents: list[Path] | None = None) -> list[RuntimeDirectory]:
    """Return the runtime directories of this user in ``parents``, by default in all `runtime_parents`."""
    found = []
    for parent in runtime_parents() if parents is None else parents:
        for owner in sorted(parent.glob(f"{PREFIX}*/{OWNER}")):
            with contextlib.suppress(OSError, ValueError):  # another user's, or just gone
                status = owner.parent.lstat()
                if status.st_mode == stat.S_IFDIR | 0o700 and status.st_uid == os.getuid():
                    with owner.open() as file:
                        locked = is_locked(file.fileno())
                        text = file.read(20).strip()
                        found.append(RuntimeDirectory(owner.parent, int(text or 0), locked or not text))
    return found


def remove(directory: RuntimeDirectory) -> bool:
    """Remove a directory with all its files if its owner is dead. Returns whether it is gone now."""
    with contextlib.suppress(OSError), (directory.path / OWNER).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file.read(1):
            shutil.rmtree(directory.path)
    return not directory.path.exists()
