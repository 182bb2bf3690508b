"""One QEMU of a run: a process without a guest, with a relay to each of its ivshmem devices."""

from __future__ import annotations

import contextlib
import os
import socket

from nodes.errors import QemuError
from sim.engines.qemu.qtest import Qemu
from sim.engines.qemu.relay import Relay
from sim.kernel.qemu_program import find_qemu

__all__ = ["QemuMachine"]

FIRST_SLOT = 4
MASTER = {"peer": "off", "master": "on", "auto": "auto"}


class QemuMachine:
    """Owns the QEMU, once it is started, and its end of each connection.

    QEMU waits while it starts until each device has its ID and its memory: these are sent before.
    """

    def __init__(self, program: str | None = None) -> None:
        self._program = find_qemu(program)
        self._relays: list[Relay] = []
        self._far_ends: list[socket.socket] = []
        self._arguments = ["-machine", "pc"]
        self._qemu: Qemu | None = None
        self.descriptor = -1
        """A pidfd of the process: readable when it has ended."""

    def add_device(self, *, vectors: int, role: str) -> int:
        """One more device; its number."""
        number = len(self._relays)
        near, far = socket.socketpair()
        self._relays.append(Relay(near))
        self._far_ends.append(far)
        self._arguments += ["-chardev", f"socket,fd={far.fileno()},id=ivshmem{number}"]
        device = f"ivshmem-doorbell,chardev=ivshmem{number},vectors={vectors},master={MASTER[role]}"
        self._arguments += ["-device", f"{device},addr={self.slot(number):02x}.0"]
        return number

    def slot(self, number: int) -> int:
        """The PCI slot of a device, on bus 0."""
        return FIRST_SLOT + number

    def relay(self, number: int) -> Relay:
        return self._relays[number]

    @property
    def qemu(self) -> Qemu:
        """The process.

        Raises:
            QemuError: it has not been started, or was ended.
        """
        if self._qemu is None:
            raise QemuError("QEMU does not run")
        return self._qemu

    @property
    def is_running(self) -> bool:
        return self._qemu is not None

    def start(self) -> None:
        """Start the process, and wait until it has made its devices.

        Raises:
            QemuError: it does not start; the message ends with what it printed.
        """
        self._qemu = Qemu(self._program, self._arguments, [far.fileno() for far in self._far_ends])
        self.descriptor = os.pidfd_open(self._qemu.pid)
        self._close_far_ends()

    def _close_far_ends(self) -> None:
        for far in self._far_ends:
            far.close()
        self._far_ends.clear()

    def close(self) -> None:
        """End the process and close the connections; closing again is allowed."""
        qemu, self._qemu = self._qemu, None
        if qemu is not None:
            qemu.close()
        self._close_far_ends()
        for relay in self._relays:
            relay.close()
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self.descriptor)
            self.descriptor = -1
