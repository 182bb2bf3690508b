"""nodes.doorbells: every doorbell is in the ledger, whatever comes between."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nodes.bursts import LoopBatch, one_by_one
from nodes.doorbells import UNSAMPLED_SUPPLY, Doorbells
from nodes.errors import GuestError
from nodes.peer_table import PeerTable

FULL = (1 << 64) - 2


class DoorbellsSetup:
    """Counters that can be full, a ledger that remembers, and a device that decodes doorbells."""

    def __init__(self, sample_every, *, in_one_go=False):
        self.counters = {}
        self.signalled = {}
        self.limit = {}
        self.edges = {}
        self.stored = {}
        self.samples = []
        self.nowhere = 0
        self.written = []  # what took the long path
        self.aliases = {}  # what the device decodes to another vector
        self.decodes = True
        self.watch = lambda line: None  # called with each line that is signalled
        self.now_ns = 1000
        self.peers = PeerTable()
        self.doorbells = Doorbells(
            self.signal,
            self.write,
            self,
            self.clock,
            sample_every=sample_every,
            make_batch=self.batch_in_one_go if in_one_go else None,
        )
        self.doorbells.replace(self.peers)

    def batch_in_one_go(self, lines):
        """A batch that can ring its lines beginning with any of them, as one of io_uring can."""
        batch = LoopBatch(lines, one_by_one(self.signal))
        ring = batch.ring
        batch.ring_from = lambda first: [*ring(first, len(lines)), *ring(0, first)]
        return batch

    def connect(self, peer, vector, line):
        self.peers.connect(peer, vector, line)
        self.doorbells.connect(peer, vector)

    def disconnect(self, peer):
        self.doorbells.disconnect(peer)
        self.peers.disconnect(peer)

    def switch(self, *, decodes):
        self.decodes = decodes
        self.doorbells.invalidate()

    def signal(self, line, value):
        assert value == 1
        self.watch(line)
        if self.counters.get(line, 0) + value > self.limit.get(line, FULL):
            raise BlockingIOError
        self.counters[line] = self.counters.get(line, 0) + value
        self.signalled[line] = self.signalled.get(line, 0) + 1

    def write(self, peer, vector):
        if not (0 <= peer <= 0xFFFF and 0 <= vector <= 0xFFFF):
            raise GuestError(f"{peer}, {vector}")
        self.written.append((peer, vector))
        peer, vector = self.aliases.get((peer, vector), (peer, vector))
        if self.decodes and self.peers.line(peer, vector) is not None:
            self.doorbells.decoded(peer, vector)

    def clock(self):
        self.now_ns += 1
        return self.now_ns

    def open_edge(self, peer, vector):
        assert (peer, vector) not in self.edges
        self.edges[peer, vector] = len(self.edges)
        return self.edges[peer, vector]

    def store_edge(self, edge, rung, refused):
        self.stored[edge] = rung, refused

    def sample(self, edge, rung, refused, intended_ns, rung_ns):
        self.store_edge(edge, rung, refused)
        self.samples.append((*list(self.edges)[edge], intended_ns, rung_ns))

    def store_nowhere(self, rung):
        self.nowhere = rung

    def ledger(self):
        """(peer, vector) -> (rung, refused), as they stand after a flush."""
        self.doorbells.flush()
        return {at: self.stored[edge] for at, edge in self.edges.items()}


EVERY = [0, 1, 2, 3, 16, 40]


@pytest.fixture(params=EVERY, ids=lambda every: f"every{every}")
def world(request):
    return DoorbellsSetup(request.param)


def test_a_ring_is_one_signal_and_is_counted_once(world):
    world.connect(7, 2, line=72)
    for _ in range(100):
        world.doorbells.ring(7, 2)
    assert world.signalled == {72: 100}
    assert world.ledger() == {(7, 2): (100, 0)}
    assert (world.nowhere, world.written) == (0, [(7, 2)])


def test_more_rings_than_one_supply_of_ones():
    world = DoorbellsSetup(0)
    world.connect(0, 0, line=1)
    for _ in range(2 * UNSAMPLED_SUPPLY + 5):
        world.doorbells.ring(0)
    assert world.ledger() == {(0, 0): (2 * UNSAMPLED_SUPPLY + 5, 0)}
    assert world.samples == []


@pytest.mark.parametrize("every", EVERY[1:])
@pytest.mark.parametrize("edges", [[(0, 0)], [(0, 0), (0, 1), (1, 0), (5, 3)]])
def test_every_nth_doorbell_of_an_edge_is_stamped(every, edges):
    world = DoorbellsSetup(every)
    for line, (peer, vector) in enumerate(edges):
        world.connect(peer, vector, line)
    rung = {edge: [] for edge in edges}
    for at in range(5 * every):
        for peer, vector in edges:
            world.doorbells.ring(peer, vector, 10_000 + at)
            rung[peer, vector].append(10_000 + at)
    for peer, vector in edges:
        stamped = [intended for p, v, intended, _ in world.samples if (p, v) == (peer, vector)]
        assert len(stamped) == 5
        first = rung[peer, vector].index(stamped[0])
        assert first < every
        assert stamped == rung[peer, vector][first::every]
    assert all(earlier[3] < later[3] for earlier, later in itertools.pairwise(world.samples))


def test_only_a_doorbell_of_a_program_with_a_schedule_has_an_intended_time():
    world = DoorbellsSetup(1)
    world.connect(0, 0, 1)
    burst = world.doorbells.burst([(0, 0)])
    for _ in range(2):
        world.doorbells.ring(0)
        world.doorbells.ring(0, 0, 55)
        burst.ring()
    assert [intended_ns for _, _, intended_ns, _ in world.samples] == [0, 55, 0] * 2
    assert all(rung_ns > 0 for _, _, _, rung_ns in world.samples)


def test_the_stamp_and_the_count_stand_before_the_counter_is_written():
    world = DoorbellsSetup(1)
    world.connect(0, 0, 1)
    seen = []
    world.watch = lambda line: seen.append((len(world.samples), world.stored[0]))
    world.doorbells.ring(0)
    assert seen == [(1, (1, 0))]


def test_a_full_counter_refuses_and_is_counted(world):
    world.connect(1, 0, line=10)
    world.limit[10] = 3
    for _ in range(20):
        world.doorbells.ring(1)
    assert world.signalled == {10: 3}
    assert world.ledger() == {(1, 0): (20, 17)}


def test_a_ring_after_leave_is_refused_on_the_edge_it_was_for(world):
    world.connect(1, 0, line=10)
    world.doorbells.ring(1)
    world.disconnect(1)
    for _ in range(5):
        world.doorbells.ring(1)
    assert world.ledger() == {(1, 0): (6, 5)}
    assert world.nowhere == 0
    assert list(world.peers) == []
    assert world.peers.line(1, 0) is None


def test_a_ring_to_what_was_never_connected_is_counted_nowhere(world):
    world.connect(1, 0, line=10)
    world.doorbells.ring(1, 1)
    world.doorbells.ring(2)
    assert world.ledger() == {}
    assert world.nowhere == 2
    assert world.signalled == {}


def test_a_decoded_alias_is_counted_at_its_vector(world):
    world.connect(1, 0, line=10)
    world.aliases[1, 256] = (1, 0)
    world.doorbells.ring(1, 256)
    assert world.signalled == {10: 1}
    assert world.ledger() == {(1, 0): (1, 0)}
    assert world.nowhere == 0


@pytest.mark.parametrize(("peer", "vector"), [(0, 65536), (-1, 0), (65536, 0), (0, -1), (-1, 1 << 17)])
def test_a_number_out_of_range_rings_no_other_peer(world, peer, vector):
    for line, other in enumerate([(0, 0), (1, 0), (0, 1), (1, 65535), (65535, 65535)]):
        world.connect(*other, line)
    assert world.peers.line(peer, vector) is None
    for ring in (
        lambda: world.doorbells.ring(peer, vector),
        world.doorbells.bell(peer, vector),
        world.doorbells.burst([(peer, vector)]).ring,
    ):
        with pytest.raises(GuestError):
            ring()
    assert world.signalled == {}


def test_a_peer_that_returns_has_the_same_counters(world):
    world.connect(1, 0, line=10)
    world.doorbells.ring(1)
    world.disconnect(1)
    world.connect(1, 0, line=11)
    world.doorbells.ring(1)
    assert world.signalled == {10: 1, 11: 1}
    assert world.ledger() == {(1, 0): (2, 0)}


# The long path and the short one


def test_only_the_first_doorbell_of_an_edge_takes_the_long_path(world):
    for vector in range(3):
        world.connect(1, vector, line=vector)
    for _ in range(50):
        for vector in range(3):
            world.doorbells.ring(1, vector)
    assert world.written == [(1, 0), (1, 1), (1, 2)]
    assert world.signalled == {0: 50, 1: 50, 2: 50}


def test_only_the_first_ring_of_a_burst_takes_the_long_path(world):
    for vector in range(3):
        world.connect(1, vector, line=vector)
    burst = world.doorbells.burst([(1, 0), (1, 1), (1, 2), (1, 0)])
    for _ in range(50):
        burst.ring()
    assert world.written == [(1, 0), (1, 1), (1, 2)]
    assert world.signalled == {0: 100, 1: 50, 2: 50}


def test_a_decoded_alias_never_has_a_short_path(world):
    world.connect(1, 0, line=10)
    world.aliases[1, 256] = (1, 0)
    bell, burst = world.doorbells.bell(1, 256), world.doorbells.burst([(1, 256)])
    for _ in range(5):
        world.doorbells.ring(1, 256)
        bell()
        burst.ring()
    assert world.written == [(1, 256)] * 15
    assert world.signalled == {10: 15}


def test_a_device_that_does_not_decode_is_rung_by_no_path(world):
    world.connect(1, 0, line=10)
    burst = world.doorbells.burst([(1, 0)])
    world.doorbells.ring(1)
    burst.ring()
    world.switch(decodes=False)
    for _ in range(3):
        world.doorbells.ring(1)
        burst.ring()
        world.doorbells.burst([(1, 0)]).ring()
    assert world.signalled == {10: 2}
    assert world.ledger() == {(1, 0): (11, 9)}
    world.switch(decodes=True)
    before = len(world.written)
    for _ in range(3):
        world.doorbells.ring(1)
        burst.ring()
    assert world.signalled == {10: 8}
    assert world.written[before:] == [(1, 0)]


def test_a_machine_among_other_peers_counts_anew_and_rings_no_line_of_before(world):
    world.connect(1, 0, line=10)
    burst = world.doorbells.burst([(1, 0)])
    bell = world.doorbells.bell(1)
    for _ in range(2):
        burst.ring()
        bell()
    there = PeerTable()
    there.connect(1, 0, 20)
    world.doorbells.replace(there)
    assert world.stored == {0: (4, 0)}
    world.peers, world.edges, world.stored = there, {}, {}  # the ledger allocates other edges
    for _ in range(3):
        bell()
        burst.ring()
        world.doorbells.ring(1)
    assert world.signalled == {10: 4, 20: 9}
    assert world.ledger() == {(1, 0): (9, 0)}


# Bells


def test_a_bell_rings_and_counts_as_a_ring_does_in_any_mixture(world):
    world.connect(7, 2, line=72)
    bell, ring = world.doorbells.bell(7, 2), world.doorbells.ring
    assert world.doorbells.bell(7, 2) is bell
    for place in range(120):
        if place % 3:
            bell()
        else:
            ring(7, 2)
    assert world.signalled == {72: 120}
    assert world.ledger() == {(7, 2): (120, 0)}
    assert world.written == [(7, 2)]


def test_a_bell_takes_no_look_up_once_it_has_rung():
    world = DoorbellsSetup(0)
    world.connect(1, 0, line=10)
    bell = world.doorbells.bell(1)
    bell()
    world.doorbells.ring = world.doorbells._short_edge = None
    for _ in range(2 * UNSAMPLED_SUPPLY):
        bell()
    assert world.ledger() == {(1, 0): (2 * UNSAMPLED_SUPPLY + 1, 0)}


@pytest.mark.parametrize("every", EVERY[1:])
def test_every_nth_doorbell_of_a_bell_is_stamped_with_its_intended_time(every):
    world = DoorbellsSetup(every)
    world.connect(0, 0, 1)
    bell = world.doorbells.bell(0)
    for at in range(5 * every):
        bell(100 + at)
    stamped = [intended_ns for _, _, intended_ns, _ in world.samples]
    assert len(stamped) == 5
    assert stamped == list(range(stamped[0], 100 + 5 * every, every))


def test_a_bell_before_after_and_between_its_peer_is_refused(world):
    bell = world.doorbells.bell(1)
    bell()
    assert world.ledger() == {}
    assert world.nowhere == 1
    for line in (10, 11):
        world.connect(1, 0, line)
        for _ in range(3):
            bell()
        world.disconnect(1)
        for _ in range(2):
            bell()
    assert world.signalled == {10: 3, 11: 3}
    assert world.ledger() == {(1, 0): (10, 4)}


def test_a_bell_at_a_full_counter_is_refused(world):
    world.connect(1, 0, line=10)
    world.limit[10] = 3
    bell = world.doorbells.bell(1)
    for _ in range(20):
        bell()
    assert world.signalled == {10: 3}
    assert world.ledger() == {(1, 0): (20, 17)}


# Bursts


def test_a_burst_rings_its_doorbells_in_order(world):
    pairs = [(1, 0), (2, 1), (1, 1), (2, 0), (1, 0)]
    order = []
    world.watch = order.append
    for peer, vector in set(pairs):
        world.connect(peer, vector, line=10 * peer + vector)
    burst = world.doorbells.burst(pairs)
    for _ in range(7):
        burst.ring()
    assert order == [10, 21, 11, 20, 10] * 7
    assert world.ledger() == {(1, 0): (14, 0), (1, 1): (7, 0), (2, 0): (7, 0), (2, 1): (7, 0)}


@pytest.mark.parametrize("full", [0, 2, 4])
def test_a_full_counter_in_the_middle_of_a_burst_does_not_hold_up_the_rest(world, full):
    for vector in range(5):
        world.connect(1, vector, line=vector)
    world.limit[full] = 2
    burst = world.doorbells.burst([(1, vector) for vector in range(5)])
    for _ in range(20):
        burst.ring()
    assert world.signalled == {vector: 2 if vector == full else 20 for vector in range(5)}
    assert world.ledger() == {(1, vector): (20, 18 if vector == full else 0) for vector in range(5)}


def test_a_burst_whose_peer_left_rings_the_others_and_counts_the_rest_as_refused(world):
    for peer in (1, 2):
        world.connect(peer, 0, line=peer)
    burst = world.doorbells.burst([(1, 0), (2, 0), (9, 9)])
    burst.ring()
    world.disconnect(1)
    burst.ring()
    burst.ring()
    assert world.signalled == {1: 1, 2: 3}
    assert world.ledger() == {(1, 0): (3, 2), (2, 0): (3, 0)}
    assert world.nowhere == 3


@pytest.mark.parametrize("in_one_go", [False, True], ids=["in order", "in one go"])
@pytest.mark.parametrize("every", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("size", [1, 2, 5, 16, 40])
def test_every_nth_doorbell_of_a_burst_is_stamped_and_every_edge_has_its_turn(every, size, in_one_go):
    world = DoorbellsSetup(every, in_one_go=in_one_go)
    for vector in range(size):
        world.connect(0, vector, line=vector)
    burst = world.doorbells.burst([(0, vector) for vector in range(size)])
    burst.ring()  # the first ring takes the long path
    world.samples.clear()
    rung_next = []
    world.watch = lambda vector: rung_next.extend([vector] if len(rung_next) < len(world.samples) else ())
    rounds = 40 * every
    for _ in range(rounds):
        burst.ring()
    assert world.ledger() == {(0, vector): (rounds + 1, 0) for vector in range(size)}
    assert world.signalled == dict.fromkeys(range(size), rounds + 1)
    # The distance may be a little more than was asked for: it has no divisor in common with the burst.
    assert 20 * size <= len(world.samples) <= 40 * size
    assert {vector for _, vector, _, _ in world.samples} == set(range(size))
    places = [vector for _, vector, _, _ in world.samples]
    assert len({(later - earlier) % size for earlier, later in itertools.pairwise(places)}) <= 1
    assert rung_next == places, "its time stamp is the one before it is rung"


def test_an_empty_burst_rings_no_peer(world):
    burst = world.doorbells.burst([])
    burst.ring()
    assert (world.ledger(), world.signalled, world.nowhere) == ({}, {}, 0)


class DoorbellCounts(RuleBasedStateMachine):
    """Rung = signalled + refused on every edge, whatever the order of things."""

    PEERS = st.integers(0, 3)
    VECTORS = st.integers(0, 2)

    @initialize(every=st.sampled_from(EVERY), in_one_go=st.booleans())
    def begin(self, every, in_one_go):
        self.world = DoorbellsSetup(every, in_one_go=in_one_go)
        self.connected = {}
        self.ever = {}
        self.counted = set()  # the edges that have counters
        self.rung = {}
        self.nowhere = 0
        self.bursts = []
        self.lines = 0

    @rule(peer=PEERS, count=st.integers(1, 3))
    def connect(self, peer, count):
        if (peer, 0) not in self.connected:
            for vector in range(count):
                self.lines += 1
                self.connected[peer, vector] = self.lines
                self.ever.setdefault((peer, vector), []).append(self.lines)
                self.world.connect(peer, vector, self.lines)

    @rule(peer=PEERS)
    def disconnect(self, peer):
        self.world.disconnect(peer)
        self.counted |= {at for at in self.connected if at[0] == peer}
        self.connected = {at: line for at, line in self.connected.items() if at[0] != peer}

    @rule(decodes=st.booleans())
    def switch(self, decodes):
        self.world.switch(decodes=decodes)

    def note(self, pair):
        if self.world.decodes and pair in self.connected:
            self.counted.add(pair)
        if pair in self.counted:
            self.rung[pair] = self.rung.get(pair, 0) + 1
        else:
            self.nowhere += 1

    @rule(peer=PEERS, vector=VECTORS, times=st.integers(1, 20))
    def ring(self, peer, vector, times):
        for _ in range(times):
            self.note((peer, vector))
            self.world.doorbells.ring(peer, vector)

    @rule(peer=PEERS, vector=VECTORS, times=st.integers(1, 20))
    def ring_bell(self, peer, vector, times):
        bell = self.world.doorbells.bell(peer, vector)
        for _ in range(times):
            self.note((peer, vector))
            bell()

    @rule(pairs=st.lists(st.tuples(PEERS, VECTORS), max_size=9))
    def prepare(self, pairs):
        self.bursts.append((self.world.doorbells.burst(pairs), pairs))

    @rule(data=st.data(), times=st.integers(1, 5))
    def ring_burst(self, data, times):
        if self.bursts:
            burst, pairs = data.draw(st.sampled_from(self.bursts))
            for _ in range(times):
                for pair in pairs:
                    self.note(pair)
                burst.ring()

    @rule(data=st.data(), room=st.integers(0, 4))
    def fill(self, data, room):
        """Another peer fills a counter, except for some room."""
        if self.connected:
            line = self.connected[data.draw(st.sampled_from(sorted(self.connected)))]
            self.world.limit[line] = self.world.counters.get(line, 0) + room

    @rule(data=st.data())
    def drain(self, data):
        if self.connected:
            line = self.connected[data.draw(st.sampled_from(sorted(self.connected)))]
            self.world.counters[line] = 0
            self.world.limit.pop(line, None)

    @rule()
    def flush(self):
        self.world.doorbells.flush()

    @invariant()
    def the_peers_are_those_connected(self):
        if hasattr(self, "world"):
            counts = {}
            for peer, _ in self.connected:
                counts[peer] = counts.get(peer, 0) + 1
            assert {peer: self.world.peers.vectors(peer) for peer in self.world.peers} == counts

    @invariant()
    def the_counts_that_stand_are_never_more_than_was_rung(self):
        if hasattr(self, "world"):
            for at, edge in self.world.edges.items():
                assert self.world.stored.get(edge, (0, 0))[0] <= self.rung.get(at, 0)

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        for pair, (rung, refused) in world.ledger().items():
            assert rung == self.rung.get(pair, 0)
            assert rung == refused + sum(world.signalled.get(line, 0) for line in self.ever[pair])
        assert world.nowhere == self.nowhere
        if world.doorbells._every == 0:
            assert world.samples == []


TestDoorbellCounts = DoorbellCounts.TestCase
TestDoorbellCounts.settings = settings(stateful_step_count=40)


@given(st.sampled_from([1, 2, 16]), st.lists(st.integers(0, 2), max_size=200))
def test_the_distance_between_stamps_of_one_edge_is_exact(every, vectors):
    world = DoorbellsSetup(every)
    for vector in range(3):
        world.connect(0, vector, vector)
    for at, vector in enumerate(vectors):
        world.doorbells.ring(0, vector, at + 1)
    for vector in range(3):
        mine = [at + 1 for at, v in enumerate(vectors) if v == vector]
        stamped = [mine.index(intended) for _, v, intended, _ in world.samples if v == vector]
        assert stamped == list(range(stamped[0], len(mine), every)) if stamped else len(mine) < every
