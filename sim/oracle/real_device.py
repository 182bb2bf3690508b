"""A QEMU with one ivshmem device and a scripted server, to which operations are applied by qtest or its processor."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Sequence

from sim.engines.qemu.migration import send_state
from sim.engines.qemu.qtest import Qemu, config_read_lines, config_write_lines, read_line, write_line
from sim.oracle import firmware
from sim.oracle import operations as ops
from sim.oracle.operations import MESSAGE_BASE, WINDOWS, Access, Operation, Scene
from sim.oracle.scripted_server import ScriptedServer
from sim.oracle.simulated_device import Observation

SLOT = 4
REGISTER_WINDOWS = WINDOWS[0]
WINDOW_BYTES = 1 << 24
Place = tuple[int, int]
"""An (address, size)."""
Step = tuple[Operation, Place | None]
"""An operation, and where the pending bits are after it."""
Seen = tuple[list[int], list[list[bytes]], list[str]]
"""The values of the accesses; what was seen after each but the last; the answers to the last looks."""


class RealDevice:
    """Owns the QEMU and the server; the scene says who makes the accesses."""

    def __init__(self, qemu: str, scene: Scene) -> None:
        self._program, self._scene = qemu, scene
        self._connected = 0
        self._clean_up: list[str] = []
        self._cpu: firmware.GuestCpu | None = None
        self._stack = contextlib.ExitStack()
        self._start(scene.connected)

    def _start(self, connected: int, incoming: socket.socket | None = None) -> None:
        """Start a QEMU at a server of its own, and wait until it has heard of its own vectors.

        ``incoming``: it waits for the state of another one there.
        """
        scene = self._scene
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(ScriptedServer(scene.memory_bytes))
            arguments = ["-machine", scene.machine]
            role = ",master=on" if scene.role == "master" else ""
            if scene.vectors:
                server.greet(scene.peer)
                descriptor = server.client
                device = f"ivshmem-doorbell,chardev=iv,vectors={scene.vectors},addr={SLOT:#x}.0{role}"
                arguments += ["-chardev", f"socket,id=iv,fd={descriptor}", "-device", device]
            else:
                descriptor = server.region.descriptor
                path = f"/proc/self/fd/{descriptor}"
                backend = f"memory-backend-file,id=mem,share=on,size={scene.memory_bytes},mem-path={path}"
                arguments += ["-object", backend, "-device", f"ivshmem-plain,memdev=mem,addr={SLOT:#x}.0{role}"]
            inherit, accel = [descriptor], "tcg"
            if incoming is not None:
                arguments += ["-incoming", f"fd:{incoming.fileno()}"]
                inherit.append(incoming.fileno())
            self._cpu = None
            if scene.access != "qtest":
                self._cpu = stack.enter_context(firmware.GuestCpu())
                arguments += self._cpu.arguments
                inherit += self._cpu.inherit
                accel = scene.access
            self.qemu = stack.enter_context(Qemu(self._program, arguments, inherit, accel=accel))
            server.hand_over()
            if self._cpu is not None and incoming is None:
                self._cpu.start(self.qemu)
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

    def apply(self, operation: Operation, pending_at: Place | None = None) -> Observation:
        """Apply one operation; returns what can be seen afterwards. ``pending_at`` is where the pending bits are."""
        return self.apply_all([(operation, pending_at)])[0]

    def apply_all(self, steps: Sequence[Step]) -> list[Observation]:
        """Apply several accesses, of which only the last rings an eventfd, or one operation of another kind.

        What can be seen is looked at after each of them; the eventfds after the last. An operation that can ring an own
        eventfd is followed by a turn of the main loop, in which QEMU takes it; what the others do is done when they are
        answered.
        """
        places = [self._places(pending_at) for _, pending_at in steps]
        looks = _read_lines(places[-1])
        accesses = [operation for operation, _ in steps if isinstance(operation, Access)]
        if not accesses:
            self.qemu.ask(self._clean_up)
            self._apply(steps[-1][0])
            self.qemu.settle()
            values, seen, answers = [0], list[list[bytes]](), self.qemu.ask(looks)
        elif self._cpu is None:
            values, seen, answers = self._by_qtest(accesses, places[:-1], looks)
        else:
            values, seen, answers = self._by_cpu(self._cpu, accesses, places[:-1], looks)
        seen.append(_contents(answers))
        messages = seen[-1][0]
        self._clean_up = [f"memset {MESSAGE_BASE:#x} {len(messages):#x} 0x0"] if any(messages) else []
        rung = tuple(self._server.take_rung(but=self._scene.peer))
        observations = []
        for number, (messages, *rest) in enumerate(seen):
            value = values[number] if isinstance(steps[number][0], ops.ConfigRead | ops.Read) else None
            pending = int.from_bytes(rest[0], "little") if rest else None
            observations.append(Observation(value, pending, messages, rung if number == len(steps) - 1 else ()))
        return observations

    def _places(self, pending_at: Place | None) -> list[Place]:
        """The (address, size) of the memory of messages, and of the pending bits where they are mapped."""
        return [(MESSAGE_BASE, self._scene.message_bytes)] + ([pending_at] if pending_at else [])

    def _by_qtest(self, accesses: Sequence[Access], places: Sequence[Sequence[Place]], looks: list[str]) -> Seen:
        """Make the accesses by qtest, all in one go, and look at ``places`` after each but the last."""
        *earlier, last = accesses
        lines, value_at, look_at = list(self._clean_up), list[int](), list[slice]()
        for access_now, where in zip(earlier, places, strict=True):
            lines += _qtest_lines(access_now)
            value_at.append(len(lines) - 1)
            look_at.append(slice(len(lines), len(lines) + len(where)))
            lines += _read_lines(where)
            lines.append(f"memset {MESSAGE_BASE:#x} {self._scene.message_bytes:#x} 0x0")
        lines += _qtest_lines(last)
        value_at.append(len(lines) - 1)
        if _can_ring(last):
            answers = self.qemu.ask(lines)
            self.qemu.settle()
            answers += self.qemu.ask(looks)
        else:
            answers = self.qemu.ask([*lines, *looks])
        values = [int(answers[at] or "0", 0) for at in value_at]
        return values, [_contents(answers[which]) for which in look_at], answers[len(lines) :]

    def _by_cpu(
        self, cpu: firmware.GuestCpu, accesses: Sequence[Access], places: Sequence[Sequence[Place]], looks: list[str]
    ) -> Seen:
        """Have the processor make the accesses, and look at ``places`` after each but the last."""
        *earlier, last = accesses
        commands, value_at, copied_bytes = bytearray(), list[int](), 0
        for access_now, where in zip(earlier, places, strict=True):
            value_at.append(len(commands) // firmware.COMMAND_BYTES)
            commands += _command(access_now)
            for at, size in where:
                commands += firmware.copy(at, size, firmware.COPIES + copied_bytes)
                copied_bytes += size
            commands += firmware.clear(MESSAGE_BASE, self._scene.message_bytes)
        value_at.append(len(commands) // firmware.COMMAND_BYTES)
        commands += _command(last)
        self.qemu.ask([*self._clean_up, *firmware.wake_lines(bytes(commands))])
        cpu.wait(self.qemu)
        if _can_ring(last):
            self.qemu.settle()
        copies_at = [(firmware.COPIES, copied_bytes)] if copied_bytes else []
        reads = _read_lines([(firmware.COMMANDS, len(commands)), *copies_at])
        answers = self.qemu.ask([*reads, *looks])
        done, *copied = _contents(answers[: len(reads)])
        found, copies = firmware.results(done), io.BytesIO(*copied)
        seen = [[copies.read(size) for _, size in where] for where in places]
        return [found[at] for at in value_at], seen, answers[len(reads) :]

    def _apply(self, operation: Operation) -> None:
        qemu, server = self.qemu, self._server
        match operation:
            case ops.Ring(vector, count):
                if vector < min(self._connected, self._scene.vectors):
                    server.ring(self._scene.peer, vector, count)
                    qemu.settle()
            case ops.PeerJoins(peer, vectors):
                server.join(peer, vectors, turn=qemu.settle)
            case ops.PeerLeaves(peer):
                server.leave(peer, turn=qemu.settle)
            case ops.VectorsArrive(vectors):
                self._join_own(vectors)
            case ops.MovesToFreshServer():
                self._move()
            case ops.Reset():
                qemu.reset()
                if self._cpu is not None:
                    self._cpu.wait(qemu)

    def _move(self) -> None:
        """Migrate to a new QEMU, whose server is a fresh one: own vectors are there, peers are not."""
        old, source, connected = self._current, self.qemu, self._connected
        near, far = socket.socketpair()
        with near, far:
            self._start(0, incoming=far)
            far.close()
            send_state(source, self.qemu, near, fault="")
            if self._cpu is not None:
                self._cpu.start(self.qemu, boots=False)
        old.close()
        self._join_own(connected)


def _read_lines(places: Sequence[Place]) -> list[str]:
    return [f"read {at:#x} {size:#x}" for at, size in places]


def _contents(answers: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(answer[2:]) for answer in answers]


def _qtest_lines(operation: Access) -> list[str]:
    """The qtest commands that make an access; the last one has its value."""
    match operation:
        case ops.ConfigRead(offset, size):
            return config_read_lines(SLOT, offset, size)
        case ops.ConfigWrite(offset, size, value):
            return config_write_lines(SLOT, offset, size, value)
        case ops.Read(address, size):
            return [read_line(address, size)]
        case ops.Write(address, size, value):
            return [write_line(address, size, value)]


def _command(operation: Access) -> bytes:
    value = operation.value if isinstance(operation, ops.ConfigWrite | ops.Write) else None
    if isinstance(operation, ops.ConfigRead | ops.ConfigWrite):
        return firmware.config_access(SLOT, operation.offset, operation.size_bytes, value)
    return firmware.access(operation.address, operation.size_bytes, value)


def _can_ring(operation: Operation) -> bool:
    """Whether it can ring an own eventfd: only a write to the registers can, at any address that they are put at."""
    if not isinstance(operation, ops.Write):
        return False
    return any(base <= operation.address < base + WINDOW_BYTES for base in REGISTER_WINDOWS)
