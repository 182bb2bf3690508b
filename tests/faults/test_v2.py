"""A peer of ivshmem v2 dies: its State becomes 0 and every other peer gets vector 0. F1 of tests/fault_matrix.py."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodes.wire.v2.protocol import DomainNumbers
from sim.kernel.loop import Loop
from sim.kernel.memory import Region
from sim.wire.attachment import Attachment
from sim.wire.server import IvshmemServer
from tests.faults.processes import PATIENCE_S

NUMBERS = DomainNumbers(max_peers=3, vectors=2, protocol=0x4001, output_bytes=4096)


class Domain:
    """A server and two peers that stay, all on one loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack = contextlib.ExitStack()
        self.loop = Loop()
        self.stack.callback(self.loop.close)
        region = Region.create(1 << 16, kind="memfd")
        self.stack.callback(region.close)
        self.server = IvshmemServer(self.loop, path, region.descriptor, vectors=NUMBERS.vectors, numbers=NUMBERS)
        self.stack.callback(self.server.close)
        self.interrupts: list[list[int]] = [[], []]
        self.peers: list[Attachment] = []
        for seen in self.interrupts:
            self.peers.append(self._attach(seen))

    def _attach(self, seen: list[int]) -> Attachment:
        peer = Attachment(
            self.loop, self.path, vectors=1, in_background=True, on_interrupt=lambda _, vector, __: seen.append(vector)
        )
        self.stack.callback(peer.close)
        self.until(lambda: peer.met)
        return peer

    def until(self, met: Callable[[], bool]) -> None:
        """Step the loop; as long as anything moves, the patience is renewed by the caller's next call."""
        deadline_ns = time.monotonic_ns() + round(PATIENCE_S * 1e9)
        while not met():
            assert time.monotonic_ns() < deadline_ns, (self.interrupts, self.server.peers)
            self.loop.step(deadline_ns)


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[Domain]:
    made = Domain(tmp_path / "s")
    with made.stack:
        yield made


def fork_peer(path: Path, state: int) -> int:
    """A process that is a peer with this State, and waits to be killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: those of a parallel test run
        pid = os.fork()
    if pid:
        return pid
    try:  # the copies of the parent's descriptors are closed by the kill, like all others
        loop = Loop()
        peer = Attachment(loop, path, vectors=1)
        peer.meet()
        peer.set_state(state)
        while True:
            signal.pause()
    finally:
        os._exit(1)


@pytest.mark.fault("F1", full=1000, sample=20, unit="kills of a peer of ivshmem v2")
def test_the_others_hear_of_a_peer_that_is_killed(domain: Domain, fault_count: int) -> None:
    draw = random.Random(1)
    sections = [peer.sections for peer in domain.peers]
    for _ in range(fault_count):
        state = draw.randrange(1, 1 << 32)
        pid = fork_peer(domain.path, state)
        try:
            domain.until(lambda: all(each is not None and each.state(2) == state for each in sections))  # noqa: B023
            domain.until(lambda: all(domain.interrupts))  # of the State's change
        finally:
            os.kill(pid, signal.SIGKILL)
            for seen in domain.interrupts:
                seen.clear()
            os.waitpid(pid, 0)
        domain.until(lambda: all(domain.interrupts))
        assert domain.interrupts == [[0], [0]]
        assert [each.state(2) for each in sections if each is not None] == [0, 0]
        for seen in domain.interrupts:
            seen.clear()
    assert sorted(domain.server.peers) == [0, 1]
