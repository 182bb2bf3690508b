"""sim.wire.server for a user with few descriptors in flight: a client that never reads does not starve others."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.wire import server as server_module
from tests.serving import Reader, SteppedServer, lines_of

NOBODY = 65534
DESCRIPTORS_MAX = 200
PATIENCE_S = 60

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change to a user with limits")


@pytest.fixture
def as_nobody(short_path: Path) -> Iterator[Callable[[Callable[[Path], Any]], Any]]:
    """Runs a function in a child of the user nobody, with at most 200 descriptors open or in flight; its result."""
    home = short_path / "nobody"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    for folder in (short_path, short_path.parent):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH)

    def run(play: Callable[[Path], Any]) -> Any:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            told = "it was killed"
            try:
                signal.alarm(PATIENCE_S)
                resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS_MAX, DESCRIPTORS_MAX))
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                told = json.dumps(play(home / "s"))
            except BaseException as error:
                told = json.dumps(f"{type(error).__name__}: {error}")
            finally:
                os.write(write_end, told.encode())
                os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        return json.loads(told or b'"it was killed"')

    return run


class FrugalReader(Reader):
    """A client that reads everything and keeps no descriptor but the memory: many of them fit into one process."""

    def read(self) -> None:
        super().read()
        for eventfd in self.lines.values():
            eventfd.close()


@contextlib.contextmanager
def deaf_clients(path: Path, count: int) -> Iterator[None]:
    """Another process whose clients read nothing; each goes when its connection has ended."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            clients = {}
            ends = select.poll()
            for _ in range(count):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(os.fspath(path))
                clients[sock.fileno()] = sock
                ends.register(sock, 0)  # POLLHUP is always told
            while clients:
                for descriptor, _ in ends.poll():
                    ends.unregister(descriptor)
                    clients.pop(descriptor).close()
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def play(path: Path, *, deaf: int, readers: int, vectors: int) -> dict[str, Any]:
    """Clients that never read come first, then others, until these know each other."""
    server_module.STALL_NS = 20_000_000
    site = SteppedServer(path, vectors=vectors)
    throttled = False
    with site.stack, deaf_clients(path, deaf):
        site.until(lambda: len(site.server.peers) + len(site.gone) == deaf)
        clients = [FrugalReader(site.raw()) for _ in range(readers)]
        for reader in clients:
            site.stack.callback(reader.close)
        wanted = lines_of(*range(deaf, deaf + readers), vectors=vectors)
        while not all(set(reader.lines) >= wanted for reader in clients):
            site.loop.step(time.monotonic_ns() + 1_000_000)
            throttled |= site.server._stall is not None
            for reader in clients:
                reader.read()
                assert not reader.ended
        gone = {peer for peer, _ in site.gone}
        while any(gone & {peer for peer, _ in reader.lines} for reader in clients):  # they are told of that, too
            site.loop.step(time.monotonic_ns() + 1_000_000)
            for reader in clients:
                reader.read()
        return {"gone": site.gone, "throttled": throttled}


def test_a_client_that_never_reads_holds_a_small_part_of_the_descriptors_in_flight(as_nobody):
    """Ten clients that never read leave enough for all others: none is disconnected."""
    told = as_nobody(lambda path: play(path, deaf=10, readers=4, vectors=8))
    assert told == {"gone": [], "throttled": False}


def test_a_client_that_never_reads_is_disconnected_when_no_client_can_be_sent_to(as_nobody):
    """Sixty of them hold all descriptors in flight: as many as necessary are disconnected, and none that reads."""
    told = as_nobody(lambda path: play(path, deaf=60, readers=4, vectors=1))
    assert isinstance(told, dict), told
    assert told["throttled"]
    peers, reasons = zip(*told["gone"], strict=True)
    assert 0 < len(peers) == len(set(peers))
    assert max(peers) < 60
    assert all("does not read: " in why and "descriptors are in flight" in why for why in reasons)
