"""nodes.wire.server and nodes.wire.client together: whatever joins and leaves, however it is cut, all see the same."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nodes.wire.client import Assigned, Client, Ignored, MemoryShared, PeerLeft, VectorConnected
from nodes.wire.protocol import V0, V0_SHM_LAST
from nodes.wire.server import Server
from tests.fabric import Wire

VECTORS_MAX = 3


class View:
    """One client and what it believes, fed from a stream that is cut anywhere."""

    def __init__(self):
        self.client = Client(VECTORS_MAX)
        self.wire = Wire()
        self.lines = {}
        self.events = []

    def read(self, size):
        for event in self.client.receive(*self.wire.read(size)):
            self.take(event)

    def take(self, event):
        self.events.append(event)
        match event:
            case VectorConnected(peer, vector, descriptor):
                assert (peer, vector) not in self.lines
                self.lines[peer, vector] = descriptor
            case PeerLeft(peer):
                self.lines = {at: line for at, line in self.lines.items() if at[0] != peer}
            case Ignored():
                # Only this is allowed: a peer without vectors leaves, of which nobody had heard.
                assert "was never connected" in event.reason


class Pair(RuleBasedStateMachine):
    """Any sequence of joins, leaves and reads."""

    dialect = V0

    def __init__(self):
        super().__init__()
        self.server = Server("memory", dialect=self.dialect)
        self.views = {}
        self.eventfds = {}

    def deliver(self, messages):
        for to, message in messages:
            self.views[to].wire.send(message)

    @rule(vectors=st.integers(0, VECTORS_MAX))
    def join(self, vectors):
        peer = self.server.next_peer
        eventfds = [f"{peer}.{vector}" for vector in range(vectors)]
        self.views[peer] = View()
        self.eventfds[peer] = eventfds
        self.deliver(self.server.join(eventfds)[1])

    @rule(data=st.data())
    def leave(self, data):
        if self.views:
            peer = data.draw(st.sampled_from(sorted(self.views)))
            del self.views[peer], self.eventfds[peer]
            self.deliver(self.server.leave(peer))

    @rule(data=st.data(), size=st.integers(1, 40))
    def read(self, data, size):
        if self.views:
            self.views[data.draw(st.sampled_from(sorted(self.views)))].read(size)

    @invariant()
    def what_is_known_was_true_once(self):
        for view in self.views.values():
            assert all(line == f"{peer}.{vector}" for (peer, vector), line in view.lines.items())

    def teardown(self):
        truth = {(peer, v): name for peer, names in self.eventfds.items() for v, name in enumerate(names)}
        for peer, view in self.views.items():
            while view.wire.messages:
                view.read(64)
            assert view.lines == truth
            assert view.client.peer == peer
            assert view.client.is_set_up
            assert view.events.count(Assigned(peer)) == 1
            assert view.events.count(MemoryShared("memory")) == 1
            assert list(view.client.unclaimed()) == []


class PairShmLast(Pair):
    dialect = V0_SHM_LAST


TestPair = Pair.TestCase
TestPairShmLast = PairShmLast.TestCase


@given(st.lists(st.integers(1, 9), min_size=1), st.sampled_from([V0, V0_SHM_LAST]))
def test_a_greeting_in_pieces_of_any_size(sizes, dialect):
    server = Server("memory", dialect=dialect)
    server.join(["0.0", "0.1"])
    peer, messages = server.join(["1.0", "1.1"])
    view = View()
    for to, message in messages:
        if to == peer:
            view.wire.send(message)
    for size in itertools.cycle(sizes):
        if not view.wire.messages:
            break
        view.read(size)
    assert view.lines == {(p, v): f"{p}.{v}" for p in (0, 1) for v in (0, 1)}
    assert view.client.is_set_up
