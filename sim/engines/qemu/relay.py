"""The relay between a run's server and one QEMU: it passes on the announcements of the server.

A machine's worker is the client of the server, and QEMU is the client of the worker. So the worker knows which peers
QEMU knows, sends it nothing that kills it (DESIGN, law 10), and counts the doorbells for its vectors before QEMU takes
them: an eventfd that QEMU reads does not tell how many doorbells it held.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from nodes.errors import QemuError
from nodes.wire.protocol import MEMORY, VERSION, Message
from sim.kernel.channel import Outbox, has_ended, unread_bytes
from sim.kernel.eventfd import EventFd
from sim.kernel.waiting import Patience

QUEUE_LIMIT = 1 << 20
PATIENCE_S = 60.0


class Relay:
    """The server's end of the connection to QEMU, in dialect v0. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._outbox = Outbox(sock, QUEUE_LIMIT)
        self._is_read = True
        self._retired: list[EventFd] = []

    def greet(self, peer: int, memory: int) -> None:
        """Send the version, the ID and the memory, in the order that QEMU insists on."""
        for message in (Message(VERSION), Message(peer), Message(MEMORY, (memory,))):
            self._send(message)

    def connect(self, peer: int, eventfd: int) -> None:
        """Send the next vector of a peer."""
        self._send(Message(peer, (eventfd,)))

    def leave(self, peer: int) -> None:
        """Announce that a peer has left. QEMU must have heard of it, and must not hear it twice."""
        self._send(Message(peer))

    def retire(self, eventfd: EventFd) -> None:
        """Close an eventfd of this process once no message that carries it waits here."""
        self._retired.append(eventfd)
        self._close_retired()

    def wait_until_read(self, turn: Callable[[], object]) -> None:
        """Return once QEMU has taken in all that was sent; ``turn`` lets its main loop make a turn.

        Raises:
            QemuError: it does not read.
        """
        if self._is_read:
            return
        patience = Patience(PATIENCE_S)
        while not (self.flush() and unread_bytes(self._socket) == 0):
            turn()
            if patience.is_over():
                raise QemuError(f"QEMU has read no message of its server for {PATIENCE_S:g} s")
        turn()  # the one that handles the last message may be under way
        self._is_read = True

    def _send(self, message: Message[int]) -> None:
        self._outbox.put(message)
        self.flush()
        self._is_read = False

    @property
    def is_sent(self) -> bool:
        """Whether nothing waits here for room in the socket; until then, descriptors that were sent must stay open."""
        return not len(self._outbox)

    @property
    def has_left(self) -> bool:
        """Whether QEMU has closed its end; a byte from it means that, too."""
        return has_ended(self._socket)

    def flush(self) -> bool:
        """Send what waits; returns whether that was all.

        Raises:
            QemuError: QEMU has closed the connection.
        """
        try:
            is_all = self._outbox.flush()
        except OSError as error:
            raise QemuError(f"QEMU has closed its connection: {error.strerror}") from error
        self._close_retired()
        return is_all

    def _close_retired(self) -> None:
        while self._retired and self.is_sent:
            self._retired.pop().close()

    def close(self) -> None:
        self._socket.close()
        while self._retired:
            self._retired.pop().close()
