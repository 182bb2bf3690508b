"""Seeded nonsense from a server of ivshmem v2: a machine reports it, keeps what it had, and leaks nothing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections import Counter

import pytest

from nodes.device.profiles import PROFILES
from nodes.errors import RemoteProtocolError
from nodes.ledger import NoLedger
from nodes.vm import Vm
from nodes.wire.v2.protocol import DomainNumbers, Frame
from nodes.wire.v2.server import FramedServer
from sim.kernel.eventfd import drain, signal
from sim.wire.connection import Connection, release_memory
from tests.serving import lines_of
from tests.sim.wire.test_fuzz import few_descriptors, send

NUMBERS = DomainNumbers(max_peers=4, vectors=2, protocol=1, output_bytes=0)
WORDS = [0, 1, 2, 3, 4, 1024, 65535, 65536, (1 << 32) - 1]
KINDS = ["eventfd", "memory", "odd memory", "pipe", "null", "path"]


class ClientV2Setup:
    """Our end: a machine with a device of version 2 and its connection."""

    def __init__(self, sock):
        self.vm = Vm(
            PROFILES["qemu-v2"],
            vectors=2,
            role="peer",
            signal=signal,
            ledger=NoLedger(),
            clock=lambda: 0,
            random=random.Random(0),
            sample_every=0,
        )
        self.own = []
        self.connection = Connection(sock, self.vm, on_own=self.own.append)

    @property
    def lines(self):
        peers = self.vm.device.peers
        return {(peer, vector) for peer in peers for vector in range(peers.vectors(peer))}

    def close(self):
        self.connection.close()
        self.vm.unplug()
        release_memory(self.vm)


def sound_script(rng):
    """What a server sends to one of its clients, with kinds of descriptors, and the lines of it at the end."""
    server = FramedServer("memory", NUMBERS)
    present = [server.join(["eventfd"] * 2)[0] for _ in range(rng.randrange(3))]
    me, messages = server.join(["eventfd"] * 2)
    for _ in range(rng.randrange(6)):
        if present and rng.random() < 0.5:
            messages += server.leave(present.pop(rng.randrange(len(present))))
        elif len(server.peers) < NUMBERS.max_peers:
            peer, more = server.join(["eventfd"] * 2)
            present.append(peer)
            messages += more
    return [message for to, message in messages if to == me], lines_of(me, *present)


def spoil(rng, said):
    """Wrong in some places: other words, lengths, types, kinds of descriptors, or another order."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(said))
        frame = said[at]
        words = [frame.body[begin : begin + 4] for begin in range(0, len(frame.body), 4)]
        match rng.randrange(6):
            case 0 if words:
                words[rng.randrange(len(words))] = rng.choice(WORDS).to_bytes(4, "little")
                said[at] = Frame(frame.kind, b"".join(words), frame.descriptors)
            case 1:
                said[at] = Frame(frame.kind, frame.body, (rng.choice(KINDS),) * rng.choice((0, 1, 1, 2, 9)))
            case 2:
                body = frame.body[: rng.randrange(len(frame.body) + 1)] + rng.randbytes(rng.choice((0, 0, 60, 5000)))
                said[at] = Frame(rng.choice((0, 1, 2, 3, 7)), body, frame.descriptors)
            case 3:
                said.insert(at, said[rng.randrange(len(said))])
            case 4:
                other = rng.randrange(len(said))
                said[at], said[other] = said[other], said[at]
            case 5 if len(said) > 1:
                del said[at]
    return said


def deliver(rng, sock, frame):
    """One message, in one piece or in several, its descriptors with the first."""
    data = frame.encode()
    end = rng.randrange(1, len(data)) if rng.random() < 0.4 else len(data)
    send(sock, data[:end], list(frame.descriptors))
    if end < len(data):
        send(sock, data[end:], [])


def outcome_of(rng, said, *, crowded=False):
    """The end of a session, and the lines of the machine then; ``crowded``: it can open hardly any descriptor."""
    ours, theirs = socket.socketpair()
    station = ClientV2Setup(ours)
    try:
        with theirs:
            for frame in said:
                deliver(rng, theirs, frame)
                with few_descriptors(rng) if crowded else contextlib.nullcontext():
                    station.connection.read()
        going_on = station.connection.read()
        return "ended" if not going_on else "goes on", station.lines
    except RemoteProtocolError as error:
        return f"reported: {str(error).split(':')[0][:40]}", station.lines
    except BrokenPipeError:
        return "refused", station.lines
    finally:
        station.close()


@pytest.mark.fault("F10", full=1_000_000, sample=3000, unit="messages of ivshmem v2")
def test_a_hostile_server_of_version_2_is_reported_and_leaks_nothing(fault_count):
    before = len(os.listdir("/proc/self/fd"))
    outcomes = Counter()
    messages = seed = 0
    while messages < fault_count:
        rng = random.Random(seed)
        said, lines = sound_script(rng)
        messages += len(said)
        if seed % 4 == 0:
            assert outcome_of(rng, said) == ("ended", lines), seed
        else:
            outcome, _ = outcome_of(rng, spoil(rng, said), crowded=seed % 10 == 1)
            outcomes["cut off" if "cut off" in outcome else outcome] += 1
        seed += 1
    assert len(os.listdir("/proc/self/fd")) == before
    print(f"hostile servers of version 2: {dict(outcomes)}")
    assert len(outcomes) > 5, outcomes
    assert outcomes["cut off"], outcomes


@pytest.mark.fault("F10", full=1_000_000, sample=3000, unit="messages of ivshmem v2")
def test_the_right_peer_and_vector_or_none(seed, fault_count):
    """Whatever else comes, an eventfd is connected to the peer and the vector that it came with."""
    rng, sent = random.Random(seed), 0
    before = len(os.listdir("/proc/self/fd"))
    while sent < fault_count:
        ours, theirs = socket.socketpair()
        station, meant = ClientV2Setup(ours), {}
        said = [Frame.init(0, NUMBERS, "memory")]
        for _ in range(12):
            peer, vector = rng.randrange(4), rng.randrange(3)
            leaves = rng.random() < 0.2
            said.append(Frame.peer_gone(peer) if leaves else Frame.event_fd(peer, vector, "eventfd"))
        try:
            with theirs:
                for token, frame in enumerate(said, 1):
                    meant[token] = frame.fields()
                    data = frame.encode()
                    at = rng.randrange(1, len(data) + 1)
                    send(theirs, data[:at], list(frame.descriptors), token)
                    theirs.sendall(data[at:])
                    sent += 1
                    if rng.random() < 0.3:
                        station.connection.read()
                station.connection.read()
            own = station.connection.endpoint.peer
            for peer, vector in station.lines:
                token = drain(station.vm.device.peers.line(peer, vector))
                rung = peer == own and vector == 0  # by the device itself, for each leave
                assert rung or meant[token] == (peer, vector)
        finally:
            station.close()
    assert len(os.listdir("/proc/self/fd")) == before
