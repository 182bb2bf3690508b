"""nodes.endpoint: a server's messages become a machine's memory, peers and interrupts; every descriptor has an end."""

from __future__ import annotations

import random
import sys

import pytest

from nodes.device.profiles import PROFILES
from nodes.endpoint import Endpoint, EndpointHooks
from nodes.errors import RemoteProtocolError
from nodes.ledger import NoLedger
from nodes.peer_table import AnnouncedPeers, Announcements, PeerTable
from nodes.vm import Vm
from nodes.wire.protocol import MEMORY, Message

MEMORY_DESCRIPTOR = 1000


class Descriptors:
    """Numbers that stand for descriptors: each of them is released once at most."""

    def __init__(self):
        self.released = []

    def release(self, descriptor):
        assert descriptor not in self.released
        self.released.append(descriptor)


class EndpointSetup:
    """One machine and its endpoint; ``table`` makes its peers."""

    def __init__(self, vectors=2, profile="qemu-doorbell", peers=None):
        self.descriptors = Descriptors()
        self.adopted, self.own, self.odd, self.rung = [], [], [], []
        self.bad, self.trusts = None, False
        self.vm = Vm(
            PROFILES[profile],
            vectors=vectors,
            role=PROFILES[profile].default_role,
            signal=lambda line, value: self.rung.append(line),
            ledger=NoLedger(),
            clock=lambda: 0,
            random=random.Random(0),
            sample_every=0,
        )
        self.endpoint = Endpoint(
            self.vm,
            PeerTable(self.descriptors.release) if peers is None else peers,
            EndpointHooks(
                place=lambda peer, memory: self.vm.place(peer, memoryview(bytearray(4096))),
                adopt=self.adopt,
                adopt_all=self.adopt_all,
                release=self.descriptors.release,
                on_own=self.own.append,
                warn=self.odd.append,
            ),
        )

    def adopt(self, line):
        if line == self.bad:
            raise RemoteProtocolError("no eventfd")
        self.adopted.append(line)

    def adopt_all(self, lines):
        if self.trusts:
            self.adopted.extend(lines)
        return self.trusts

    def say(self, number, *descriptors):
        self.endpoint.receive(Message(number).encode(), descriptors)

    def greet(self, peer=0):
        self.say(0)
        self.say(peer)
        self.say(MEMORY, MEMORY_DESCRIPTOR)
        return self

    def known(self):
        return self.vm.guest.peers


def test_a_greeting_places_the_machine_and_connects_its_vectors():
    station = EndpointSetup()
    station.greet(5)
    for line in (7, 8):
        station.say(3, line)
    for line in (9, 10):
        station.say(5, line)
    assert (station.endpoint.peer, station.vm.guest.peer) == (5, 5)
    assert station.known() == {3: 2, 5: 2}
    assert station.endpoint.own == {9: 0, 10: 1}
    assert station.own == [9, 10]
    assert station.adopted == [7, 8, 9, 10]
    assert station.endpoint.heard == 4
    assert station.descriptors.released == [MEMORY_DESCRIPTOR]


@pytest.mark.parametrize("trusts", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_vectors_mean_the_same_whether_they_come_together_or_not(together, trusts):
    station = EndpointSetup().greet()
    station.trusts = trusts
    messages = [(7, 11), (7, 12), (65535, 13), (7, 14), (9, 15), (70000, 16), (0, 17), (1, 18)]
    if together:
        station.endpoint.receive_vectors([number for number, _ in messages], [line for _, line in messages])
    else:
        for number, line in messages:
            station.say(number, line)
    assert station.known() == {7: 2, 65535: 1, 9: 1, 0: 1, 1: 1}
    assert station.odd == [
        "too many eventfds for peer 7, the device has 2 vectors",
        "server sent invalid message 70000",
    ]
    assert (station.own, station.endpoint.heard) == ([17], 8)
    assert station.endpoint.own == {17: 0}
    assert {11, 12, 13, 15, 17, 18} <= set(station.adopted)
    station.endpoint.close()
    assert sorted(station.descriptors.released) == [11, 12, 13, 14, 15, 16, 17, 18, MEMORY_DESCRIPTOR]


@pytest.mark.parametrize("together", [False, True])
def test_a_descriptor_that_is_no_eventfd_ends_the_connection(together):
    station = EndpointSetup().greet()
    station.bad = 12
    if not together:
        station.say(7, 11)
    end = (
        (lambda: station.endpoint.receive_vectors([7, 7, 8], [11, 12, 13])) if together else lambda: station.say(7, 12)
    )
    with pytest.raises(RemoteProtocolError, match="no eventfd"):
        end()
    station.endpoint.close()
    assert sorted(station.descriptors.released) == [11, *([13] if together else []), MEMORY_DESCRIPTOR]


@pytest.mark.parametrize("together", [False, True])
def test_a_peer_that_returns_is_rung_on_its_new_lines(together):
    station = EndpointSetup().greet()
    for lines in ((7, 8), (17, 18)):
        if together:
            station.endpoint.receive_vectors([3, 3], lines)
        else:
            for line in lines:
                station.say(3, line)
        generation = station.vm.guest.generation
        station.vm.guest.ring(3, 1)
        station.say(3)
        assert station.vm.guest.generation != generation
    assert station.rung == [8, 18]


@pytest.mark.parametrize("together", [False, True])
def test_own_vectors_are_counted_on_from_those_that_came_before(together):
    station = EndpointSetup().greet(5)
    station.say(5, 9)
    if together:
        station.endpoint.receive_vectors([2, 5], [7, 10])
    else:
        station.say(2, 7)
        station.say(5, 10)
    assert station.endpoint.own == {9: 0, 10: 1}
    assert station.own == [9, 10]


@pytest.mark.parametrize("end", ["leave", "unplug", "close", "another connection"])
def test_every_line_is_released_once_however_it_ends(end):
    station = EndpointSetup().greet()
    for line in (7, 8):
        station.say(3, line)
    match end:
        case "leave":
            station.say(3)
        case "unplug":
            station.vm.unplug()
        case "another connection":
            station.vm.use_peers(PeerTable())
    station.endpoint.close()
    station.endpoint.close()
    assert station.descriptors.released == [MEMORY_DESCRIPTOR, 7, 8]
    if end != "close":
        station.vm.guest.ring(3)
        assert station.rung == []


def test_a_device_without_a_server_keeps_no_line():
    station = EndpointSetup(profile="qemu-plain")
    station.greet()
    station.say(3, 7)
    station.endpoint.receive_vectors([3, 4], [8, 9])
    assert station.descriptors.released == [MEMORY_DESCRIPTOR, 7, 8, 9]
    assert (station.known(), station.odd) == ({}, [])


def test_half_a_message_that_brought_a_descriptor_is_released_by_close():
    station = EndpointSetup().greet()
    station.endpoint.receive(Message(3).encode()[:5], [7])
    station.endpoint.close()
    assert station.descriptors.released == [MEMORY_DESCRIPTOR, 7]


def test_a_server_that_closes_in_its_greeting_is_reported():
    station = EndpointSetup()
    station.say(0)
    with pytest.raises(RemoteProtocolError, match="before it sent its ID"):
        station.endpoint.end()


# What a leave costs


def count_opcodes(call):
    """How many instructions of Python a call executes."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def knowing(count, vectors, shared):
    """A machine that knows so many peers and rings all of them in bursts of 64."""
    announcements = Announcements()
    station = EndpointSetup(vectors, peers=AnnouncedPeers(announcements, vectors) if shared else None).greet()
    for peer in range(count):
        lines = range(vectors * peer, vectors * peer + vectors)
        announcements.join(peer, lines)
        for line in lines:
            station.say(peer, line)
    guest = station.vm.guest
    pairs = [(peer, vector) for peer in range(count) for vector in range(vectors)]
    for at in range(0, len(pairs), 64):
        guest.burst(pairs[at : at + 64]).ring()
    return station, announcements


@pytest.mark.parametrize("shared", [False, True])
def test_a_leave_costs_what_the_leaver_has_not_what_others_have(shared):
    costs = {}
    for count in (32, 256):
        station, announcements = knowing(count, 8, shared)
        announcements.leave(count // 2)
        costs[count] = count_opcodes(lambda station=station, count=count: station.say(count // 2))
        assert station.known().keys() == set(range(count)) - {count // 2}
    assert costs[256] == pytest.approx(costs[32], rel=0.02)
