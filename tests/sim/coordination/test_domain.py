"""sim.coordination.domain: which client is admitted as which machine, and which is not."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from types import SimpleNamespace

import pytest

from sim.coordination.domain import LiveDomain
from sim.coordination.incarnation import OngoingMigration
from sim.engines.base import DeviceRow
from sim.engines.messages import PeerIds
from sim.engines.process.domain_server import SocketServer
from sim.kernel.loop import Loop
from topologies import Domain, Memory


class DomainSetup:
    """A domain that runs, and one machine: it is there already, as peer 7, in another process."""

    def __init__(self, stack: contextlib.ExitStack, path) -> None:
        self.stack = stack
        self.loop = stack.enter_context(contextlib.closing(Loop()))
        self.events = []
        self.told = []
        self.machine = SimpleNamespace(
            machine=SimpleNamespace(index=0, present=False, vectors=2, foreign=frozenset({"to"})),
            ready=True,
            live=SimpleNamespace(tell=self.told.append),
            rows=[DeviceRow(0, "m", 0, 0)],
            peers=[7],
            greetings=[0],
            migration=None,
        )
        self.identities = []
        self.knows = True

        def make_server(domain, number, **told):
            self.server = SocketServer(
                domain,
                path,
                self.loop,
                machine_of=lambda pid: self.machine if self.knows and pid == os.getpid() else None,
                is_real=lambda machine: False,
                **told,
            )
            return self.server

        self.domain = LiveDomain(
            Domain(name="main", memory=Memory(size_bytes=4096)),
            0,
            SimpleNamespace(make_server=make_server),
            on_join=lambda machine, _place: self.events.append(("joined", machine)),
            on_foreign=lambda arrival, peer: self.events.append(("foreign", arrival.pid, peer)),
            on_leave=lambda peer, reason: self.events.append((reason, peer.peer)),
            on_fault=self.events.append,
        )
        stack.enter_context(contextlib.closing(self.domain))
        self.domain.open(
            SimpleNamespace(
                current=[self.machine],
                foreign=[{}],
                of=lambda live: live,
                identify=lambda *identity: self.identities.append(identity),
            )
        )

    def connect(self) -> socket.socket:
        client = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(self.server.path))
        return client

    def accept(self) -> None:
        """Let the server handle clients that wait and clients that have gone."""
        for _ in range(3):
            self.loop.step(time.monotonic_ns())

    @property
    def peers(self) -> list[int]:
        return [each.peer for each in self.server.clients()]


@pytest.fixture
def site(tmp_path):
    with contextlib.ExitStack() as stack:
        yield DomainSetup(stack, tmp_path / "s")


def test_a_successor_joins_without_being_taken_for_the_machine_yet(site):
    site.machine.migration = OngoingMigration(0)
    site.connect()
    site.accept()
    assert (site.machine.migration.peer, site.machine.peers) == (0, [7])
    assert site.events == [("joined", site.machine)]


def test_a_successor_that_died_before_it_was_admitted_is_not_announced(site):
    """Its machine has been told that it stays, as the peer that it is: the dead one's ID would be wrong for ever."""
    site.connect().close()
    site.accept()
    assert (site.machine.peers, site.identities, site.peers, site.events) == ([7], [], [], [])


def test_an_earlier_successor_that_died_is_not_the_next_one(site):
    site.machine.migration = OngoingMigration(0)
    site.connect().close()
    site.accept()
    assert (site.machine.migration.peer, site.events) == (None, [])
    site.connect()
    site.accept()
    assert (site.machine.migration.peer, site.peers) == (0, [0])


def test_a_process_of_a_machine_that_died_is_no_foreign(site):
    site.knows = False
    site.connect().close()
    site.accept()
    assert (site.peers, site.events) == ([], [])
    site.connect()
    site.accept()
    assert (site.peers, site.events) == ([0], [("foreign", os.getpid(), 0)])


def test_machines_that_work_with_foreign_peers_hear_when_one_comes_and_goes(site):
    site.knows = False
    client = site.connect()
    site.accept()
    assert site.told == [PeerIds({}, foreign={0: True})]
    client.close()
    site.accept()
    assert site.told[1:] == [PeerIds({}, foreign={0: False})]


def test_a_client_that_speaks_before_it_is_admitted_has_left(site):
    site.connect().sendall(b"x")
    site.accept()
    assert (site.machine.peers, site.peers, site.events) == ([7], [], [])


def test_a_foreign_client_that_leaves_while_it_waits_for_the_machines_is_not_announced(site):
    site.knows = False
    site.domain._awaited[0] = site.machine, None
    client = site.connect()
    site.accept()
    assert (site.peers, site.events) == ([], [])
    client.close()
    site.accept()
    site.domain._awaited.clear()
    site.connect()
    site.accept()
    assert (site.peers, len(site.events)) == ([0], 1)
