"""The doorbells of one machine: how a ring finds its line, and how each one is counted.

A doorbell has a long path and a short one, as on a host with KVM. On the long path the program's write goes to the
device, which decodes it with all its quirks and names the vector (`Doorbells.decoded`). When that is the vector that
the program asked for, the doorbell gets a short path: two look-ups and one signal, which is what an ioeventfd is to a
real device. A short path ends as soon as the device may decode otherwise: the peer leaves, memory decoding is switched
(`Doorbells.invalidate`), the device is replaced. So the short path always does what the long path would do.

The short path counts without any code of its own. It takes the line from an iterator of finite length, and the length
that is left tells how many were taken. Once in ``sample_every`` doorbells the iterator is exhausted. That doorbell
takes the time stamps and stores the count of its edge in the instrument.

An edge is one vector of one peer, as seen from this machine. Its counters are allocated on its first doorbell, or when
its peer leaves: a machine that knows thousands of peers rings few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import gcd

from nodes.bursts import Batch, Burst, LoopBatch, one_by_one
from nodes.edges import UNSAMPLED_SUPPLY, Bell, Edge, make_ring_sampled
from nodes.ledger import Ledger, NoLedger
from nodes.peer_table import Line, PeerTable

__all__ = ["Burst", "Doorbells", "Ledger", "Line", "NoLedger"]

SAMPLED_OFTEN = 32
"""One doorbell in so many has its time stamps, at most, where it pays to ask each time whether this one has."""


class Doorbells:
    """Rings the peers of one machine, and counts.

    Args:
        signal: ``signal(line, 1)`` rings a line. It raises `BlockingIOError` when the counter of the line is full.
        write: ``write(peer, vector)`` writes ``peer << 16 | vector`` to the doorbell register of the device. The device
            calls `decoded` when that reaches a connected vector.
        ledger: where counts and time stamps go.
        clock: the time in nanoseconds.
        sample_every: of so many doorbells of an edge, one gets its time stamps; 0: none.
        make_batch: ``make_batch(lines)`` prepares lines to be rung together; an engine may have a faster way than one
            ``signal`` after the other.

    The lines of the peers are in a `PeerTable`, which `replace` sets. `connect` follows a new line, `disconnect` comes
    before a peer is removed, `refresh` follows any other change.

    ``on_ignored(count)`` is called when doorbells reach no peer.
    """

    ring: Callable[..., None]
    """``ring(peer, vector=0, intended_ns=0)``, a plain function: programs call it as often as they can.

    ``intended_ns`` is when an open-loop program meant to ring; 0: the program has no schedule.
    """

    def __init__(
        self,
        signal: Callable[[Line, int], object],
        write: Callable[[int, int], object],
        ledger: Ledger,
        clock: Callable[[], int],
        *,
        sample_every: int,
        make_batch: Callable[[Sequence[Line]], Batch] | None = None,
    ) -> None:
        self._make_batch = make_batch or partial(LoopBatch, signal_all=one_by_one(signal))
        self._signal, self._write, self._ledger, self._clock = signal, write, ledger, clock
        self._peers = PeerTable()
        self._every = sample_every
        self._rows: dict[int, dict[int, Iterator[Line]]] = {}  # the short paths: peer -> vector -> supply
        self._edges: dict[int, Edge] = {}  # by doorbell value
        self._bursts: dict[int, dict[Burst, None]] = {}  # peer -> the bursts that ring it
        self._bells: dict[tuple[int, int], Callable[..., None]] = {}
        self._asked: tuple[int, int, int] | None = None  # the doorbell of `ring` that the device is decoding
        self._reached = False  # whether it has come out at a connected vector
        self._shortened = 0  # how many short paths there have been: tells a burst that one is new
        self._nowhere = 0
        self._ring_sampled = make_ring_sampled(signal, ledger, clock, sample_every)
        self.ring = self._make_ring()
        self.on_ignored: Callable[[int], object] = _nothing

    # Peers

    @property
    def has_edges(self) -> bool:
        """Whether any peer was rung, or has left: only then does `connect` change anything."""
        return bool(self._edges)

    def connect(self, peer: int, vector: int) -> None:
        """The peers have a new line. An edge that was rung before gets it; others wait for their first doorbell."""
        if (edge := self._edges.get(peer << 16 | vector)) is not None:
            self._follow(edge)

    def disconnect(self, peer: int) -> None:
        """The peer is about to be removed: nothing rings its lines from now on. Its counters stay."""
        self._rows.pop(peer, None)
        edges = [self._open(peer, vector) for vector in range(self._peers.vectors(peer))]
        for edge in edges:
            edge.lengthen()
        for burst in self._bursts.get(peer, ()):
            self._arrange(burst)
        for edge in edges:
            self._stop(edge)

    def refresh(self) -> None:
        """The peers have changed in any way. Costs the edges of this machine, however many peers there are."""
        for edge in self._edges.values():
            self._follow(edge)

    def replace(self, peers: PeerTable) -> None:
        """The machine goes on among these peers. The counters of its edges stay where they were stored."""
        self.invalidate()
        self.flush()
        self._edges.clear()
        self._peers = peers

    def invalidate(self) -> None:
        """The device may decode doorbells otherwise from now on: each of them takes the long path once more."""
        for edge in self._edges.values():
            edge.lengthen()
        self._rows.clear()
        for burst in self._all_bursts():
            self._arrange(burst)

    # Counts

    def refuse_nowhere(self, count: int) -> None:
        """Count doorbells that a program wrote to the register itself and that reached no peer: rung, and refused."""
        if count:
            self._nowhere += count
            self.on_ignored(count)

    def flush(self) -> None:
        """Bring the instrument's counts up to this moment."""
        for burst in self._all_bursts():
            burst.settle()
        for edge in self._edges.values():
            edge.settle()
            self._ledger.store_edge(edge.index, edge.rung, edge.refused)
        self._ledger.store_nowhere(self._nowhere)

    # Edges

    def _open(self, peer: int, vector: int) -> Edge:
        """The edge, with counters from now on if it had none."""
        edge = self._edges.get(peer << 16 | vector)
        if edge is None:
            edge = Edge(peer, vector, self._ledger.open_edge(peer, vector))
            self._edges[peer << 16 | vector] = edge
        return edge

    def _start(self, edge: Edge, line: Line) -> None:
        """Give an edge a line, and its first supply."""
        edge.settle()
        edge.line = line
        # Edges start out of step, so that a program that rings them in turn is not always sampled on the same one.
        phase = (7 * edge.peer + edge.vector + 1) % self._every if self._every else UNSAMPLED_SUPPLY
        edge.grant(line, phase)

    def _follow(self, edge: Edge) -> None:
        """Give an edge the line that the peers have for it now."""
        line = self._peers.line(edge.peer, edge.vector)
        if line == edge.line:
            return
        if self._is_short(edge):
            del edge.row[edge.vector]
            edge.lengthen()
            for burst in self._bursts.get(edge.peer, ()):
                self._arrange(burst)
        self._stop(edge)
        if line is not None:
            self._start(edge, line)

    def _stop(self, edge: Edge) -> None:
        """Take the line from an edge that has no short path any more."""
        edge.settle()
        edge.line, edge.supply, edge.granted = None, iter(()), 0
        self._ledger.store_edge(edge.index, edge.rung, edge.refused)

    def _shorten(self, edge: Edge) -> None:
        """From now on `ring` finds the supply of this edge."""
        edge.row = self._rows.setdefault(edge.peer, {})
        edge.row[edge.vector] = edge.supply
        self._shortened += 1

    def _is_short(self, edge: Edge) -> bool:
        return edge.row is self._rows.get(edge.peer)

    def _short_edge(self, peer: int, vector: int) -> Edge | None:
        """The edge, if it has a short path."""
        edge = self._edges.get(peer << 16 | vector)
        # A vector beyond 65535 has the value of another peer's.
        if edge is None or (edge.peer, edge.vector) != (peer, vector) or not self._is_short(edge):
            return None
        return edge

    # Rings

    def _make_ring(self) -> Callable[..., None]:
        # A closure, two plain look-ups, no arithmetic on the 32-bit doorbell value: measured, each of these is a tenth
        # of what the write itself costs. Few variables of the closure: a call copies them all, and with very many
        # machines each has to be fetched from memory.
        rows, signal = self._rows, self._signal

        def ring(peer: int, vector: int = 0, intended_ns: int = 0) -> None:
            try:
                signal(next(rows[peer][vector]), 1)
            except StopIteration:
                ring_sampled = self._ring_sampled  # called in one step, it is looked for in the class first
                ring_sampled(self._edges[peer << 16 | vector], intended_ns)
            except BlockingIOError:
                self._refuse(self._edges[peer << 16 | vector])
            except KeyError:
                self._ring_by_device(peer, vector, intended_ns)

        def ring_sampled_often(peer: int, vector: int = 0, intended_ns: int = 0) -> None:
            # The same. A StopIteration costs more than half a doorbell, and here it would come often: this asks each
            # time instead, which costs one part in fifty.
            try:
                if (line := next(rows[peer][vector], None)) is not None:
                    signal(line, 1)
                    return
            except BlockingIOError:
                self._refuse(self._edges[peer << 16 | vector])
            except KeyError:
                self._ring_by_device(peer, vector, intended_ns)
            else:
                ring_sampled = self._ring_sampled
                ring_sampled(self._edges[peer << 16 | vector], intended_ns)

        return ring_sampled_often if 0 < self._every <= SAMPLED_OFTEN else ring

    def _refuse(self, edge: Edge) -> None:
        edge.refused += 1

    def _ring_by_device(self, peer: int, vector: int, intended_ns: int) -> None:
        """A doorbell without a short path: the device decodes it."""
        self._asked, self._reached = (peer, vector, intended_ns), False
        try:
            self._write(peer, vector)
        finally:
            self._asked = None
        if self._reached:
            return
        self.on_ignored(1)
        edge = self._edges.get(peer << 16 | vector)
        if edge is None:
            self._nowhere += 1
        else:
            edge.rung += 1
            edge.refused += 1

    def decoded(self, peer: int, vector: int) -> None:
        """The device has decoded a doorbell, and this is the connected vector that it is for: ring it."""
        edge = self._open(peer, vector)
        if edge.line is None:
            line = self._peers.line(peer, vector)
            assert line is not None, f"peer {peer}, vector {vector} is not connected"
            self._start(edge, line)
        intended_ns = 0
        if self._asked is not None:
            self._reached = True
            intended_ns = self._asked[2]
            if self._asked[:2] == (peer, vector):
                self._shorten(edge)
        try:
            self._signal(next(edge.supply), 1)
        except StopIteration:
            self._ring_sampled(edge, intended_ns)
        except BlockingIOError:
            self._refuse(edge)

    # Bells

    def bell(self, peer: int, vector: int = 0) -> Callable[..., None]:
        """The function ``bell(intended_ns=0)``, which rings one doorbell as `ring` does, and looks it up only once.

        It stays valid: a doorbell after its peer has left is refused, one after the peer has returned reaches it.
        """
        bell = self._bells.get((peer, vector))
        if bell is None:
            self._bells[peer, vector] = bell = Bell(peer, vector, self._signal, self._ring_bell).ring
        return bell

    def _ring_bell(self, bell: Bell, intended_ns: int) -> None:
        """The supply of a bell is exhausted: this doorbell is sampled, or the bell has no short path."""
        if bell.edge is not None:
            self._ring_sampled(bell.edge, intended_ns)
            return
        self.ring(bell.peer, bell.vector, intended_ns)
        edge = self._short_edge(bell.peer, bell.vector)
        if edge is not None:
            bell.edge, bell.supply, edge.bell = edge, edge.supply, bell

    # Bursts

    def burst(self, doorbells: Sequence[tuple[int, int]]) -> Burst:
        """Prepare (peer, vector) pairs to be rung together; pairs without a short path come last."""
        burst = Burst(doorbells, self._make_batch(()))
        self._arrange(burst)
        burst.ring = self._make_burst_ring(burst)
        for peer, _ in burst.doorbells:
            self._bursts.setdefault(peer, {})[burst] = None
        return burst

    def release(self, burst: Burst) -> None:
        """Forget a burst; what it rang stays counted. It must not be rung again."""
        burst.settle()
        burst.batch.close()
        for peer in {peer for peer, _ in burst.doorbells}:
            bursts = self._bursts[peer]
            del bursts[burst]
            if not bursts:
                del self._bursts[peer]

    def _all_bursts(self) -> list[Burst]:
        return list({burst: None for bursts in self._bursts.values() for burst in bursts})

    def _arrange(self, burst: Burst) -> None:
        """Sort the doorbells of a burst into those with a short path and the others."""
        burst.settle()
        edges, others = [], []
        for peer, vector in burst.doorbells:
            edge = self._short_edge(peer, vector)
            if edge is not None:
                edges.append(edge)
            else:
                others.append((peer, vector))
        # In place: a ring of this burst may be under way.
        burst.edges[:], burst.others[:] = edges, others
        burst.batch.close()
        burst.batch = self._make_batch([edge.line for edge in edges if edge.line is not None])
        # Out of step with the burst, so that each of its edges has its turn to be sampled and stored.
        burst.every = self._every or UNSAMPLED_SUPPLY
        while gcd(burst.every, len(edges) or 1) != 1:
            burst.every += 1

    def _make_burst_ring(self, burst: Burst) -> Callable[[], None]:
        edges, others, ring = burst.edges, burst.others, self.ring
        store, sample, clock = self._ledger.store_edge, self._ledger.sample, self._clock
        is_sampled = bool(self._every)
        due = burst.every  # doorbells until the next one is sampled

        def sample_edge(edge: Edge) -> None:
            # The next flush adds the doorbells of other bursts on this edge.
            rung = edge.rung + burst.rung
            if is_sampled:
                sample(edge.index, rung, edge.refused, 0, clock())
            else:
                store(edge.index, rung, edge.refused)

        def ring_all() -> None:
            nonlocal due
            burst.rung += 1
            size, batch = len(edges), burst.batch
            if due > size:
                refused = batch.ring(0, size)
            elif batch.ring_from is not None and due + burst.every > size:
                # Its time stamp is the time of the system call that rings all.
                sample_edge(edges[due - 1])
                refused = batch.ring_from(due - 1)
                due += burst.every
            else:
                refused, start = [], 0
                for sampled in range(due - 1, size, burst.every):
                    refused += batch.ring(start, sampled)
                    sample_edge(edges[sampled])
                    start = sampled
                    due += burst.every
                refused += batch.ring(start, size)
            for place in refused:
                self._refuse(edges[place])
            due -= size
            if others:
                shortened = self._shortened
                for peer, vector in tuple(others):
                    ring(peer, vector)
                if self._shortened != shortened:
                    self._arrange(burst)

        return ring_all


def _nothing(_: int) -> None:
    """Called where no engine has put a function of its own."""
