"""One end of Ethernet over ivshmem v2 in this process: its frames are those of a network interface of the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nodes.ethernet import Link
from nodes.guest import FOREVER, Guest, Program
from sim.kernel.closeable import Closeable
from sim.kernel.loop import Loop
from sim.kernel.tap import Tap
from sim.wire.attachment import Attachment


class EthernetBridge(Closeable):
    """A peer of a server of ivshmem v2, and a TAP device. A context manager.

    Args:
        loop: what waits for both; close it after the bridge.
        path: the server's socket.
        tap: the interface; the caller closes it.
        say: ``say(text)`` is called when the link comes up or goes down, and with what is odd.

    Attributes:
        sent: how many frames went to the peer, received: how many came from it.
        dropped: how many found the link down, the queue full, or the interface down.

    Raises:
        UsageError: no server listens there.
        GuestError: the server is not of version 2, or has no two peers with output sections.
    """

    def __init__(self, loop: Loop, path: Path, tap: Tap, *, say: Callable[[str], object]) -> None:
        self._loop, self._tap, self._say = loop, tap, say
        self._link: Link | None = None
        self.sent = self.received = self.dropped = 0
        self._peer = Attachment(loop, path, vectors=1, program=self._run, say=say)
        try:
            self._peer.meet()
            loop.add(tap, self._forward)
        except BaseException:
            self._peer.close()
            raise

    @property
    def is_up(self) -> bool:
        return self._link is not None and self._link.is_up

    def _run(self, guest: Guest) -> Program:
        link = self._link = Link(guest)
        was_up = False
        while True:
            if link.advance() != was_up:
                was_up = link.is_up
                self._say(f"the link to peer {link.peer} is {'up' if was_up else 'down'}")
            for frame in link.receive():
                if self._tap.write(frame):
                    self.received += 1
                else:
                    self.dropped += 1
            yield FOREVER

    def _forward(self) -> None:
        while (frame := self._tap.read()) is not None:
            if self._link is not None and self._link.send(frame):
                self.sent += 1
            else:
                self.dropped += 1

    def close(self) -> None:
        self._loop.remove(self._tap)
        self._link = None  # it has views of the memory
        self._peer.close()
