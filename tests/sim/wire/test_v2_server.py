"""A server of ivshmem v2 on a real socket: its bytes, its IDs, its State Table, and peers with rights."""

from __future__ import annotations

import os
import socket

import pytest

from nodes.device.v2.sections import ForbiddenStoreError, SectionLayout
from nodes.errors import GuestError, RemoteProtocolError
from nodes.wire.v2.protocol import DomainNumbers
from sim.kernel.sections import map_sections
from sim.wire.admission import AdmissionRules
from sim.wire.attachment import Attachment
from tests.serving import SteppedServer

NUMBERS = DomainNumbers(max_peers=2, vectors=2, protocol=0x0001, output_bytes=4096)
SIZE_BYTES = 1 << 16
INIT = "0000000028000000 0200000002000000 {id}000000 02000000 02000000 01000000 0010000000000000".replace(" ", "")
GONE = "020000000c000000{id}000000"


def fd(peer, vector):
    return f"0100000010000000{peer:02x}000000{vector:02x}000000"


@pytest.fixture
def site(tmp_path):
    made = SteppedServer(
        tmp_path / "s",
        numbers=NUMBERS,
        rules=AdmissionRules(clients_max=NUMBERS.max_peers),
        size_bytes=SIZE_BYTES,
    )
    with made.stack:
        yield made


class Client:
    """A client that keeps what it reads."""

    def __init__(self, site):
        self.site, self.sock = site, site.raw()
        self.descriptors = []
        self.received = b""

    def read(self, size_bytes):
        """The next bytes, in hexadecimal, and how many descriptors came with them."""
        count = len(self.descriptors)
        self.sock.setblocking(False)

        def have():
            try:
                data, descriptors, _, _ = socket.recv_fds(self.sock, size_bytes - len(self.received), 8)
            except BlockingIOError:
                return False
            self.descriptors += descriptors
            self.received += data
            return not data or len(self.received) == size_bytes

        self.site.until(have)
        received, self.received = self.received.hex(), b""
        return received, len(self.descriptors) - count

    def close(self):
        self.sock.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


@pytest.fixture
def clients(site):
    made = []

    def make():
        made.append(Client(site))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_the_bytes_on_the_socket_are_those_of_the_forks_server(clients):
    first = clients()
    assert first.read(40) == (INIT.format(id="00"), 1)
    assert first.read(32) == (fd(0, 0) + fd(0, 1), 2)
    second = clients()
    assert second.read(40) == (INIT.format(id="01"), 1)
    assert second.read(64) == (fd(0, 0) + fd(0, 1) + fd(1, 0) + fd(1, 1), 4)
    assert first.read(32) == (fd(1, 0) + fd(1, 1), 2)


def test_one_client_too_many_is_refused_and_the_server_lives(site, clients):
    first, second = clients(), clients()
    assert first.read(40)[0] == INIT.format(id="00")
    assert second.read(40)[0] == INIT.format(id="01")
    third = clients()
    assert third.read(8) == ("", 0)  # closed without a message
    first.sock.close()
    site.until(lambda: 0 not in site.server.peers)
    fourth = clients()
    assert fourth.read(40)[0] == INIT.format(id="00")  # the lowest free ID


def test_the_state_of_a_peer_that_leaves_is_0_before_the_others_hear_of_it(site, clients):
    first, second = clients(), clients()
    first.read(40 + 32)
    second.read(40 + 64)
    first.read(32)
    sections = map_sections(first.descriptors[0], SectionLayout(SIZE_BYTES, 2, 4096), 0)
    theirs = map_sections(second.descriptors[0], SectionLayout(SIZE_BYTES, 2, 4096), 1)
    theirs.set_state(0xFFFF_FFFF)
    assert sections.state(1) == 0xFFFF_FFFF
    second.sock.close()
    assert first.read(12) == (GONE.format(id="01"), 0)
    assert sections.state(1) == 0


GARBLED = {
    "bad_peer": ("020000000c00000000000100", 0),
    "negative_peer": ("020000000c000000feffffff", 0),
    "left_itself": ("020000000c00000000000000", 0),
    "left_unknown": ("020000000c000000ffff0000", 0),
    "memory_again": (INIT.format(id="00"), 1),
    "memory_missing": (INIT.format(id="00"), 0),
    "half_message": ("020000000c00", 0),
}


def test_malformed_messages_on_the_socket(site, clients):
    client = clients()
    client.read(40 + 32)
    for kind, (data, descriptors) in GARBLED.items():
        assert site.server.garble(0, kind)
        assert client.read(len(data) // 2) == (data, descriptors), kind
    assert not site.server.garble(1, "bad_peer")


def test_each_section_is_mapped_with_the_rights_of_the_peer(site):
    layout = SectionLayout(SIZE_BYTES, 2, 4096)
    sections = map_sections(site.region.descriptor, layout, 1)
    assert sections.memory.readonly
    assert sections.output(0).readonly
    sections.own[0] = 1
    sections.shared[0] = 2
    assert (sections.memory[layout.output(1).start], sections.memory[layout.table_bytes]) == (1, 2)
    with pytest.raises(TypeError, match="read-only"):
        sections.memory[0] = 1
    with pytest.raises(RemoteProtocolError, match="cannot be mapped"):
        map_sections(site.region.descriptor, SectionLayout(2 * SIZE_BYTES, 2, 4096), 1)


def attach(site, **options):
    peer = Attachment(site.loop, site.server.path, vectors=7, in_background=True, **options)
    site.stack.callback(peer.close)
    site.until(lambda: peer.met)
    return peer


def test_an_attached_peer_finds_out_that_the_server_is_of_version_2(site):
    came = []
    one = attach(site, on_interrupt=lambda _, vector, count: came.append((vector, count)))
    two = attach(site)
    assert (one.dialect.name, one.own_vectors, two.peer) == ("v2", 2, 1)
    site.until(lambda: two.vectors_of(0) == 2)
    two.set_state(5)
    site.until(lambda: came == [(0, 1)])
    assert one.sections.state(1) == 5
    two.set_state(5)
    two.ring(0, 1)
    site.until(lambda: came == [(0, 1), (1, 1)])
    two.sections.store(two.sections.layout.output(1).start, b"frame")
    assert bytes(one.sections.output(1)[:5]) == b"frame"
    with pytest.raises(ForbiddenStoreError, match=r"at offset 0xe000: the output section of peer 0"):
        two.sections.store(two.sections.layout.output(0).start, b"x")
    two.close()
    site.until(lambda: came == [(0, 1), (1, 1), (0, 1)])
    assert one.sections.state(1) == 0


def test_a_peer_of_version_1_has_no_states(tmp_path):
    with (made := SteppedServer(tmp_path / "s")).stack:
        peer = attach(made)
        assert peer.sections is None
        with pytest.raises(GuestError, match="no register State"):
            peer.set_state(1)
