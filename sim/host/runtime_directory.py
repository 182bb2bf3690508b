"""The private directory of a run for its sockets, outside the run directory; its owner can be proved dead.

The directory has a file with the process ID of its owner, which holds a lock on that file to its end. A directory whose
owner was killed is removed by the next run, or by `ivsim clean`. The process that makes the file, or has its lock, owns
the directory: between two steps of its making, a clean-up can take the directory, and its maker then makes another one.
So no directory stays, at whatever step its maker is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from nodes.errors import HostError
from sim.kernel.locks import is_locked

LENGTH_MAX = 64
"""A socket's path holds 107 bytes (unix(7)): this much for the parent of the directory."""
OWNER = "owner.pid"
PREFIX = "ivsim-"
_MADE = re.compile(re.escape(PREFIX) + "[a-z0-9_]{8}")
"""The names that `tempfile` makes."""


class RuntimeDirectory(NamedTuple):
    """A runtime directory of this user. ``pid`` is 0 where the owner has not written it."""

    path: Path
    pid: int
    owned: bool
    """Whether the owner still runs."""


def runtime_parents() -> list[Path]:
    """The directories in which runs make their private directories."""
    named = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    return [Path(path) for path in dict.fromkeys(named) if path]


@contextlib.contextmanager
def runtime_directory(parent: Path | None = None) -> Iterator[Path]:
    """Make a private directory (mode 0700) with a path short enough for sockets; remove it in the end.

    Directories of killed owners in the same place are removed first. ``parent`` is where to make it, if the length of
    the path does not matter.

    Raises:
        HostError: No place is short enough and can be written.
    """
    parents = runtime_parents()
    usable = (path for path in parents if len(str(path)) <= LENGTH_MAX and os.access(path, os.W_OK | os.X_OK))
    if parent is None and (parent := next(usable, None)) is None:
        names = ", ".join(map(str, parents))
        raise HostError(
            f"no directory for sockets: none of {names} can be written and has at most {LENGTH_MAX} characters. "
            "Name another one in XDG_RUNTIME_DIR"
        )
    for left in runtime_directories([parent]):
        remove(left)
    while True:
        with contextlib.ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True)
            if _take(path := Path(stack.enter_context(made)), stack):
                yield path
                return


def _take(path: Path, stack: contextlib.ExitStack) -> bool:
    """Become the owner of a new directory, until ``stack`` is closed. Returns False if a clean-up has taken it."""
    try:
        owner = stack.enter_context((path / OWNER).open("x"))
        fcntl.flock(owner, fcntl.LOCK_EX)
        if not os.path.samestat(os.stat(path / OWNER), os.fstat(owner.fileno())):
            return False
    except (FileExistsError, FileNotFoundError):
        return False
    print(os.getpid(), file=owner, flush=True)
    return True


def runtime_directories(parents: list[Path] | None = None) -> list[RuntimeDirectory]:
    """Return the runtime directories of this user in ``parents``, by default in all `runtime_parents`."""
    found = []
    for parent in runtime_parents() if parents is None else parents:
        for path in sorted(parent.glob(f"{PREFIX}*")):
            with contextlib.suppress(OSError, ValueError):  # another user's, or just gone
                status = path.lstat()
                if status.st_mode == stat.S_IFDIR | 0o700 and status.st_uid == os.getuid():
                    try:
                        file = _open_owner(path)
                    except FileNotFoundError:  # killed before it had made the file, or just about to make it
                        if _unsigned(path):
                            found.append(RuntimeDirectory(path, 0, owned=False))
                        continue
                    with file:
                        locked = is_locked(file.fileno())
                        text = file.read(20).strip()
                    if text or locked or _unsigned(path):
                        found.append(RuntimeDirectory(path, int(text or 0), locked))
    return found


def _open_owner(path: Path, flags: int = 0) -> TextIO:
    """Open the file of a directory's owner; what is no regular file is refused (``OSError``), and never waited for."""
    descriptor = os.open(path / OWNER, flags | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    return os.fdopen(descriptor, "r+")


def _unsigned(path: Path) -> bool:
    """Whether a directory has a name that `tempfile` makes, and nothing in it but the file of an owner."""
    return bool(_MADE.fullmatch(path.name)) and set(os.listdir(path)) <= {OWNER}


def remove(directory: RuntimeDirectory) -> bool:
    """Remove a directory with all its files if its owner is dead. Returns whether it is gone now."""
    path = directory.path
    with contextlib.suppress(OSError), _open_owner(path, os.O_CREAT) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file.read(1) or _unsigned(path):
            shutil.rmtree(path)
    return not path.exists()
