"""The client library for asyncio: a peer of any ivshmem server whose waits are awaited. See `sim.client`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Generator

from nodes.errors import RemoteProtocolError, UsageError
from nodes.guest import Interrupt
from sim.client import DEFAULT_PATH, NANOSECONDS, VECTORS, ConnectedPeer, Found
from sim.wire.attachment import GREETING_NS
from sim.wire.peer_changes import Change


class AsyncPeer(ConnectedPeer):
    """A peer of a server in an asyncio loop, that of a notebook too. See `connect_async`.

    Use ``async with``, or ``await`` it and `close` it.

    Attributes:
        timeout: the default of all timeouts, seconds; None: wait for ever.
    """

    def __init__(
        self, path: str | os.PathLike[str] = DEFAULT_PATH, *, vectors: int = VECTORS, timeout: float | None = None
    ) -> None:
        self._arguments = path, vectors
        self.timeout = timeout
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._failure: Exception | None = None

    def __await__(self) -> Generator[object, None, AsyncPeer]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncPeer:
        return await self._open()

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _open(self) -> AsyncPeer:
        path, vectors = self._arguments
        super().__init__(path, vectors=vectors, in_background=True)
        self._asyncio = asyncio.get_running_loop()
        self._asyncio.add_reader(self._loop.fileno(), self._turn)
        try:
            self._turn()
            if not await self._until(lambda: self._attachment.met, GREETING_NS / NANOSECONDS):
                raise RemoteProtocolError(self._attachment.silence)
        except BaseException:
            self.close()
            raise
        return self

    def _turn(self) -> None:
        """A turn of the own loop within a turn of asyncio's."""
        assert self._asyncio is not None
        if self._closed or self._failure is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            self._loop.step(time.monotonic_ns())
        except Exception as error:  # the server violates the protocol: those that wait raise it
            self._failure = error
            self._asyncio.remove_reader(self._loop.fileno())
        else:
            if (next_ns := self._loop.next_ns) is not None:
                wait_s = max(0, next_ns - time.monotonic_ns()) / NANOSECONDS
                self._timer = self._asyncio.call_later(wait_s, self._turn)
        self._wake()

    def _take_in(self) -> None:
        self._check_open()
        self._turn()  # which wakes the tasks that wait for what is taken in here
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, vector: int | None = None, *, timeout: float | None = None) -> Interrupt:
        """Wait for an interrupt, as `Peer.wait`.

        Raises:
            TimeoutError: none came in time.
        """
        self._check_vector(vector)
        found = await self._until(lambda: self._attachment.take(vector), timeout)
        if found is None:
            raise self._no_interrupt(vector, timeout)
        return found

    async def wait_for_peers(self, count: int = 1, *, timeout: float | None = None) -> dict[int, int]:
        """Wait until at least ``count`` other peers are there, as `Peer.wait_for_peers`.

        Raises:
            TimeoutError: fewer came in time.
        """
        if not await self._until(lambda: self._are_there(count), timeout):
            raise self._no_peers(count, timeout)
        return self.peers

    async def changes(self) -> AsyncIterator[Change]:
        """The peers that join and leave, as they do: ``async for change in peer.changes()``.

        Ends when the server or this peer closes the connection.
        """
        while True:
            try:
                await self._until(lambda: bool(self._changes) or not self._attachment.served, float("inf"))
            except UsageError:  # this peer is closed
                return
            if not self._changes:
                return
            yield self._changes.popleft()

    async def _until(self, look: Callable[[], Found], timeout: float | None) -> Found:
        """Wait until there is what is looked for or the time is over; returns what was found last."""
        limit_s = self._limit_s(timeout)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if limit_s == float("inf") else limit_s):
                return await self._wait_until(look)
        return look()

    async def _wait_until(self, look: Callable[[], Found]) -> Found:
        self._take_in()
        while not (found := look()):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
            self._check_open()
            if self._failure is not None:
                raise self._failure
        return found

    def close(self) -> None:
        """Leave the server, and close everything that came from it. Closing twice is no error."""
        if self._asyncio is None or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._asyncio.remove_reader(self._loop.fileno())
        self._release()
        self._wake()

    def __repr__(self) -> str:
        there = self._asyncio is not None and not self._closed
        return f"<AsyncPeer {self._attachment.peer if there else 'not connected'} of {self._arguments[0]}>"


def connect_async(
    path: str | os.PathLike[str] = DEFAULT_PATH, *, vectors: int = VECTORS, timeout: float | None = None
) -> AsyncPeer:
    """As `connect`, for asyncio: ``async with sim.connect_async(path) as peer``, or ``await`` it and close it.

    Raises, when it is entered or awaited:
        UsageError: no server listens there.
        RemoteProtocolError: the server violates the protocol, or is silent for ten seconds.
    """
    return AsyncPeer(path, vectors=vectors, timeout=timeout)
