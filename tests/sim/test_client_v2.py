"""sim.serve and sim.connect with ivshmem v2: States, sections with rights, and machines beside a peer."""

from __future__ import annotations

import asyncio

import pytest

import sim
from nodes.device.v2.sections import ForbiddenStoreError
from nodes.errors import GuestError, RemoteProtocolError, UsageError
from nodes.guest import FOREVER

PATIENCE_S = 60.0
PAGE = 4096


@pytest.fixture
def server():
    with sim.serve(
        size="64K", dialect="v2", max_peers=3, output_size="4K", protocol=0x4001, timeout=PATIENCE_S
    ) as made:
        yield made


def changes(peer, count):
    """The next changes that a peer hears of, once there are so many."""
    found = []
    while len(found) < count:
        found += peer.events()
        if len(found) < count:
            peer.wait(0)
            found += peer.events()
    return [tuple(each) for each in found]


def test_a_state_interrupts_the_others_and_is_an_event(server):
    with server.connect() as first, server.connect() as second:
        second.wait_for_peers(1)
        first.wait_for_peers(1)
        assert first.events() == [("joined", 1)]
        assert (first.dialect, first.states, second.state) == ("v2", [0, 0, 0], 0)
        second.state = 7
        assert first.wait(0).doorbells == 1
        assert first.events() == [("state", 1, 7)]
        assert (first.states, second.state, second.events()) == ([0, 7, 0], 7, [])
        second.state = 7  # no change
        second.state = 0xFFFF_FFFF
        assert first.wait(0).doorbells == 1
        assert [str(change) for change in first.events()] == ["peer 1 has State 4294967295"]


def test_a_peer_that_leaves_has_state_0_and_its_id_is_given_again(server):
    with server.connect() as first:
        with server.connect() as second:
            first.wait_for_peers(1)
            second.state = 3
            assert changes(first, 2) == [("joined", 1), ("state", 1, 3)]
        assert changes(first, 2) == [("left", 1), ("state", 1, 0)]
        assert first.states == [0, 0, 0]
        with server.connect() as third:
            assert third.id == 1


def test_each_section_has_the_rights_of_the_peer(server):
    with server.connect() as first, server.connect() as second:
        first.sections.own[:5] = b"first"
        first.sections.shared[:3] = b"all"
        assert bytes(second.sections.output(0)[:5]) == b"first"
        assert bytes(second.sections.shared[:3]) == b"all"
        assert (len(second.memory), len(second.sections.shared)) == (16 * PAGE, 12 * PAGE)
        for view in (second.memory, second.sections.output(0), second.sections.output(2)):
            with pytest.raises(TypeError, match="read-only"):
                view[0] = 1
        words = r"peer 1 stores 1 bytes at offset 0xd000: the output section of peer 0 is read-only for it"
        with pytest.raises(ForbiddenStoreError, match=words):
            second.sections.store(13 * PAGE, b"!")
        assert bytes(first.sections.own[:5]) == b"first"


def test_while_interrupt_control_is_0_doorbells_are_lost(server):
    with server.connect() as first, server.connect() as second:
        second.wait_for_peers(1)
        first.enable_interrupts(enabled=False)
        second.ring(0, 1)
        with pytest.raises(TimeoutError):
            first.wait(1, timeout=0)
        first.enable_interrupts()
        second.ring(0, 1)
        assert first.wait(1).doorbells == 1


def test_a_program_of_ones_own_beside_a_peer(server):
    def answers(guest):
        """Its State is that of peer 0, plus 1."""
        guest.set_state(1)
        while True:
            yield FOREVER
            guest.set_state(guest.sections.state(0) + 1)

    with server.connect() as peer:
        machine = server.machine(answers)
        assert changes(peer, 2) == [("joined", 1), ("state", 1, 1)]
        peer.state = 41
        assert changes(peer, 1) == [("state", 1, 42)]
        assert machine.failure is None


def test_one_client_too_many_is_refused(server):
    peers = [server.connect() for _ in range(3)]
    with pytest.raises(RemoteProtocolError, match="the server closed the connection"):
        server.connect()
    first, second, third = peers
    first.wait_for_peers(2)
    second.close()
    while 1 in first.peers:  # then the server knows, too
        first.wait(0, timeout=0.1)
    with server.connect() as again:
        assert again.id == 1
    for peer in (first, third):
        peer.close()


def test_asyncio_hears_of_states(server):
    async def listen():
        async with sim.connect_async(server.path, timeout=PATIENCE_S) as peer:
            other = await asyncio.to_thread(server.connect)
            with other:
                heard = peer.changes()
                first = await anext(heard)
                other.state = 5
                second = await anext(heard)
                peer.state = 6
                return first, second, peer.states, await asyncio.to_thread(other.wait, 0)

    first, second, states, interrupt = asyncio.run(listen())
    assert (first, second, states) == (("joined", 1), ("state", 1, 5), [6, 5, 0])
    assert interrupt.vector == 0


def test_a_server_of_v2_in_a_child_process():
    arguments = {"size": "64K", "dialect": "v2", "max_peers": 2, "output_size": "8K", "protocol": 1}
    with (
        sim.serve_process(vectors=1, timeout=PATIENCE_S, **arguments) as server,
        server.connect() as first,
        server.connect() as second,
    ):
        first.wait_for_peers(1)  # a device interrupts those that it knows
        first.state = 2
        second.wait(0)
        assert (second.states, len(second.sections.own)) == ([2, 0], 8192)
        assert server.qemu_options.endswith("-device ivshmem,chardev=ivshmem")
    with pytest.raises(UsageError, match="go with dialect v2"):
        sim.serve_process(max_peers=2)


def test_what_was_sent_is_explained():
    with sim.serve(dialect="v2", record=True) as server, server.connect():
        assert "INIT: the client's own ID 0 of 2, 2 vectors" in server.transcript()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_peers": 3}, "max_peers, output_size and protocol go with dialect v2"),
        ({"protocol": 1}, "max_peers, output_size and protocol go with dialect v2"),
        ({"dialect": "v2", "max_peers": 1}, "expected 2 to 65536 peers, got 1"),
        ({"dialect": "v2", "output_size": 1000}, "output sections of 1000 bytes: expected whole pages"),
        ({"dialect": "v2", "output_size": "4M"}, "shared memory too small"),
        ({"dialect": "v2", "output_size": "much"}, "output_size: expected a size such as"),
        ({"dialect": "v2", "reuse_ids": True}, "it gives the lowest free ID"),
        ({"dialect": "v2", "protocol": 0x8003, "max_peers": 3}, "a virtio protocol .* has 2 peers, got 3"),
    ],
)
def test_numbers_of_a_server_of_v2_are_checked(arguments, error):
    with pytest.raises(UsageError, match=error):
        sim.serve(**arguments)


def test_a_peer_of_version_1_has_no_states():
    with sim.serve() as server, server.connect() as peer:
        for use in (lambda: peer.state, lambda: peer.states, lambda: peer.sections, peer.enable_interrupts):
            with pytest.raises(GuestError, match="not of ivshmem v2"):
                use()
        with pytest.raises(GuestError, match="not of ivshmem v2"):
            peer.state = 1
