"""Ethernet over ivshmem v2 between two interfaces: frames pass both ways, and the link comes back."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from nodes.errors import GuestError, HostError, UsageError
from nodes.wire.v2.protocol import DomainNumbers
from sim.kernel.tap import Tap
from sim.wire.ethernet_bridge import EthernetBridge
from tests.serving import SteppedServer

NUMBERS = DomainNumbers(max_peers=2, vectors=2, protocol=0x0001, output_bytes=16384)


class PlugTap:
    """In the place of a TAP device: what is plugged into it is the other end of a socket pair."""

    def __init__(self, stack):
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.near, self.far):
            end.setblocking(False)
            stack.callback(end.close)

    def fileno(self):
        return self.near.fileno()

    def read(self):
        with contextlib.suppress(BlockingIOError):
            return self.near.recv(1 << 16)
        return None

    def write(self, frame):
        self.near.send(frame)
        return True

    def received(self):
        with contextlib.suppress(BlockingIOError):
            return self.far.recv(1 << 16)
        return None


@pytest.fixture
def site(tmp_path):
    made = SteppedServer(tmp_path / "s", numbers=NUMBERS, size_bytes=1 << 16)
    with made.stack:
        yield made


def bridge(site, said):
    tap = PlugTap(site.stack)
    made = EthernetBridge(site.loop, site.server.path, tap, say=said.append)
    site.stack.callback(made.close)
    return made, tap


def test_frames_pass_both_ways_and_the_link_comes_back(site):
    said = []
    with contextlib.ExitStack() as leaving:
        one, one_tap = bridge(site, said)
        two, two_tap = bridge(site, [])
        leaving.callback(two.close)
        site.until(lambda: one.is_up and two.is_up)
        frames = [os.urandom(60 + 20 * number) for number in range(40)]
        for sender, receiver in ((one_tap, two_tap), (two_tap, one_tap)):
            for frame in frames:
                sender.far.send(frame)
                got = []
                site.until(lambda: got.append(receiver.received()) or got[-1] is not None)  # noqa: B023
                assert got[-1] == frame
        assert (one.sent, one.received, one.dropped) == (40, 40, 0)
    site.until(lambda: not one.is_up)
    one_tap.far.send(b"x" * 60)
    site.until(lambda: one.dropped == 1)
    three, three_tap = bridge(site, [])
    site.until(lambda: one.is_up and three.is_up)
    one_tap.far.send(frames[0])
    got = []
    site.until(lambda: got.append(three_tap.received()) or got[-1] is not None)
    assert got[-1] == frames[0]
    assert said == ["the link to peer 1 is up", "the link to peer 1 is down", "the link to peer 1 is up"]


def test_a_server_of_version_1_has_no_ethernet(tmp_path):
    with (made := SteppedServer(tmp_path / "s")).stack, pytest.raises(GuestError, match="not of ivshmem v2"):
        bridge(made, [])


def test_a_tap_device():
    with pytest.raises(UsageError, match="up to 15 characters"):
        Tap("a/b")
    try:
        tap = Tap("ivsimtest0")
    except HostError as error:
        pytest.skip(str(error))
    with contextlib.closing(tap):
        assert tap.read() is None  # the interface is down
        assert not tap.write(bytes(60))
        assert "ivsimtest0" in [name for _, name in socket.if_nameindex()]
    assert "ivsimtest0" not in [name for _, name in socket.if_nameindex()]
