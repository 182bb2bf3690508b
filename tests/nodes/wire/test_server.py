"""nodes.wire.server: who joins and leaves becomes the messages of QEMU's ivshmem-server, byte for byte."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.errors import LocalProtocolError
from nodes.wire.protocol import LEGACY, MEMORY, PEERS_MAX, V0, V0_SHM_LAST, Message
from nodes.wire.server import Outbound, Server

WIRE = json.loads((Path(__file__).parents[2] / "golden" / "wire.json").read_text())
KINDS = {"/dev/shm/ivshmem-test": "memory", "anon_inode:[eventfd]": "eventfd"}


def eventfds(peer, vectors=2):
    return [f"eventfd {peer}.{vector}" for vector in range(vectors)]


def join(server, vectors=2):
    return server.join(eventfds(server.next_peer, vectors))


def flat(messages, to=None):
    """Messages as (receiver, number, kind of descriptor)."""
    return [
        (peer, message.number, *(name.split()[0] for name in message.descriptors))
        for peer, message in messages
        if to in (None, peer)
    ]


def golden():
    """What a real server's clients A, B, C and D read, each as one list of messages."""
    read = defaultdict(list)
    for who, data, files in WIRE["raw"]:
        if "Error" in data:
            continue
        wire = bytes.fromhex(data)
        for at in range(0, len(wire), 8):
            last = at + 8 == len(wire)
            read[who[0]].append((wire[at : at + 8], [KINDS[name] for name in files] if last else []))
    return dict(read)


def test_the_clients_of_a_real_server_read_the_same_bytes():
    server = Server("memory")
    sent = defaultdict(list)

    def deliver(messages):
        for peer, message in messages:
            sent["ABCD"[peer]].append((message.encode(), [name.split()[0] for name in message.descriptors]))

    for name in "ABC":
        peer, messages = join(server)
        assert "ABCD"[peer] == name
        deliver(messages)
    deliver(server.leave(1))
    deliver(server.leave(2))
    deliver(join(server)[1])
    deliver(server.leave(3))
    assert dict(sent) == golden()


def test_one_client_sees_another_come_and_go_as_a_real_one_did():
    server = Server("memory")
    messages = [*join(server)[1], *join(server)[1], *server.leave(1)]
    seen = [
        (number, [KINDS[name] for name in files])
        for number, files in WIRE["client0 log while a QEMU (id1) comes and goes"]
    ]
    assert [(number, kinds) for _, number, *kinds in flat(messages, to=0)] == seen


@pytest.mark.parametrize(
    ("dialect", "order"),
    [
        (V0, ["1 0", "1 1", "1 memory", "0 1.0", "0 1.1", "1 0.0", "1 0.1", "1 1.0", "1 1.1"]),
        (LEGACY, ["1 1", "1 memory", "1 0.0", "1 0.1", "1 1.0", "1 1.1", "0 1.0", "0 1.1"]),
        (V0_SHM_LAST, ["1 0", "1 1", "0 1.0", "0 1.1", "1 0.0", "1 0.1", "1 1.0", "1 1.1", "1 memory"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_order_in_which_a_second_client_and_the_first_are_told(dialect, order):
    server = Server("memory", dialect=dialect)
    join(server)
    _, messages = join(server)
    said = [
        f"{to} {message.descriptors[0].removeprefix('eventfd ') if message.descriptors else message.number}"
        for to, message in messages
    ]
    assert said == order
    numbers = [message.number for _, message in messages if "memory" in message.descriptors]
    assert numbers == [MEMORY]


def test_peers_are_announced_in_the_order_they_joined():
    server = Server("memory")
    for _ in range(4):
        join(server)
    server.leave(1)
    peer, messages = join(server, vectors=1)
    assert [message.number for to, message in messages if to == peer][3:] == [0, 0, 2, 2, 3, 3, 4]


def test_a_leave_is_announced_once_and_only_to_those_present():
    server = Server("memory")
    for _ in range(4):
        join(server)
    assert server.leave(3) == [Outbound(peer, Message(3)) for peer in (0, 1, 2)]
    assert server.leave(3) == []
    assert server.leave(1) == [Outbound(peer, Message(1)) for peer in (0, 2)]
    assert server.leave(17) == []
    assert server.leave(0) == [Outbound(2, Message(0))]
    assert server.leave(2) == []


def test_ids_run_from_0_are_never_reused_and_end():
    server = Server("memory")
    for peer in range(PEERS_MAX):
        assert server.join([])[0] == peer
        server.leave(peer)
    with pytest.raises(LocalProtocolError, match="65536"):
        server.join([])
    assert server.peers == {}


@given(
    st.lists(st.one_of(st.just("join"), st.integers(0, 9)), max_size=30),
    st.sampled_from([V0, LEGACY, V0_SHM_LAST]),
)
def test_only_present_peers_are_told_and_ids_only_grow(happenings, dialect):
    server, present, given_out = Server("memory", dialect=dialect), set(), -1
    for happening in happenings:
        if happening == "join":
            peer, messages = join(server, vectors=1)
            assert peer == given_out + 1
            given_out = peer
            present.add(peer)
            assert {to for to, _ in messages} == present
            told = [(to, message.number) for to, message in messages if message.descriptors]
            assert sorted(told) == sorted(
                [(peer, MEMORY)] + [(peer, other) for other in present] + [(to, peer) for to in present - {peer}]
            )
        else:
            messages = server.leave(happening)
            was_there = happening in present
            present.discard(happening)
            assert flat(messages) == [(to, happening) for to in sorted(present) if was_there]
    assert set(server.peers) == present


def streams(messages):
    """What each client is told, in order."""
    told = defaultdict(list)
    for peer, message in messages:
        told[peer].append(message)
    return told


@given(
    before=st.lists(st.one_of(st.just("join"), st.integers(0, 9)), max_size=12),
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    dialect=st.sampled_from([V0, LEGACY, V0_SHM_LAST]),
    reuse=st.booleans(),
)
def test_clients_that_are_greeted_together_are_told_what_they_would_be_told_one_by_one(before, sizes, dialect, reuse):
    together, alone = (Server("memory", dialect=dialect, first_peer=3, reuse_peers=reuse) for _ in range(2))
    for happening in before:
        for server in (together, alone):
            if happening == "join":
                server.join([f"eventfd {len(server.peers)}.{vector}" for vector in range(2)])
            else:
                server.leave(happening)
    clients = [[f"eventfd {at}.{vector}" for vector in range(size)] for at, size in enumerate(sizes)]
    expected, peers = [], []
    for vectors in clients:
        peer, messages = alone.join(vectors)
        peers.append(peer)
        expected += messages
    newcomers = [together.enter(vectors) for vectors in clients]
    assert newcomers == peers
    said = together.greet(newcomers)
    assert streams(together.spell_out(said)) == streams(expected)
    assert together.peers == alone.peers
    if dialect is V0:
        assert len(said) == 3 * len(clients) + (2 if len(clients) > 1 else 3)  # however many there are
