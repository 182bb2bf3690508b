"""nodes.wire.server and nodes.wire.client together: whatever joins and leaves, however it is cut, all see the same."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nodes.wire.client import Assigned, Client, Ignored, MemoryShared, PeerLeft, VectorConnected
from nodes.wire.protocol import DIALECTS, LEGACY, V0, V0_SHM_LAST
from nodes.wire.server import Server
from tests.fabric import Wire

VECTORS_MAX = 3


class View:
    """One client and what it believes, fed from a stream that is cut anywhere."""

    def __init__(self, dialect=None):
        self.client = Client(VECTORS_MAX, dialect=dialect)
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
                # Only this is allowed: the leave of a peer without vectors, which was never announced.
                assert "was never connected" in event.reason


class Pair(RuleBasedStateMachine):
    """Any sequence of joins, leaves and reads."""

    dialect = V0
    """What the server speaks. Every second client knows, the others find out."""

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
        self.views[peer] = View(self.dialect if peer % 2 else None)
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
            if self.eventfds[peer]:  # without own ones, memory that comes last does not show
                assert view.client.dialect is self.dialect


class PairShmLast(Pair):
    dialect = V0_SHM_LAST


class PairLegacy(Pair):
    dialect = LEGACY


TestPair = Pair.TestCase
TestPairLegacy = PairLegacy.TestCase
TestPairShmLast = PairShmLast.TestCase


def greeting(dialect, others, vectors):
    """What a newcomer is told by a server that has so many peers with so many vectors each."""
    server = Server("memory", dialect=dialect)
    for peer in range(others):
        server.join([f"{peer}.{vector}" for vector in range(vectors)])
    newcomer, messages = server.join([f"{others}.{vector}" for vector in range(vectors)])
    return [message for to, message in messages if to == newcomer]


def read_in_pieces(messages, sizes):
    """A view that has read all of it, in pieces of these sizes, again and again."""
    view = View()
    for message in messages:
        view.wire.send(message)
    for size in itertools.cycle(sizes):
        if not view.wire.messages:
            return view
        view.read(size)
    raise AssertionError("not reached")


def check(view, dialect, others, vectors):
    assert view.lines == {(p, v): f"{p}.{v}" for p in range(others + 1) for v in range(vectors)}
    assert view.client.peers == dict.fromkeys(range(others + 1), vectors)
    assert view.events.count(MemoryShared("memory")) == 1
    assert (view.client.peer, view.client.is_set_up, view.client.dialect) == (others, True, dialect)
    assert not any(isinstance(event, Ignored) for event in view.events)


@given(
    st.lists(st.integers(1, 40), min_size=1),
    st.sampled_from([*DIALECTS.values()]),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_a_greeting_in_pieces_of_any_size(sizes, dialect, others, vectors):
    check(read_in_pieces(greeting(dialect, others, vectors), sizes), dialect, others, vectors)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
def test_the_messages_that_decide_in_every_way_to_cut_them(dialect, seed, request):
    """The first two whole, or cut at any of their 15 places: 32768 ways, or a sample; then the rest in one piece."""
    messages = greeting(dialect, 1, 1)
    ways = range(1 << 15)
    for cuts in ways if request.config.getoption("--full") else random.Random(seed).sample(ways, 4096):
        ends = [at for at in range(1, 16) if cuts >> at - 1 & 1] + [16]
        sizes = [end - begin for begin, end in itertools.pairwise([0, *ends])]
        check(read_in_pieces(messages, [*sizes, 1000]), dialect, 1, 1)
