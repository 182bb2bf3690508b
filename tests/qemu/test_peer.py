"""A real QEMU as one more peer: of `ivsim serve`, beside a peer of this process, and of a run."""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sim
from nodes.guest import Interrupt
from sim.engines.qemu.peer import BARS, COMMAND, SLOT, QemuPeer
from sim.kernel.qemu_program import chosen_qemu
from tests.real_qemu import interrupt_itself, read_block
from topologies import loads

pytestmark = pytest.mark.qemu

VECTORS = 3
PATIENCE_S = 60.0


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="iv-") as path:
        yield Path(path)


@contextlib.contextmanager
def serving(path: Path, *, size: str = "1M") -> Iterator[None]:
    """`ivsim serve` as a process of its own; when it is told to end, nothing of it is left."""
    name = path.parent.name
    command = [sys.executable, "-m", "sim", "serve", "-F", "-S", str(path), "-n", str(VECTORS), "-l", size, "-M", name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert "serving" in server.stderr.readline()
        try:
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE_S) == 0
    assert not path.exists()
    assert not Path("/dev/shm", name).exists()


def test_qemu_and_a_peer_ring_each_other_on_every_vector(directory: Path) -> None:
    path = directory / "s"
    with serving(path), sim.connect(path, vectors=VECTORS, timeout=PATIENCE_S) as peer:
        assert peer.id == 0
        with QemuPeer(path, vectors=VECTORS) as real:
            assert real.id == 1
            assert peer.wait_for_peers() == {1: VECTORS}
            interrupt_itself(real)
            for vector in range(VECTORS):
                real.ring(peer.id, vector)
                assert peer.wait() == Interrupt(vector, 1)
            for vector in range(VECTORS):
                peer.ring(real.id, vector)
                assert real.wait() == Interrupt(vector, 1)
            with pytest.raises(TimeoutError, match="no message of vector 2"):
                real.wait(2, timeout=0)
            # Both read each other's writes in BAR2, at both ends of it.
            memory = peer.memory
            for offset in (0, len(memory) - 8):
                memory[offset : offset + 8] = b"by the s"
                assert read_block(real.qemu, BARS[2] + offset, 8) == b"by the s"
                real.qemu.fill(BARS[2] + offset, 8, 0x42)
                assert bytes(memory[offset : offset + 8]) == b"\x42" * 8
        while real.id in peer.peers:  # it has left, and is announced
            select.select([peer], [], [], PATIENCE_S)


JOINED = """
[run]
duration_s = 100
warmup_s = 0
[defaults]
vectors = 3
[machines.ping]
program = "ping"
parameters = {{ to = "echo" }}
[machines.echo]
program = "echo"
parameters = {{ to = "ping" }}
[machines.rung]
program = "idle"
[[timeline]] # as long as a QEMU takes to start and to ring
when = "delivered >= {rung}"
of = "rung"
do = "end"
"""


def test_qemu_joins_a_run_and_its_doorbells_are_counted(directory: Path, tmp_path: Path) -> None:
    path = directory / "s"
    rung = 100
    seen: list[int] = []

    def begin(begun: object) -> None:
        thread.start()

    def ring() -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not path.exists() and time.monotonic() < deadline_s:
            select.select([], [], [], 0.01)
        with QemuPeer(path, vectors=VECTORS) as real:
            seen.append(real.id)
            interrupt_itself(real)
            for _ in range(rung):
                real.ring(2, 1)
            over.wait(PATIENCE_S)

    thread, over = threading.Thread(target=ring), threading.Event()
    result = sim.run(loads(JOINED.format(rung=rung)), runs=tmp_path, socket_path=path, on_begin=begin)
    over.set()
    thread.join()
    assert seen == [3]  # after the machines of the topology
    assert (result.status, result.balanced) == ("finished", True), result.reason
    assert [event["peer"] for event in result.events() if event["kind"] == "foreign_peer_joined"] == seen
    # QEMU's own doorbells are not counted: what the machine took beyond what the others rang is settled as QEMU's.
    assert result.summary["settled"] == rung


def test_the_machine_has_qemu_or_this_is_not_ci() -> None:
    """The tier may be skipped where there is no QEMU, and never in CI."""
    assert shutil.which(chosen_qemu()) is not None


def test_attach_says_that_a_guest_cannot_be_interrupted(directory: Path) -> None:
    path, monitor = directory / "s", directory / "qmp"
    with (
        serving(path),
        QemuPeer(path, vectors=2, arguments=["-qmp", f"unix:{monitor},server=on,wait=off"]) as real,
    ):
        command = [sys.executable, "-m", "sim", "attach", "-S", str(path), "ring", str(real.id), "--qmp", str(monitor)]
        heard = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        assert heard.stderr.splitlines()[-1] == "rang 1 doorbell"
        real.qemu.config_write(SLOT, COMMAND, 2, 0x0002)
        deaf = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert f"peer {real.id} cannot interrupt its guest: bus mastering is off" in deaf.stderr
