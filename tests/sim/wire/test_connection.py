"""sim.wire.connection: every malformed server of ``golden/malformed.json``, real descriptors, against a machine."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket

import pytest

from nodes.device.profiles import PROFILES
from nodes.errors import RemoteProtocolError, UsageError
from nodes.ledger import NoLedger
from nodes.vm import Vm
from sim.kernel.eventfd import signal
from sim.wire.connection import Connection, connect
from tests.malformed import BOTH, SCRIPTS, SHM, Case, Send, cut, eventfd, joined, number
from tests.nodes.wire.test_client import OF_2012, UNDECIDED

TOLD_ONCE = ("rt: too many vectors for a peer (2 + 3)", "rt: connect same id twice without disconnect")
"""Several eventfds too many, of the same peer."""


class LeavesCounted(Vm):
    """A machine that counts the leaves of peers."""

    left = 0

    def disconnect(self, peer):
        self.left += 1
        super().disconnect(peer)


class ConnectionSetup:
    """One machine connected to a server that says what it is told to say."""

    def __init__(self, path, vectors, profile="qemu-doorbell"):
        self.stack = contextlib.ExitStack()
        listener = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(os.fspath(path))
        listener.listen()
        self.odd = []
        self.heard = []
        self.vm = LeavesCounted(
            PROFILES[profile],
            vectors=vectors,
            role="peer",
            size_bytes=4096 if PROFILES[profile].memory_container else None,
            signal=signal,
            ledger=NoLedger(),
            clock=lambda: 0,
            random=random.Random(0),
            sample_every=0,
        )
        self.connection = Connection(connect(path), self.vm, on_own=self.heard.append, warn=self.odd.append)
        self.stack.callback(self.connection.close)
        self.server, _ = listener.accept()
        self.stack.enter_context(self.server)

    @property
    def left(self):
        return self.vm.left

    def say(self, case):
        """Everything the case sends, each ``sendmsg`` read before the next; what came of it."""
        try:
            for send in case.sends:
                descriptors = [make(kind) for kind in send.files]
                try:
                    socket.send_fds(self.server, [send.data], descriptors)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
                assert self.connection.read()
            if case.close:
                self.server.close()
                assert not self.connection.read()
        except RemoteProtocolError as error:
            return str(error)
        return ""


def make(kind):
    """A descriptor as ``tests.malformed`` names it."""
    name, _, size = kind.partition(" ")
    match name:
        case "eventfd":
            return os.eventfd(0, os.EFD_CLOEXEC)  # blocking, as after a real QEMU has had it
        case "null":
            return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    descriptor = os.memfd_create("sent")
    os.ftruncate(descriptor, int(size))
    if name == "memory":
        return descriptor
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(descriptor)


@pytest.fixture
def station(short_path):
    with contextlib.ExitStack() as stack:

        def build(vectors, **options):
            built = ConnectionSetup(short_path / "s", vectors, **options)
            stack.enter_context(built.stack)
            return built

        yield build


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_malformed_server_is_judged_and_leaks_nothing(station, name):
    case = SCRIPTS[name]
    built = station(case.vectors)
    error = built.say(case)
    if name in OF_2012 | UNDECIDED:  # what may be an ID of 2012 is not a wrong version yet
        assert (error, built.connection.endpoint.is_set_up) == ("", name in OF_2012)
        return
    expected = case.error or case.memory_error or case.eventfd_error
    assert bool(error) == bool(expected)
    assert re.search(expected, error)
    if not expected:
        assert (len(built.odd), built.left) == (1 if name in TOLD_ONCE else case.ignored, case.left)
        assert built.connection.endpoint.is_set_up == case.up


@pytest.mark.parametrize("holder", [0, 1])
@pytest.mark.parametrize("at", range(1, 8))
def test_a_vector_whose_message_comes_in_two_pieces_is_connected(station, at, holder):
    built = station(2)
    assert built.say(Case((*BOTH, *cut(*eventfd(3), at, holder)), vectors=2)) == ""
    assert built.vm.guest.peers == {0: 2, 3: 1}
    assert (built.odd, built.left) == ([], 0)


def test_own_vectors_are_told_as_they_come(station):
    built = station(2)
    built.say(Case((*BOTH, *eventfd(1, 2)), vectors=2))
    assert built.heard == list(built.connection.own)
    assert list(built.connection.own.values()) == [0, 1]
    assert built.connection.endpoint.peer == 0
    assert built.connection.endpoint.is_set_up
    assert built.connection.endpoint.heard == 4


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_a_device_of_2012_keeps_each_descriptor_twice_until_it_ends(station):
    built = station(2, profile="qemu-1.1")
    before = open_descriptors() + 1  # the mapping has one of its own (mmap)
    greeting = Case((number(0), number(4), SHM, *eventfd(4, 2), *eventfd(9), number(9)), vectors=2)
    assert built.say(greeting) == ""
    assert built.connection.endpoint.is_set_up
    assert built.vm.guest.peers == {4: 2}
    assert open_descriptors() == before + 4 + 3  # all that came, and the duplicates for peers that are there
    built.stack.close()
    assert open_descriptors() == before - 3  # the three sockets too


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_vectors_mean_the_same_whether_they_come_together_or_not(station, together, trusted):
    built = station(2)
    built.connection._trusted = trusted
    sends = [*eventfd(7, 2), *eventfd(65535), *eventfd(7, 3), number(7), *eventfd(9), *eventfd(1, 2)]
    built.say(Case(BOTH, vectors=2))
    for send in sends:
        descriptors = [make(kind) for kind in send.files]
        socket.send_fds(built.server, [send.data], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        if not together:
            assert built.connection.read()
    assert built.connection.read()
    assert built.vm.guest.peers == {0: 2, 65535: 1, 9: 1, 1: 2}
    assert (built.left, built.odd) == (1, ["too many eventfds for peer 7, the device has 2 vectors"])
    assert built.heard == list(built.connection.own)
    assert list(built.connection.own.values()) == [0, 1]
    assert not any(os.get_blocking(built.vm.device.peers.line(peer, 0)) for peer in built.vm.guest.peers)


def test_what_is_no_eventfd_among_many_is_found_and_nothing_leaks(station):
    built = station(2)
    built.say(Case(BOTH, vectors=2))
    for send in (*eventfd(1, 2), Send(eventfd(2)[0].data, ("null",)), *eventfd(3, 2), number(1)):
        descriptors = [make(kind) for kind in send.files]
        socket.send_fds(built.server, [send.data], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
    with pytest.raises(RemoteProtocolError, match="/dev/null where an eventfd belongs"):
        built.connection.read()
    assert built.vm.guest.peers == {0: 2, 1: 2}


def test_only_the_process_that_is_trusted_is_trusted(short_path, station):
    """What counts is the process that listens, as the kernel reports it."""
    vm = station(1).vm
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(short_path / "ours"))
        listener.listen()
        for trusted, expected in ((os.getpid(), True), (os.getppid(), False), (None, False)):
            with contextlib.closing(Connection(connect(short_path / "ours"), vm, on_own=print, trusted=trusted)) as it:
                assert it._trusted is expected


def test_several_messages_without_descriptors_may_come_at_once(station):
    built = station(2)
    built.say(Case((*BOTH, *eventfd(1), *eventfd(2), joined(number(1), number(2), number(1)))))
    assert built.vm.guest.peers == {0: 2}
    assert (built.left, len(built.odd)) == (2, 1)


def test_a_received_eventfd_never_blocks_its_ringer(station):
    built = station(2)
    built.say(Case((*BOTH, *eventfd(1))))
    line = built.vm.device.peers.line(1, 0)
    assert not os.get_blocking(line)


def test_without_a_server_the_user_is_told(short_path):
    with pytest.raises(UsageError, match="no server listens on"):
        connect(short_path / "nobody")
