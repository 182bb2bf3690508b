"""Eventfds stay non-blocking, whatever the clients that receive them do, so that a ring never blocks."""

from __future__ import annotations

import time

from sim.kernel.loop import Loop
from sim.wire.server import IvshmemServer

UNBLOCK_AFTER_NS = (50_000_000, 500_000_000, 5_000_000_000)


class NonBlockingGuard:
    """Makes eventfds non-blocking again after newcomers have had time to receive them, and until all have.

    Call ``start`` for each client that joins and may be a real QEMU (see ``IvshmemServer.unblock``).
    """

    def __init__(self, loop: Loop, server: IvshmemServer) -> None:
        self._loop, self._server = loop, server
        self._looks = len(UNBLOCK_AFTER_NS)  # since the last newcomer
        self._newest = 0

    def start(self) -> None:
        if self._looks:
            self._looks = 0
            self._newest += 1
            self._wait()

    def _wait(self) -> None:
        after_ns = UNBLOCK_AFTER_NS[min(self._looks, len(UNBLOCK_AFTER_NS) - 1)]
        newest = self._newest
        self._loop.at(time.monotonic_ns() + after_ns, lambda: self._look(newest))

    def _look(self, newest: int) -> None:
        if newest != self._newest:
            return  # a later newcomer has started another series
        unread = self._server.is_unread
        self._server.unblock()
        self._looks += 1
        if unread or self._looks < len(UNBLOCK_AFTER_NS):
            self._wait()
