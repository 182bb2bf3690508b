"""The process at the other end of a unix socket, as the kernel reports it."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_LAYOUT = struct.Struct("iII")  # struct ucred


class Credentials(NamedTuple):
    """A process, as it was when it connected or listened (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def credentials_of(sock: socket.socket) -> Credentials:
    return Credentials(*_LAYOUT.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LAYOUT.size)))
