"""A QEMU with one ivshmem device and a scripted server, to which operations are applied by qtest."""

from __future__ import annotations

import contextlib
import os
import time

from nodes.errors import QemuError
from sim.engines.qemu.qtest import Qemu, config_read_lines, config_write_lines, read_line, write_line
from sim.oracle.operations import (
    MESSAGE_BASE,
    WINDOWS,
    ConfigRead,
    ConfigWrite,
    MovesToFreshServer,
    Operation,
    PeerJoins,
    PeerLeaves,
    Read,
    Reset,
    Ring,
    Scene,
    VectorsArrive,
    Write,
)
from sim.oracle.scripted_server import ScriptedServer
from sim.oracle.simulated_device import Observation

__all__ = ["RealDevice"]

SLOT = 4
MIGRATION_SECONDS = 60.0
REGISTER_WINDOWS = WINDOWS[0]
WINDOW_BYTES = 1 << 24


class RealDevice:
    """Owns the QEMU and the server."""

    def __init__(self, qemu: str, scene: Scene) -> None:
        self._program, self._scene = qemu, scene
        self._connected = 0
        self._clean_up: list[str] = []
        self._stack = contextlib.ExitStack()
        self._start(scene.connected)

    def _start(self, connected: int, *options: str) -> None:
        """Start a QEMU at a server of its own, and wait until it has heard of its own vectors."""
        scene = self._scene
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(ScriptedServer(scene.memory_bytes))
            arguments = ["-machine", scene.machine, *options]
            role = ",master=on" if scene.role == "master" else ""
            if scene.vectors:
                server.greet(scene.peer)
                inherit = server.client
                device = f"ivshmem-doorbell,chardev=iv,vectors={scene.vectors},addr={SLOT:#x}.0{role}"
                arguments += ["-chardev", f"socket,id=iv,fd={inherit}", "-device", device]
            else:
                inherit = server.region.descriptor
                path = f"/proc/self/fd/{inherit}"
                backend = f"memory-backend-file,id=mem,share=on,size={scene.memory_bytes},mem-path={path}"
                arguments += ["-object", backend, "-device", f"ivshmem-plain,memdev=mem,addr={SLOT:#x}.0{role}"]
            self.qemu = stack.enter_context(Qemu(self._program, arguments, [inherit]))
            server.hand_over()
            self._server = server
            self._connected = 0
            self._join_own(connected)
            self._current = stack.pop_all()
        self._stack.push(self._current)

    def _join_own(self, vectors: int) -> None:
        if self._scene.vectors and vectors:
            self._connected += vectors
            self._server.join(self._scene.peer, vectors, turn=self.qemu.settle)

    @property
    def memory(self) -> memoryview:
        """The shared memory, as its other users access it."""
        return self._server.memory

    def close(self) -> None:
        self._stack.close()

    def apply(self, operation: Operation, pending_at: tuple[int, int] | None = None) -> Observation:
        """Apply one operation; returns what can be seen afterwards.

        An operation that can ring an own eventfd is followed by a turn of the main loop, in which QEMU takes it; what
        the others do is done when they are answered.
        """
        places = [(MESSAGE_BASE, self._scene.message_bytes)] + ([pending_at] if pending_at else [])
        looks = [f"read {at:#x} {size:#x}" for at, size in places]
        lines = self._lines(operation)
        if lines and not _can_ring(operation):
            answers = self.qemu.ask([*self._clean_up, *lines, *looks])[len(self._clean_up) :]
        else:
            answers = self.qemu.ask([*self._clean_up, *lines])[len(self._clean_up) :]
            if not lines:
                self._apply(operation)
            self.qemu.settle()
            answers += self.qemu.ask(looks)
        is_read = isinstance(operation, ConfigRead | Read)
        value = int(answers[len(lines) - 1], 0) if is_read else None
        messages, *rest = (bytes.fromhex(answer[2:]) for answer in answers[len(lines) :])
        self._clean_up = [f"memset {MESSAGE_BASE:#x} {len(messages):#x} 0x0"] if any(messages) else []
        pending = int.from_bytes(rest[0], "little") if rest else None
        return Observation(value, pending, messages, tuple(self._server.take_rung(but=self._scene.peer)))

    def _lines(self, operation: Operation) -> list[str]:
        """The qtest commands of an access; none for what is no access."""
        match operation:
            case ConfigRead(offset, size):
                return config_read_lines(SLOT, offset, size)
            case ConfigWrite(offset, size, value):
                return config_write_lines(SLOT, offset, size, value)
            case Read(address, size):
                return [read_line(address, size)]
            case Write(address, size, value):
                return [write_line(address, size, value)]
        return []

    def _apply(self, operation: Operation) -> None:
        qemu, server = self.qemu, self._server
        match operation:
            case Ring(vector, count):
                if vector < min(self._connected, self._scene.vectors):
                    server.ring(self._scene.peer, vector, count)
                    qemu.settle()
            case PeerJoins(peer, vectors):
                server.join(peer, vectors, turn=qemu.settle)
            case PeerLeaves(peer):
                server.leave(peer, turn=qemu.settle)
            case VectorsArrive(vectors):
                self._join_own(vectors)
            case MovesToFreshServer():
                self._move()
            case Reset():
                qemu.reset()

    def _move(self) -> None:
        """Migrate to a new QEMU, whose server is a fresh one: own vectors are there, peers are not.

        The stream goes through a pipe. At its end, QEMU waits for the process that reads it: nothing may be asked of
        the destination before this end of the pipe is closed.
        """
        old, source, connected = self._current, self.qemu, self._connected
        read_end, write_end = os.pipe()
        try:
            ours = f"/proc/{os.getpid()}/fd"
            self._start(0, "-incoming", "defer")
            self.qemu.qmp("migrate-incoming", uri=f"exec:cat {ours}/{read_end}")
            source.qmp("migrate", uri=f"exec:cat > {ours}/{write_end}")
            _await_migration(source, "the source")
            os.close(write_end)
            write_end = -1
            _await_migration(self.qemu, "the destination")
        finally:
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)
        old.close()
        self._join_own(connected)


def _can_ring(operation: Operation) -> bool:
    """Whether it can ring an own eventfd: only a write to the registers can, at any address that they are put at."""
    if not isinstance(operation, Write):
        return False
    return any(base <= operation.address < base + WINDOW_BYTES for base in REGISTER_WINDOWS)


def _await_migration(qemu: Qemu, what: str) -> None:
    deadline_s = time.monotonic() + MIGRATION_SECONDS
    while (status := qemu.qmp("query-migrate").get("status")) != "completed":
        if status in ("failed", "cancelled") or time.monotonic() > deadline_s:
            raise QemuError(f"the migration did not complete on {what}: {status}")
        time.sleep(0.002)
