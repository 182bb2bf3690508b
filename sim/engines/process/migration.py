"""A machine continues in a new process: what its worker does on either side of the fork.

The source pauses the program, completes its recording, saves the device's state and forks
(`sim.kernel.fork_handover`). The successor makes a new device that connects as any other does, puts the memory where
the program knows it and loads the state; then the source lets go, and only then the program is resumed.
"""

from __future__ import annotations

import contextlib
import os
import signal

from nodes.device.migration import RamMigration
from nodes.device.qemu_1_1.shared_object import check_size
from nodes.vm import Vm
from sim.kernel.fork_handover import Source, remap
from sim.kernel.memory import map_region
from sim.kernel.processes import work_ticks

PATIENCE_S = 20.0
REASON_BYTES_MAX = 2048  # less than a pipe takes in one piece


def let_go(side: Source, fault: str) -> str:
    """In the source: wait until the successor is ready, and leave the machine to it.

    ``fault`` as in `topologies.actions.Fault`.

    Returns:
        "" when the machine has left; otherwise why not. The successor has ended then, and the machine continues here.
    """
    if side.await_ready(PATIENCE_S, lambda: work_ticks(side.pid)):
        if fault == "source_dies":
            os.kill(os.getpid(), signal.SIGKILL)
        reason = "it was cancelled"
        if fault != "cancel":
            if side.commit():
                return ""
            reason = "its new process died"
    elif side.is_over:
        reason = "its new process died"
    else:
        reason = f"its new process made no progress for {PATIENCE_S:g} s"
    side.cancel()
    return reason


class FailurePipe:
    """A pipe, made before the fork, in which the successor tells its source why it gives up."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def give(self, reason: str) -> None:
        os.write(self._writing, reason.encode(errors="backslashreplace")[:REASON_BYTES_MAX])

    def take(self) -> str:
        """The reason; "" when the successor has given none."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._reading, REASON_BYTES_MAX).decode(errors="replace")
        return ""

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


class IncomingDevice:
    """In the successor: a new device, which takes the place of the one that was saved as ``state``.

    ``take(peer, descriptor)`` is called with the memory when the server has sent it. ``memory_bytes`` is how much of it
    was copied: all, when it is another domain's. ``fault``: with "late_memory", the state arrives before the memory.
    """

    def __init__(self, vm: Vm, state: bytes, *, elsewhere: bool, fault: str) -> None:
        self._vm, self._state, self._elsewhere, self._fault = vm, state, elsewhere, fault
        self._old = vm.device
        self._ram = RamMigration(self._old)
        self._memory = vm.guest.memory
        self.memory_bytes = 0
        size_bytes = len(self._memory) if self._old.profile.memory_container else None
        self._device = vm.make_device(
            self._old.profile, vectors=vm.guest.vectors, role=self._old.role, size_bytes=size_bytes
        )
        vm.replace(self._device)

    def take(self, peer: int, descriptor: int) -> None:
        """Raises ``UsageError`` when the memory, the state or the ID does not fit."""
        there = memoryview(map_region(descriptor))
        if self._old.profile.memory_container:
            check_size(len(self._memory), len(there))
        if self._fault != "late_memory":
            self._device.set_memory(there)
        if self._elsewhere:
            self.memory_bytes = self._ram.complete(self._device)
        else:
            self._ram.check(self._device)
        remap(self._memory, descriptor)
        self._vm.arrive(peer, self._memory, self._state)
