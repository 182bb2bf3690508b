"""The ivshmem server: its clients, their eventfds, and the messages to each client.

``nodes.wire.server`` decides what each client is told; this module sends it. A message for many clients is laid out
once, and waits for each of them as a reference to that. A client that does not read harms no other client: its
messages wait in its outbox, and when that is full, the server disconnects it and announces that it left. A client never
sends anything: a byte from it, or the end of its connection, means that it has left.

The kernel counts the descriptors that a user has sent and that no process has received yet, and lets a user without
privileges have as many as a process may open (unix(7), ETOOMANYREFS). Therefore each socket takes a small part of them,
and when no client can be sent anything any more, the server disconnects the one with the most unread bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nodes.errors import HostError, LocalProtocolError
from nodes.wire.protocol import V0, Dialect, Message
from nodes.wire.server import Server, VectorAnnouncement
from nodes.wire.v2.protocol import DomainNumbers
from nodes.wire.v2.server import FramedServer
from sim.kernel.closeable import Closeable
from sim.kernel.eventfd import EventFd
from sim.kernel.loop import Loop
from sim.kernel.memory import made_smaller
from sim.kernel.mmsg import Batch
from sim.kernel.sections import StateTable
from sim.kernel.time_slice import ShortTimeSlice
from sim.wire.admission import Admission, AdmissionRules
from sim.wire.announcements import Announcements
from sim.wire.clients import Dismissal, JoinedClient, PendingClient
from sim.wire.listener import Listener

RETRY_NS = 2_000_000
STALL_NS = 1_000_000_000
RELEASE_SHARE = 8
OUTBOX_SPARE = 4096
GREETING_MESSAGES = 3
MANY = 32  # receivers, or messages for one of them


class IvshmemServer(Closeable):
    """A server on a path, or on a socket that listens already, for one region of memory.

    ``on_arrival`` decides about each client that connects: it calls ``join`` or ``join_all``, at once or later. By
    default all waiting clients join at once with ``vectors`` eventfds. ``on_join`` and ``on_leave`` get the client,
    ``on_refuse`` the refused client and the reason: the ``rules``, a lack of IDs or descriptors, or memory made
    smaller. ``on_pause`` is called when accepting pauses for lack of descriptors.
    With ``retain_departed`` the eventfds of peers that have left stay open, in ``departed``, so that what no client
    took from them can be counted. A context manager: leaving it disconnects all clients and removes the socket.

    With ``numbers`` it is a server of ivshmem v2: ``dialect``, ``first_peer`` and ``reuse_peers`` mean nothing then.
    Before the others hear of a leave, the State Table's entry of the peer is 0.
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
        rules: AdmissionRules = AdmissionRules(),  # noqa: B008
        on_arrival: Callable[[PendingClient], None] | None = None,
        on_join: Callable[[JoinedClient], None] = lambda peer: None,
        on_leave: Callable[[JoinedClient, str], None] = lambda peer, reason: None,
        on_refuse: Callable[[PendingClient, str], None] = lambda arrival, reason: None,
        on_pause: Callable[[str], None] = lambda reason: None,
        retain_departed: bool = False,
        numbers: DomainNumbers | None = None,
    ) -> None:
        self._loop, self._vectors = loop, vectors
        self._short_slice = ShortTimeSlice(loop)  # while each message may wake a process
        self._server: Server[int]
        self._states: StateTable | None = None
        if numbers is None:
            self._server = Server(memory, dialect=dialect, first_peer=first_peer, reuse_peers=reuse_peers)
        else:
            self._server = FramedServer(memory, numbers)
            self._states = StateTable(memory, numbers.max_peers)
        self._memory, self._memory_bytes = memory, os.fstat(memory).st_size
        self.peers: dict[int, JoinedClient] = {}
        self.departed: list[JoinedClient] = []
        self._released = 0  # how many departed ones are gone from the list
        self._retain_departed = retain_departed
        self.eventfd_count = 0
        """How many eventfds all connected peers have together."""
        self._changes = 0  # leaves, and peers that are stuck no more, since eventfds were released
        self._announcements = Announcements(self.peers, self._server.dialect)
        self._telling = self._announces_soon = False
        self.sent = 0  # messages, to all clients
        self._stall: tuple[int, int] | None = None  # how many had been sent when throttled, and since when so many
        self._on_arrival = on_arrival
        self._on_join, self._on_leave = on_join, on_leave
        listener = path if isinstance(path, Listener) else Listener(path)
        self.path = listener.path
        self._admission = Admission(
            loop,
            listener,
            rules,
            connected=lambda: len(self.peers),
            on_arrivals=self._arrive,
            on_refuse=on_refuse,
            on_pause=on_pause,
        )

    # Clients that connect

    def _arrive(self, arrivals: list[PendingClient]) -> None:
        if self._on_arrival is not None:
            for arrival in arrivals:
                self._on_arrival(arrival)
            return
        with contextlib.suppress(HostError):  # ``on_refuse`` was told; the others have joined
            self.join_all([(arrival, self._vectors) for arrival in arrivals])

    def join(self, arrival: PendingClient, vectors: int) -> JoinedClient | None:
        """Make a client a peer with ``vectors`` eventfds, and announce it.

        Returns None when it has left already.

        Raises:
            HostError: there are no descriptors or no IDs for it; it is disconnected.
        """
        return self.join_all([(arrival, vectors)])[0]

    def join_all(self, arrivals: Iterable[tuple[PendingClient, int]]) -> list[JoinedClient | None]:
        """Join several clients: each is sent the same as by one ``join`` after the other, but together.

        Raises ``HostError`` if one of them could not join; the others have joined.
        """
        joined: list[JoinedClient | None] = []
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
            if isinstance(said, VectorAnnouncement):
                self._announcements.announce_vectors(said.to, said.peers)
            else:
                self._announcements.tell(said.peer, said.message)
        self._announce()
        if failure is not None:
            raise failure
        return joined

    def _enter(self, arrival: PendingClient, vectors: int) -> JoinedClient | None:
        if not self._admission.take(arrival):
            return None
        eventfds: list[EventFd] = []
        try:
            if smaller := made_smaller(self._memory, self._memory_bytes):
                raise LocalProtocolError(smaller)
            for _ in range(vectors):
                eventfds.append(EventFd.create())
            number = self._server.enter([eventfd.descriptor for eventfd in eventfds])
        except (OSError, LocalProtocolError) as error:
            for eventfd in eventfds:
                eventfd.close()
            reason = f"no further peer with {vectors} eventfds can join: {error}"
            self._admission.refuse(arrival, reason)
            raise HostError(reason) from error
        peer = JoinedClient(number, arrival, eventfds, self._announcements.lay_out(self._server.peers[number]))
        peer.told_until = self._released + len(self.departed)
        self._announcements.joins(peer)
        self.peers[number] = peer
        self.eventfd_count += vectors
        self._loop.add(peer.socket, lambda: self._lose(peer))
        return peer

    # Messages to clients

    def _announce_soon(self) -> None:
        """Announce once for all changes in this turn of the loop: many peers may leave at the same moment."""
        if not (self._announces_soon or self._telling):
            self._announces_soon = True
            self._loop.at(time.monotonic_ns(), self._announce)

    def _announce(self) -> None:
        """Queue and send all announcements. A peer that cannot be sent to leaves, and that is announced next."""
        self._announces_soon = False
        if self._telling:
            return
        self._telling = True
        try:
            while self._announcements:
                touched: dict[int, JoinedClient] = {}
                while self._announcements:
                    receivers, said = self._announcements.take()
                    for peer in receivers:
                        # A peer that takes no more for now is tried again when there is room.
                        if self._queue(peer, said) and not peer.stuck_by:
                            touched[peer.peer] = peer
                for peer, missed in self._announcements.all_missed():
                    self._put(peer, missed)
                if len(touched) >= MANY:
                    self._short_slice.begin()
                for peer in touched.values():
                    self._flush(peer)
        finally:
            self._telling = False
        self._release_departed()

    def _queue(self, peer: JoinedClient, said: Message[int] | list[Batch]) -> bool:
        """Put messages into a peer's outbox; False when it is full, which ends the connection."""
        return (not peer.stuck_by or self._catch_up(peer)) and self._put(peer, said)

    def _catch_up(self, peer: JoinedClient) -> bool:
        return self._put(peer, self._announcements.missed(peer))

    def _put(self, peer: JoinedClient, said: Message[int] | list[Batch]) -> bool:
        outbox = peer.outbox
        # Room for the greeting of a client that joins now, and for the joins and leaves of others.
        outbox.limit = 2 * (GREETING_MESSAGES + self.eventfd_count) + OUTBOX_SPARE
        if outbox.put(said) if isinstance(said, Message) else all(map(outbox.put_batch, said)):
            return True
        self._leave(peer, f"does not read: {len(outbox)} messages wait for it")
        return False

    def _flush(self, peer: JoinedClient) -> None:
        if self.peers.get(peer.peer) is not peer:
            return
        if (waited := len(peer.outbox)) >= MANY:
            self._short_slice.begin()
        try:
            done = peer.outbox.flush()
            if done and peer.stuck_by and self._catch_up(peer):
                waited += len(peer.outbox)
                done = peer.outbox.flush()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                self._lose(peer)
            else:
                self._leave(peer, error.strerror or "connection broken")
            return
        self.sent += waited - len(peer.outbox)
        if done:
            peer.told_until = self._released + len(self.departed)
            if peer.stuck_by:
                self._announcements.is_ready(peer)
                self._changes += 1
                self._loop.add(peer.socket, lambda: self._lose(peer))
                self._announce_soon()  # what it waited for may be released
            return
        cause = "throttled" if peer.outbox.throttled else "full"
        if peer.stuck_by == cause:
            return
        self._announcements.sticks(peer, cause)
        if cause == "full":
            self._loop.add(peer.socket, lambda: self._lose(peer), writable=lambda: self._flush(peer))
            return
        # There may be room in the socket, so epoll would report that again and again.
        self._loop.add(peer.socket, lambda: self._lose(peer))
        if self._stall is None:
            now_ns = time.monotonic_ns()
            self._stall = self.sent, now_ns
            self._loop.at(now_ns + RETRY_NS, self._retry)

    def _retry(self) -> None:
        """Try again after too many descriptors were in flight, which concerns all clients or none."""
        stuck = self._announcements.stuck
        for peer in [peer for peer in stuck.values() if peer.stuck_by == "throttled"]:
            self._announcements.sticks(peer, "retried")  # it is the last one to be tried the next time
            self._flush(peer)
            if peer.stuck_by == "throttled":
                break
        if self._stall is None or all(peer.stuck_by != "throttled" for peer in stuck.values()):
            self._stall = None
            return
        now_ns, (sent, since_ns) = time.monotonic_ns(), self._stall
        if self.sent != sent:
            self._stall = self.sent, now_ns
        elif now_ns - since_ns >= STALL_NS:
            self._stall = sent, now_ns
            self._disconnect_slowest_reader()
        self._loop.at(now_ns + RETRY_NS, self._retry)

    def _disconnect_slowest_reader(self) -> None:
        """Disconnect the peer with the most unread bytes: no peer can be sent anything, and readers have read all."""
        unread_bytes, number = max((peer.unread_bytes, number) for number, peer in self.peers.items())
        if unread_bytes:  # otherwise the descriptors in flight are another program's
            reason = f"does not read: {unread_bytes} bytes wait in its socket, and too many descriptors are in flight"
            self._leave(self.peers[number], reason)

    def _lose(self, peer: JoinedClient) -> None:
        """Drop a client: its connection has ended, or it has sent data, which ends the connection."""
        self._leave(peer, "spoke" if peer.has_spoken else "left")

    def _leave(self, peer: JoinedClient, reason: str) -> None:
        if self.peers.pop(peer.peer, None) is None:
            return
        peer.has_left = True
        self._loop.remove(peer.socket)
        peer.socket.close()
        # Messages with its eventfds may still wait in outboxes.
        self.departed.append(peer)
        self.eventfd_count -= len(peer.eventfds)
        self._changes += 1
        peer.unblock()
        if self._states is not None:
            self._states.clear(peer.peer)
        self._on_leave(peer, reason)
        if (message := self._server.forget(peer.peer)) is not None:
            self._announcements.leaves(peer, message)
        self._announce_soon()

    def _release_departed(self) -> None:
        """Close the eventfds of departed peers that are in no message that waits."""
        if self._retain_departed or self._telling or self._announcements:
            return
        if self.departed and RELEASE_SHARE * self._changes >= len(self._announcements.stuck):
            self._changes = 0
            left = self._released + len(self.departed)
            until = min((peer.told_until for peer in self._announcements.stuck.values()), default=left)
            self._close_departed(until - self._released)

    def _close_departed(self, count: int) -> None:
        for peer in self.departed[:count]:
            peer.close_eventfds()
        del self.departed[:count]
        self._released += count

    def unblock(self) -> None:
        """Make every eventfd non-blocking again, for all processes that hold it.

        The flag belongs to the file description, which all share. A real QEMU clears it on each eventfd that it
        receives and sets it again on those that it keeps. An eventfd for which it has no vector would then block the
        peer that rings it when its counter is full (io/channel-socket.c, qio_channel_socket_copy_fds).
        """
        for peer in (*self.peers.values(), *self.departed):
            peer.unblock()

    @property
    def is_waited_for(self) -> bool:
        """Whether messages wait here for any peer."""
        return bool(self._announcements or self._announcements.stuck)

    @property
    def is_unread(self) -> bool:
        """Whether messages wait for any peer, here or in its socket."""
        return bool(self._announcements.stuck) or any(peer.unread_bytes for peer in self.peers.values())

    def garble(self, peer: int, kind: str) -> bool:
        """Send one peer a malformed message (`Server.malformed`); False when it is not connected, or has no room."""
        if (told := self.peers.get(peer)) is None or not self._queue(told, self._server.malformed(kind, peer)):
            return False
        self._flush(told)
        return True

    def dismiss(self, number: int) -> Dismissal | None:
        """Disconnect a peer, and tell the others that it has left; None if it is not connected."""
        if (peer := self.peers.get(number)) is None:
            return None
        self._leave(peer, "left")
        return Dismissal(self.peers.values(), lambda: not self._announcements)

    def retire(self) -> list[JoinedClient]:
        """Disconnect all clients and stop listening; the caller owns the peers, whose eventfds stay open."""
        self._disconnect_all()
        retired, self.departed = self.departed, []
        self.close()
        return retired

    def close(self) -> None:
        self._disconnect_all()
        self._close_departed(len(self.departed))
        self._short_slice.end()
        self._admission.close()
        if self._states is not None:
            self._states.close()
            self._states = None

    def _disconnect_all(self) -> None:
        for peer in self.peers.values():
            self._loop.remove(peer.socket)
            peer.socket.close()
            self.departed.append(peer)
        self.peers.clear()
        self._announcements.stuck.clear()
