"""Eventfds: the only module that makes, writes and reads them.

``signal`` and ``drain`` are the standard library's own functions: nothing of ours is between a doorbell and the kernel.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

from nodes.errors import RemoteProtocolError

EVENTFD_LINK = "anon_inode:[eventfd]"  # proc_pid_fd(5)
COUNTER_MAX = (1 << 64) - 2
"""The maximum of an eventfd (eventfd(2)); one more doorbell is refused with ``BlockingIOError``."""

signal: Callable[[int, int], object] = os.eventfd_write
drain: Callable[[int], int] = os.eventfd_read


def rung(descriptor: int) -> int:
    """How many doorbells an eventfd holds, which stay there (proc_pid_fdinfo(5), eventfd-count)."""
    with open(f"/proc/self/fdinfo/{descriptor}") as told:
        return next((int(line.split()[1], 16) for line in told if line.startswith("eventfd-count:")), 0)


class EventFd:
    """Owns one eventfd; closing twice is no error."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def create(cls) -> EventFd:
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @classmethod
    def adopt(cls, descriptor: int) -> EventFd:
        """Take over a descriptor that came over a socket, and see to it that it never blocks.

        The flag belongs to the description that all peers share, and another receiver may have cleared it:
        a real QEMU does so with every descriptor, and sets it again only on those that it keeps.

        Raises ``RemoteProtocolError`` for anything else than an eventfd, and closes it.
        """
        kind = os.readlink(f"/proc/self/fd/{descriptor}")
        if kind != EVENTFD_LINK:
            os.close(descriptor)
            raise RemoteProtocolError(f"server sent {kind} where an eventfd belongs")
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if not flags & os.O_NONBLOCK:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        return cls(descriptor)

    def take(self) -> int:
        """Read the counter, which becomes 0. Never blocks."""
        try:
            return os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return 0

    def add(self, count: int) -> bool:
        """Add to the counter what so many doorbells add; False when that exceeds ``COUNTER_MAX``."""
        try:
            os.eventfd_write(self.descriptor, count)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
