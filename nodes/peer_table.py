"""The peers that a machine knows, and the line on which it rings each of their vectors.

A machine that gets every message of its server has a `PeerTable`. Machines of one process with the same server share
its announcements (`Announcements`); each has an `AnnouncedPeers`, which stores only how many of them it has received.
65,536 machines that know each other then cost memory in proportion to their number, not to its square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from nodes.errors import LocalProtocolError

Line = int
"""The number that the engine signals: a file descriptor in a worker process, any number elsewhere."""


def _keep(line: Line) -> None:
    """Release nothing: the lines are plain numbers, or belong to another owner."""


class PeerTable:
    """The connected vectors of all peers of one machine, the machine itself included.

    Args:
        release: called once with each line that leaves the table, as when its peer leaves.
    """

    __slots__ = ("_lines", "_release")

    def __init__(self, release: Callable[[Line], object] = _keep) -> None:
        self._release = release
        self._lines: dict[int, list[Line | None]] = {}

    def connect(self, peer: int, vector: int, line: Line) -> None:
        """Add a vector. A server announces the vectors of a peer in ascending order (ivshmem-spec, "Messages")."""
        lines = self._lines.setdefault(peer, [])
        while len(lines) <= vector:
            lines.append(None)
        before, lines[vector] = lines[vector], line
        if before is not None:
            self._release(before)

    def connect_next(self, peers: Sequence[int], lines: Sequence[Line]) -> None:
        """Add the next vector of each of these peers; one that is there several times gets several."""
        known = self._lines
        for peer, line in zip(peers, lines, strict=True):
            if peer in known:
                known[peer].append(line)
            else:
                known[peer] = [line]

    def disconnect(self, peer: int) -> None:
        """Remove a peer; one that is not in the table changes nothing. Costs the vectors of that peer."""
        for line in self._lines.pop(peer, ()):
            if line is not None:
                self._release(line)

    def clear(self) -> None:
        """Remove all peers."""
        for peer in list(self):
            self.disconnect(peer)

    def catch_up(self, end: int | None = None) -> bool:
        """As of `AnnouncedPeers`; this table gets every message, so there is never news."""
        return False

    def line(self, peer: int, vector: int) -> Line | None:
        """The line of a vector, or None when that vector is not connected."""
        lines = self._lines.get(peer, ())
        return lines[vector] if 0 <= vector < len(lines) else None

    def vectors(self, peer: int) -> int:
        """How many vectors of a peer are connected; 0 for a peer that is not in the table."""
        return len(self._lines.get(peer, ()))

    def __iter__(self) -> Iterator[int]:
        """The IDs of all peers, in the order of their announcement."""
        return iter(self._lines)


class _Stay:
    """One peer between its announcement and its leave, as positions in the order of all announcements."""

    __slots__ = ("joined_at", "left_at", "lines", "peer")

    def __init__(self, peer: int, lines: tuple[Line, ...], joined_at: int) -> None:
        self.peer, self.lines, self.joined_at = peer, lines, joined_at
        self.left_at: int | None = None


class Announcements:
    """The joins and leaves of one server, in its order, kept once for all machines that hear them."""

    def __init__(self) -> None:
        self.end = 0
        """How many announcements there are."""
        self._stays: list[_Stay] = []
        self._by_peer: dict[int, list[_Stay]] = {}

    def join(self, peer: int, lines: Sequence[Line]) -> None:
        """The server admits a peer with these vectors."""
        stay = _Stay(peer, tuple(lines), self.end)
        self._stays.append(stay)
        self._by_peer.setdefault(peer, []).append(stay)
        self.end += 1

    def leave(self, peer: int) -> None:
        """The server announces that a peer has left.

        Raises:
            LocalProtocolError: there is no such peer.
        """
        stay = self._newest(peer)
        if stay is None or stay.left_at is not None:
            raise LocalProtocolError(f"peer {peer} cannot leave: it is not connected")
        stay.left_at = self.end
        self.end += 1

    def stays(self, peer: int) -> Sequence[_Stay]:
        """All stays under one ID, the first one first: more than one only where a server reuses IDs."""
        return self._by_peer.get(peer, ())

    def _newest(self, peer: int) -> _Stay | None:
        return self._by_peer[peer][-1] if peer in self._by_peer else None

    def __iter__(self) -> Iterator[_Stay]:
        return iter(self._stays)


class AnnouncedPeers(PeerTable):
    """The peers of one machine: the announcements of its server that it has received so far.

    A newcomer hears, in the order of their joins, the peers that are present when it joins, then itself, then what
    is announced later (the order of dialect v0). So two positions say what it knows: where it joined, and the last
    announcement it has heard.

    Args:
        announcements: what the server announces.
        vectors: how many vectors of each peer this machine has room for.

    Create it, or call `join`, right before the machine's own `Announcements.join`. `connect` and `disconnect` follow
    the server message by message; `catch_up` hears everything at once.
    """

    __slots__ = ("_announcements", "_heard_at", "_heard_vectors", "_joined_at", "_room")

    def __init__(self, announcements: Announcements, vectors: int) -> None:
        super().__init__()
        self._announcements = announcements
        self._room = vectors
        self._joined_at = announcements.end
        self._heard_at = -1
        self._heard_vectors = 0  # of the announcement at that position

    def connect(self, peer: int, vector: int, line: Line) -> None:
        """Hear the next vector.

        Raises:
            LocalProtocolError: the announcements have another one here.
        """
        for stay in self._announcements.stays(peer):
            if stay.joined_at >= self._heard_at and stay.lines[vector : vector + 1] == (line,):
                self._heard_at, self._heard_vectors = stay.joined_at, vector + 1
                return
        raise LocalProtocolError(f"peer {peer}, vector {vector}, line {line} is not what was announced next")

    def connect_next(self, peers: Sequence[int], lines: Sequence[Line]) -> None:
        """Hear the next vectors, as `connect`."""
        for peer, line in zip(peers, lines, strict=True):
            self.connect(peer, self.vectors(peer), line)

    def disconnect(self, peer: int) -> None:
        """Hear that a peer has left.

        Raises:
            LocalProtocolError: that was not announced, or has been heard before.
        """
        for stay in self._announcements.stays(peer):
            if stay.left_at is not None and stay.left_at > max(self._heard_at, self._joined_at):
                self._heard_at = stay.left_at
                return
        raise LocalProtocolError(f"no leave of peer {peer} was announced that this machine has not heard")

    def clear(self) -> None:
        """Know no peer any more; what was announced stays, for the other machines."""
        self._heard_at, self._heard_vectors = -1, 0

    def join(self) -> None:
        """The machine joins now: what was announced before it is its greeting. Its own `Announcements.join` follows."""
        self._joined_at = self._announcements.end

    def catch_up(self, end: int | None = None) -> bool:
        """Hear the first ``end`` announcements, by default all, at a cost that does not depend on the number of peers.

        Returns:
            Whether there was news.
        """
        last = (self._announcements.end if end is None else end) - 1
        news = self._heard_at < last or self._heard_vectors < self._room
        self._heard_at, self._heard_vectors = last, self._room
        return news

    def line(self, peer: int, vector: int) -> Line | None:
        lines = self._known(peer)
        return lines[vector] if 0 <= vector < len(lines) else None

    def vectors(self, peer: int) -> int:
        return len(self._known(peer))

    def __iter__(self) -> Iterator[int]:
        return (stay.peer for stay in self._announcements if self._heard(stay))

    def _known(self, peer: int) -> Sequence[Line]:
        for stay in self._announcements.stays(peer):
            if heard := self._heard(stay):
                return stay.lines[:heard]
        return ()

    def _heard(self, stay: _Stay) -> int:
        """How many vectors of a stay this machine can ring now."""
        if stay.left_at is not None and stay.left_at <= max(self._heard_at, self._joined_at):
            return 0
        if stay.joined_at > self._heard_at:
            return 0
        room = self._room if stay.joined_at < self._heard_at else min(self._room, self._heard_vectors)
        return min(room, len(stay.lines))
