"""The ivshmem server as the network sees it: a listening socket, its clients, their eventfds.

What is said to whom is decided by ``nodes.wire.server``; here it is said. What many are told is laid out once, and
waits for each of them as a place in what was laid out. A client that does not read costs nobody but itself: what it
is told waits in its outbox, and when that is full, it is disconnected and announced as gone. A client never speaks:
a byte from it, or the end of its connection, means that it has left.

The kernel counts the descriptors that a user has sent and nobody has received yet, and lets a user without privileges
have as many as a process may open (unix(7), ETOOMANYREFS). So that clients that do not read cannot have them all, a
socket takes a small part of them, and when nobody can be told anything any more, the one with the most unread goes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from nodes.errors import HostError, LocalProtocolError
from nodes.wire.protocol import V0, Dialect, Message
from nodes.wire.server import Introduction, Server
from sim.kernel.channel import Outbox
from sim.kernel.eventfd import EventFd
from sim.kernel.loop import Loop
from sim.kernel.mmsg import Batch, Roll, join_neighbours
from sim.wire.listener import PATH_BYTES_MAX, Listener
from sim.wire.peer import Arrival, Peer

__all__ = ["PATH_BYTES_MAX", "Arrival", "IvshmemServer", "Peer"]

RETRY_NS = 2_000_000
STALL_NS = 1_000_000_000
OUTBOX_SPARE = 4096
ACCEPTED_AT_ONCE = 1024
GREETING_MESSAGES = 3


class IvshmemServer:
    """A server on a path, or on a socket that listens already, for one region of memory.

    ``on_arrival`` decides about each client that connects (it calls ``join`` or ``join_all``, at once or later); by
    default all that wait join at once with ``vectors`` eventfds. ``on_join`` and ``on_leave`` tell what has happened,
    ``on_refuse`` who was not let in and why: beyond ``clients_max``, of none of the users ``uids`` (if there are
    any), without IDs or descriptors. Such a one is told ``refusal``, if given: a real QEMU waits for ever for a
    server that closes without a word.
    ``on_pause`` tells that accepting pauses for lack of descriptors.
    With ``retain_departed`` the eventfds of peers that have left stay open, in ``departed``, for whoever counts
    what nobody took. A context manager: leaving it disconnects everybody and removes the socket.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path | Listener,
        memory: int,
        *,
        vectors: int,
        dialect: Dialect = V0,
        first_peer: int = 0,
        reuse_peers: bool = False,
        clients_max: int | None = None,
        uids: Collection[int] = (),
        refusal: Message[int] | None = None,
        on_arrival: Callable[[Arrival], None] | None = None,
        on_join: Callable[[Peer], None] = lambda peer: None,
        on_leave: Callable[[Peer, str], None] = lambda peer, reason: None,
        on_refuse: Callable[[Arrival, str], None] = lambda arrival, reason: None,
        on_pause: Callable[[str], None] = lambda reason: None,
        retain_departed: bool = False,
    ) -> None:
        self._loop = loop
        self._vectors = vectors
        self._server: Server[int] = Server(memory, dialect=dialect, first_peer=first_peer, reuse_peers=reuse_peers)
        self._clients_max, self._uids, self._refusal = clients_max, uids, refusal
        self.peers: dict[int, Peer] = {}
        self._waiting: dict[int, Arrival] = {}  # socket number -> not joined yet
        self.departed: list[Peer] = []
        self._released = 0  # how many departed ones are gone from the list
        self._retain_departed = retain_departed
        self._eventfds = 0  # of all peers
        self._stuck: dict[int, str] = {}  # peer -> why it is not told more for now
        self._news: deque[tuple[Sequence[int], Message[int] | list[Batch]]] = deque()
        self._telling = False
        self._sent = 0  # messages, to anybody
        self._stall: tuple[int, int] | None = None  # how many had been sent when throttled, and since when so many
        self._vectors_told, self._leaves_told = Roll(), Roll()
        self._on_arrival = on_arrival
        self._on_join, self._on_leave = on_join, on_leave
        self._on_refuse, self._on_pause = on_refuse, on_pause
        self._listener = path if isinstance(path, Listener) else Listener(path)
        self.path = self._listener.path
        loop.add(self._listener, self._accept_all)

    # Clients that come

    def _accept_all(self) -> None:
        arrivals: list[Arrival] = []
        try:
            self._accept(arrivals)
        finally:
            if self._on_arrival is None and arrivals:
                with contextlib.suppress(HostError):  # he was told, and so was on_refuse; others go on
                    self.join_all([(arrival, self._vectors) for arrival in arrivals])

    def _accept(self, arrivals: list[Arrival]) -> None:
        """Admit those who wait, but let others have their turn; when descriptors run out, pause instead of spinning."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._loop.remove(self._listener)
                    self._loop.at(time.monotonic_ns() + 50 * RETRY_NS, self._resume_accepting)
                    self._on_pause(os.strerror(error.errno))
                    return
                raise
            if sock is None:
                return
            arrival = Arrival(sock)
            if self._clients_max is not None and len(self.peers) + len(self._waiting) >= self._clients_max:
                self._refuse(arrival, f"there are {self._clients_max} clients already")
                continue
            if self._uids and arrival.uid not in self._uids:
                self._refuse(arrival, f"expected a process of user {' or '.join(map(str, self._uids))}")
                continue
            self._waiting[sock.fileno()] = arrival
            # One who leaves before he has joined is noticed too.
            self._loop.add(sock, lambda arrival=arrival: self._dismiss(arrival))  # type: ignore[misc]
            arrivals.append(arrival)
            if self._on_arrival is not None:
                self._on_arrival(arrival)

    def _refuse(self, arrival: Arrival, reason: str) -> None:
        if self._refusal is not None:
            with contextlib.suppress(OSError):  # gone already
                farewell = Outbox(arrival.socket, 1)
                farewell.put(self._refusal)
                farewell.flush()
        arrival.socket.close()
        self._on_refuse(arrival, reason)

    def _resume_accepting(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add(self._listener, self._accept_all)

    def _dismiss(self, arrival: Arrival) -> None:
        if self._waiting.pop(arrival.socket.fileno(), None) is not None:
            self._loop.remove(arrival.socket)
            arrival.socket.close()

    def join(self, arrival: Arrival, vectors: int) -> Peer | None:
        """Make a client a peer with so many eventfds, and tell everybody.

        None when it has left already. Raises ``HostError`` when there are no descriptors or no IDs for it (it is
        then disconnected).
        """
        return self.join_all([(arrival, vectors)])[0]

    def join_all(self, arrivals: Iterable[tuple[Arrival, int]]) -> list[Peer | None]:
        """As ``join`` for one after the other, and in this order each is told the same; but they are told together.

        Raises ``HostError`` if one of them could not join; the others have joined all the same.
        """
        joined: list[Peer | None] = []
        failure: HostError | None = None
        for arrival, vectors in arrivals:
            peer = None
            try:
                peer = self._enter(arrival, vectors)
            except HostError as error:
                failure = failure or error
            joined.append(peer)
        newcomers = [peer for peer in joined if peer is not None]
        for peer in newcomers:
            self._on_join(peer)
        for said in self._server.greet([peer.peer for peer in newcomers]) if newcomers else ():
            if isinstance(said, Introduction):
                vectors_of = (self.peers[number].vectors for number in said.peers)
                self._news.append((said.to, join_neighbours(vectors_of)))
            else:
                self._news.append(([said.peer], said.message))
        self._tell_news()
        if failure is not None:
            raise failure
        return joined

    def _enter(self, arrival: Arrival, vectors: int) -> Peer | None:
        if self._waiting.pop(arrival.socket.fileno(), None) is None:
            return None
        eventfds: list[EventFd] = []
        try:
            for _ in range(vectors):
                eventfds.append(EventFd.create())
            number = self._server.enter([eventfd.descriptor for eventfd in eventfds])
        except (OSError, LocalProtocolError) as error:
            for eventfd in eventfds:
                eventfd.close()
            self._loop.remove(arrival.socket)
            reason = f"no further peer with {vectors} eventfds can join: {error}"
            self._refuse(arrival, reason)
            raise HostError(reason) from error
        peer = Peer(number, arrival, eventfds, self._vectors_told.lay_out(self._server.peers[number]))
        peer.told_until = self._released + len(self.departed)
        self.peers[number] = peer
        self._eventfds += vectors
        self._loop.add(peer.socket, lambda: self._lose(peer))
        return peer

    # Messages that go

    def _tell_news(self) -> None:
        """Queue and send. A peer that cannot be told leaves, which is news in turn: it goes behind these."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._news:
                touched: dict[int, Peer] = {}
                while self._news:
                    to, said = self._news.popleft()
                    for number in to:
                        if (peer := self.peers.get(number)) is not None and self._queue(peer, said):
                            touched[number] = peer
                for peer in touched.values():
                    self._flush(peer)
        finally:
            self._telling = False
        self._release_departed()

    def _queue(self, peer: Peer, said: Message[int] | list[Batch]) -> bool:
        outbox = peer.outbox
        # Room for the greeting of one who comes now, and for a neighbour's coming and going; beyond that, it does
        # not read.
        outbox.limit = 2 * (GREETING_MESSAGES + self._eventfds) + OUTBOX_SPARE
        if outbox.put(said) if isinstance(said, Message) else all(map(outbox.put_batch, said)):
            return True
        self._leave(peer, f"does not read: {len(outbox)} messages wait for it")
        return False

    def _flush(self, peer: Peer) -> None:
        if self.peers.get(peer.peer) is not peer:
            return
        waited = len(peer.outbox)
        try:
            done = peer.outbox.flush()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                self._lose(peer)
            else:
                self._leave(peer, error.strerror or "connection broken")
            return
        self._sent += waited - len(peer.outbox)
        if done:
            peer.told_until = self._released + len(self.departed)
            if self._stuck.pop(peer.peer, None):
                self._loop.add(peer.socket, lambda: self._lose(peer))
                self._release_departed()
            return
        cause = "throttled" if peer.outbox.throttled else "full"
        if self._stuck.get(peer.peer) == cause:
            return
        self._stuck[peer.peer] = cause
        if cause == "full":
            self._loop.add(peer.socket, lambda: self._lose(peer), writable=lambda: self._flush(peer))
            return
        # There may be room in the socket: being told so again and again would help nobody.
        self._loop.add(peer.socket, lambda: self._lose(peer))
        if self._stall is None:
            now_ns = time.monotonic_ns()
            self._stall = self._sent, now_ns
            self._loop.at(now_ns + RETRY_NS, self._retry)

    def _retry(self) -> None:
        """Go on where too many descriptors were under way: that is so for all clients or for none."""
        for number in [number for number, cause in self._stuck.items() if cause == "throttled"]:
            del self._stuck[number]  # whose turn it was comes last the next time
            self._stuck[number] = "retried"
            self._flush(self.peers[number])
            if self._stuck.get(number) == "throttled":
                break
        if "throttled" not in self._stuck.values() or self._stall is None:
            self._stall = None
            return
        now_ns = time.monotonic_ns()
        sent, since_ns = self._stall
        if self._sent != sent:
            self._stall = self._sent, now_ns
        elif now_ns - since_ns >= STALL_NS:
            self._stall = sent, now_ns
            self._drop_who_reads_least()
        self._loop.at(now_ns + RETRY_NS, self._retry)

    def _drop_who_reads_least(self) -> None:
        """Nobody can be told anything: end the connection in which most waits. Whoever reads has read all by now."""
        unread_bytes, number = max((peer.unread_bytes, number) for number, peer in self.peers.items())
        if unread_bytes:  # else they are some other program's descriptors
            reason = f"does not read: {unread_bytes} bytes wait in its socket, and too many descriptors are under way"
            self._leave(self.peers[number], reason)

    def _lose(self, peer: Peer) -> None:
        """The connection has ended, or there is something to read, which ends it."""
        self._leave(peer, "spoke" if peer.has_spoken else "left")

    def _leave(self, peer: Peer, reason: str) -> None:
        if self.peers.pop(peer.peer, None) is None:
            return
        self._stuck.pop(peer.peer, None)
        self._loop.remove(peer.socket)
        peer.socket.close()
        # Messages that carry its eventfds may still wait in somebody's outbox.
        self.departed.append(peer)
        self._eventfds -= len(peer.eventfds)
        peer.unblock()
        self._on_leave(peer, reason)
        if told := self._server.leave(peer.peer):
            gone = self._leaves_told.lay_out([told[0].message])
            self._news.append(([number for number, _ in told], [gone]))
        if not self._telling:
            # Not at once: others may have left at the same moment, and who stays is told of all together.
            self._loop.at(time.monotonic_ns(), self._tell_news)

    def _release_departed(self) -> None:
        """Close the eventfds that nobody waits for any more: who is stuck was told of all that left before."""
        if self.departed and not (self._telling or self._news or self._retain_departed):
            left = self._released + len(self.departed)
            until = min((self.peers[number].told_until for number in self._stuck), default=left)
            self._close_departed(until - self._released)

    def _close_departed(self, count: int) -> None:
        for peer in self.departed[:count]:
            peer.close_eventfds()
        del self.departed[:count]
        self._released += count

    def unblock(self) -> None:
        """Make every eventfd non-blocking again, for everyone who holds it.

        The flag belongs to the description that all share. A real QEMU clears it on each that it receives and
        sets it again on those that it keeps: one that it has no vector for would block whoever rings it when its
        counter is full (io/channel-socket.c, qio_channel_socket_copy_fds).
        """
        for peer in (*self.peers.values(), *self.departed):
            peer.unblock()

    @property
    def is_unread(self) -> bool:
        """Whether anybody has not read everything yet: it waits here, or in his socket."""
        return bool(self._stuck) or any(peer.unread_bytes for peer in self.peers.values())

    def tell(self, peer: int, message: Message[int]) -> bool:
        """Say something out of turn to one peer; False when it is not there. What it makes of it is its business."""
        told = self.peers.get(peer)
        if told is None or not told.outbox.put(message):
            return False
        self._flush(told)
        return True

    def retire(self) -> list[Peer]:
        """Disconnect everybody and listen no more; the peers, whose eventfds stay open, are the caller's."""
        self._disconnect_all()
        retired, self.departed = self.departed, []
        self.close()
        return retired

    def close(self) -> None:
        for arrival in list(self._waiting.values()):
            self._dismiss(arrival)
        self._disconnect_all()
        self._close_departed(len(self.departed))
        if self._listener.fileno() >= 0:
            self._loop.remove(self._listener)
        self._listener.close()

    def _disconnect_all(self) -> None:
        for peer in self.peers.values():
            self._loop.remove(peer.socket)
            peer.socket.close()
            self.departed.append(peer)
        self.peers.clear()
        self._stuck.clear()

    def __enter__(self) -> IvshmemServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
