"""Finds the runs of this user that are running now by the sockets at which they publish."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sim.host.runtime_directory import PREFIX, runtime_parents
from sim.kernel.processes import descriptors

SOCKET = "telemetry.zmq"
"""The name of the socket in the private directory of a run (``ivsim-*``)."""
LISTENS = 0x10000  # __SO_ACCEPTCON, in the flags of /proc/net/unix


class Found(NamedTuple):
    """A run of this user in progress: its socket, its start (seconds since 1970), and the inode of the socket."""

    path: Path
    since_s: float
    inode: int

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.path}"

    def held_by(self, pid: int) -> bool:
        """Whether that process has the socket."""
        return any(link == f"socket:[{self.inode}]" for _, link in descriptors(pid))


def running(candidates: Iterable[Path] | None = None) -> list[Found]:
    """Return the sockets at which a process publishes now, the latest first.

    ``candidates`` are files; by default those in the `runtime_parents`. Only what belongs to this user counts, and what
    a living process listens at: looking connects to nothing, so that no run is disturbed.
    """
    if candidates is None:
        candidates = [path for place in runtime_parents() for path in place.glob(f"{PREFIX}*/{SOCKET}")]
    listening = listening_sockets()
    found = {}
    for path in candidates:
        with contextlib.suppress(OSError):
            whole = path.resolve()
            status = whole.lstat()
            own = stat.S_ISSOCK(status.st_mode) and status.st_uid == os.getuid()
            if own and str(whole) in listening:
                found[whole] = Found(whole, status.st_mtime, listening[str(whole)])
    return sorted(found.values(), key=lambda run: -run.since_s)


def listening_sockets() -> dict[str, int]:
    """The unix sockets of this host that are listened at: path to inode."""
    found = {}
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return {}
    for line in lines:
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & LISTENS:
            found[fields[7]] = int(fields[6])
    return found
