"""nodes.peer_table: a shared table tells each machine what a table of its own would."""

from __future__ import annotations

import random
import tracemalloc
from itertools import takewhile

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nodes.device.profiles import PROFILES
from nodes.endpoint import Endpoint, EndpointHooks
from nodes.errors import LocalProtocolError
from nodes.ledger import NoLedger
from nodes.peer_table import AnnouncedPeers, Announcements, PeerTable
from nodes.vm import Vm
from nodes.wire.protocol import DIALECTS
from nodes.wire.server import Server

ROOM = 2


def test_a_table_releases_each_line_once():
    released = []
    peers = PeerTable(released.append)
    for peer in (1, 2):
        for vector in range(3):
            peers.connect(peer, vector, 10 * peer + vector)
    peers.disconnect(1)
    peers.disconnect(1)
    assert released == [10, 11, 12]
    peers.connect(2, 1, 99)
    assert released == [10, 11, 12, 21]
    peers.clear()
    peers.clear()
    assert released == [10, 11, 12, 21, 20, 99, 22]
    assert list(peers) == []


@pytest.mark.parametrize("peers", [PeerTable(), AnnouncedPeers(Announcements(), 4)])
@pytest.mark.parametrize(("peer", "vector"), [(0, 0), (-1, 0), (0, -1), (1 << 20, 1 << 20)])
def test_a_table_has_no_line_for_what_is_not_connected(peers, peer, vector):
    assert peers.line(peer, vector) is None
    assert peers.vectors(peer) == 0


def test_a_vector_counts_from_the_end_of_nothing():
    peers = PeerTable()
    peers.connect(0, 0, 5)
    assert peers.line(0, -1) is None


def known(peers):
    return {peer: [peers.line(peer, vector) for vector in range(peers.vectors(peer))] for peer in peers}


class ComparedMachine:
    """One machine that hears a server message by message, with a table of its own beside the shared one."""

    def __init__(self, announcements):
        self.messages = []
        self.tables = [PeerTable(), AnnouncedPeers(announcements, ROOM)]
        self.endpoints, self.vms = [], []
        for table in self.tables:
            vm = Vm(
                PROFILES["qemu-doorbell"],
                vectors=ROOM,
                role="peer",
                signal=lambda line, value: None,
                ledger=NoLedger(),
                clock=lambda: 0,
                random=random.Random(0),
                sample_every=0,
            )
            self.vms.append(vm)
            self.endpoints.append(
                Endpoint(
                    vm,
                    table,
                    EndpointHooks(place=lambda peer, memory: None),
                )
            )

    def hear(self, count, *, together=False):
        heard = self.messages[:count]
        del self.messages[:count]
        while heard:
            vectors = list(takewhile(lambda said: said.number >= 0 and said.descriptors, heard))
            if together and vectors and self.endpoints[0].takes_many:
                for endpoint in self.endpoints:
                    endpoint.receive_vectors(
                        [said.number for said in vectors], [said.descriptors[0] for said in vectors]
                    )
                del heard[: len(vectors)]
            else:
                message = heard.pop(0)
                for endpoint in self.endpoints:
                    endpoint.receive(message.encode(), message.descriptors)


class SharedTables(RuleBasedStateMachine):
    """Whatever joins, leaves and is heard: both tables of each machine say the same, in the same order."""

    dialect = DIALECTS["v0"]

    def __init__(self):
        super().__init__()
        self.announcements = Announcements()
        self.server = Server(-1, dialect=self.dialect)
        self.hearers = {}
        self.lines = 100

    def tell(self, messages):
        for to, message in messages:
            self.hearers[to].messages.append(message)

    @rule(vectors=st.integers(1, ROOM + 1))
    def join(self, vectors):
        lines = [self.lines + at for at in range(vectors)]
        self.lines += vectors
        peer = self.server.next_peer
        self.hearers[peer] = ComparedMachine(self.announcements)
        self.announcements.join(peer, lines)
        self.tell(self.server.join(lines)[1])

    @rule(data=st.data())
    def leave(self, data):
        if self.hearers:
            peer = data.draw(st.sampled_from(sorted(self.hearers)))
            del self.hearers[peer]
            self.announcements.leave(peer)
            self.tell(self.server.leave(peer))

    @rule(data=st.data(), count=st.integers(1, 12), together=st.booleans())
    def hear(self, data, count, together):
        if self.hearers:
            self.hearers[data.draw(st.sampled_from(sorted(self.hearers)))].hear(count, together=together)

    @rule(data=st.data())
    def catch_up(self, data):
        if self.hearers:
            hearer = self.hearers[data.draw(st.sampled_from(sorted(self.hearers)))]
            hearer.hear(len(hearer.messages))
            before = known(hearer.tables[1])
            hearer.vms[1].catch_up()
            assert known(hearer.tables[1]) == before

    @invariant()
    def both_tables_say_the_same(self):
        for hearer in self.hearers.values():
            own, shared = map(known, hearer.tables)
            assert list(own.items()) == list(shared.items())


TestSharedTables = SharedTables.TestCase


class SharedTablesOfTheOldServer(SharedTables):
    dialect = DIALECTS["legacy"]


TestSharedTablesOfTheOldServer = SharedTablesOfTheOldServer.TestCase


class SharedTablesMemoryLast(SharedTables):
    dialect = DIALECTS["v0-shm-last"]


TestSharedTablesMemoryLast = SharedTablesMemoryLast.TestCase


def test_a_line_that_was_not_announced_is_refused():
    announcements = Announcements()
    peers = AnnouncedPeers(announcements, 2)
    announcements.join(0, [5])
    with pytest.raises(LocalProtocolError, match="peer 0, vector 0, line 6 is not what was announced"):
        peers.connect(0, 0, 6)
    with pytest.raises(LocalProtocolError, match="no leave of peer 0"):
        peers.disconnect(0)
    with pytest.raises(LocalProtocolError, match="peer 1 cannot leave"):
        announcements.leave(1)


def test_an_id_that_is_given_again_has_its_new_lines():
    announcements = Announcements()
    early, late = AnnouncedPeers(announcements, 1), None
    announcements.join(0, [1])
    announcements.join(7, [2])
    early.catch_up()
    assert early.line(7, 0) == 2
    announcements.leave(7)
    announcements.join(7, [3])
    assert early.line(7, 0) == 2
    late = AnnouncedPeers(announcements, 1)
    announcements.join(8, [4])
    early.catch_up()
    late.catch_up()
    assert known(early) == known(late) == {0: [1], 7: [3], 8: [4]}


def peers_that_know_each_other(count):
    """How much memory the tables of so many machines take when all know all, in bytes."""
    tracemalloc.start()
    try:
        announcements = Announcements()
        tables = []
        for peer in range(count):
            tables.append(AnnouncedPeers(announcements, 1))
            announcements.join(peer, [peer])
        for table in tables:
            table.catch_up()
        assert all(table.line(peer, 0) == peer for table in tables[:3] for peer in range(count))
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_machines_that_know_each_other_take_memory_by_their_number_not_by_its_square():
    few, many = peers_that_know_each_other(512), peers_that_know_each_other(8 * 512)
    assert many < 10 * few
