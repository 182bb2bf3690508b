"""A real QEMU as one more peer: of `ivsim serve`, beside a simulated machine, and of a run."""

from __future__ import annotations

import contextlib
import random
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
from nodes.device.profiles import PROFILES
from nodes.doorbells import NoLedger
from nodes.guest import FOREVER, Guest, Interrupt, Program
from nodes.vm import Vm
from sim.engines.qemu.qtest import DEFAULT_QEMU, Qemu, find_qemu
from sim.kernel.eventfd import drain
from sim.kernel.eventfd import signal as signal_line
from sim.wire.connection import Connection, connect
from tests.real_qemu import read_block

pytestmark = pytest.mark.qemu

VECTORS = 3
PATIENCE_S = 20.0


class Listener:
    """A program that keeps every interrupt."""

    def __init__(self) -> None:
        self.heard: list[Interrupt] = []

    def __call__(self, guest: Guest) -> Program:
        while True:
            interrupt = yield FOREVER
            if interrupt is not None:
                self.heard.append(interrupt)


class Machine:
    """A simulated machine in this process, connected to a server by its socket."""

    def __init__(self, path: Path) -> None:
        self._epoll = select.epoll()
        self.listener = Listener()
        self.vm = Vm(
            PROFILES["qemu-doorbell"],
            vectors=VECTORS,
            role="peer",
            signal=signal_line,
            ledger=NoLedger(),
            clock=time.monotonic_ns,
            random=random.Random(0),
            sample_every=0,
        )
        self.connection = Connection(
            connect(path), self.vm, on_own=lambda descriptor: self._epoll.register(descriptor, select.EPOLLIN)
        )
        self._epoll.register(self.connection.fileno(), select.EPOLLIN)

    def step(self) -> None:
        """Wait for one thing to happen, and take it in."""
        events = self._epoll.poll(PATIENCE_S, 1)
        assert events, "nothing happened"
        for descriptor, _ in events:
            if descriptor in self.connection.own:
                self.vm.deliver(self.connection.own[descriptor], drain(descriptor))
            else:
                assert self.connection.read(), "the server has gone"

    def meet(self, *vectors: int) -> None:
        while not (self.connection.is_set_up and self.connection.heard >= sum(vectors)):
            self.step()

    def close(self) -> None:
        self.vm.stop()
        self.connection.close()
        self._epoll.close()


@pytest.fixture(scope="session")
def qemu() -> str:
    return find_qemu(DEFAULT_QEMU)


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


@contextlib.contextmanager
def joined(qemu: str, path: Path) -> Iterator[Qemu]:
    """A QEMU without a guest whose ivshmem-doorbell is connected to ``path`` and has been probed by this test."""
    arguments = ["-machine", "pc", "-chardev", f"socket,path={path},id=iv"]
    arguments += ["-device", f"ivshmem-doorbell,chardev=iv,vectors={VECTORS},addr=04.0"]
    with Qemu(qemu, arguments) as machine:
        yield machine


SLOT = 4
BARS = {0: 0xFEB00000, 1: 0xFEB01000, 2: 0xE0000000}
MESSAGES = 0x100000  # guest memory: where a vector's message lands instead of at a processor
MESSAGE = 0xC0DE0000
DOORBELL, IVPOSITION = 12, 8


def probe(machine: Qemu) -> int:
    """What a driver does: place the BARs, decode memory, master the bus, enable MSI-X. Returns its own ID."""
    for bar, address in BARS.items():
        machine.config_write(SLOT, 0x10 + 4 * bar, 4, address)
    machine.config_write(SLOT, 0x04, 2, 0x0006)
    for vector in range(VECTORS):
        for word, value in enumerate((MESSAGES + 4 * vector, 0, MESSAGE + vector, 0)):
            machine.write(BARS[1] + 16 * vector + 4 * word, 4, value)
    control = machine.config_read(SLOT, 0x42, 2)
    machine.config_write(SLOT, 0x42, 2, control | 1 << 15)
    return machine.read(BARS[0] + IVPOSITION, 4)


def await_message(machine: Qemu, vector: int) -> None:
    """Turn QEMU's main loop until the vector's message has landed."""
    deadline_s = time.monotonic() + PATIENCE_S
    while machine.read(MESSAGES + 4 * vector, 4) != MESSAGE + vector:
        assert time.monotonic() < deadline_s, f"no message of vector {vector}"
        machine.settle()


def test_qemu_and_a_simulated_machine_ring_each_other_on_every_vector(qemu: str, directory: Path) -> None:
    path = directory / "s"
    with serving(path), contextlib.closing(Machine(path)) as simulated:
        simulated.meet(VECTORS)
        simulated.vm.start(simulated.listener)
        assert simulated.connection.peer == 0
        with joined(qemu, path) as real:
            assert probe(real) == 1
            simulated.meet(VECTORS, VECTORS)

            for vector in range(VECTORS):
                real.write(BARS[0] + DOORBELL, 4, 0 << 16 | vector)
                while len(simulated.listener.heard) <= vector:
                    simulated.step()
            assert simulated.listener.heard == [Interrupt(vector, 1) for vector in range(VECTORS)]

            for vector in range(VECTORS):
                simulated.vm.guest.ring(1, vector)
                await_message(real, vector)

            # Both read each other's writes in BAR2, at both ends of it.
            memory = simulated.vm.guest.memory
            for offset in (0, len(memory) - 8):
                memory[offset : offset + 8] = b"by the s"
                assert read_block(real, BARS[2] + offset, 8) == b"by the s"
                real.fill(BARS[2] + offset, 8, 0x42)
                assert bytes(memory[offset : offset + 8]) == b"\x42" * 8
        while 1 in simulated.vm.guest.peers:  # it has left, and is announced
            simulated.step()


def test_qemu_joins_a_run_and_its_doorbells_are_on_the_books(qemu: str, directory: Path, tmp_path: Path) -> None:
    path = directory / "s"
    rung = 100
    seen: list[int] = []

    def begin(begun: object) -> None:
        thread.start()

    def ring() -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not path.exists() and time.monotonic() < deadline_s:
            select.select([], [], [], 0.01)
        with joined(qemu, path) as real:
            seen.append(probe(real))
            for _ in range(rung):
                real.write(BARS[0] + DOORBELL, 4, 0 << 16 | 1)

    thread = threading.Thread(target=ring)
    result = sim.run(
        "ping_pong",
        runs=tmp_path,
        overrides={"run.duration_s": "3.0", "machines.ping.vectors": "3", "machines.echo.vectors": "3"},
        socket_path=path,
        on_begin=begin,
    )
    thread.join()
    assert seen == [2]  # after the two machines of the topology
    assert result.status == "finished"
    assert result.balanced
    assert any(event["kind"] == "foreign_peer_joined" for event in result.events())
    # QEMU's own doorbells are not counted: what the machine took beyond what the others rang is settled as QEMU's.
    assert result.summary["settled"] == rung


def test_the_machine_has_qemu_or_this_is_not_ci() -> None:
    """The tier may be skipped where there is no QEMU, and never in CI."""
    assert shutil.which(DEFAULT_QEMU) is not None
