"""One QEMU of a run: a process without a guest, with a relay to each of its ivshmem devices."""

from __future__ import annotations

import contextlib
import os
import socket

from nodes.errors import QemuError
from sim.engines.qemu.guest_command import MASTER
from sim.engines.qemu.qtest import Qemu
from sim.engines.qemu.relay import Relay
from sim.kernel.qemu_program import find_qemu

FIRST_SLOT = 4
EJECT_PORT = 0xAE08


class QemuMachine:
    """Owns the QEMU, once it is started, and its end of each connection.

    QEMU waits while it starts until each device has its ID and its memory: these are sent before.

    Args:
        incoming: it waits for the state of another machine, which is sent to it on ``state``.
    """

    def __init__(self, *, incoming: bool = False) -> None:
        self._program = find_qemu()
        self.state: socket.socket | None = None
        self.relays: list[Relay] = []
        self._far_ends: list[socket.socket] = []
        self._arguments = ["-machine", "pc"]
        self._qemu: Qemu | None = None
        self.descriptor = -1
        """A pidfd of the process: readable when it has ended."""
        self._peers_left = False
        if incoming:
            self.state, far = socket.socketpair()
            self._far_ends.append(far)
            self._arguments += ["-incoming", f"fd:{far.fileno()}"]

    def add_device(self, *, vectors: int, role: str) -> int:
        """One more device; its number."""
        number = len(self.relays)
        near, far = socket.socketpair()
        self.relays.append(Relay(near))
        self._far_ends.append(far)
        self._arguments += ["-chardev", f"socket,fd={far.fileno()},id=ivshmem{number}"]
        device = f"ivshmem-doorbell,id=device{number},chardev=ivshmem{number},vectors={vectors},master={MASTER[role]}"
        self._arguments += ["-device", f"{device},addr={self.slot(number):02x}.0"]
        return number

    def leave(self, number: int, peer: int) -> None:
        """Tell a device that a peer has left."""
        self._peers_left = True
        self.relays[number].leave(peer)

    @property
    def why_not_unplugged(self) -> str:
        """Why device_del would end QEMU; "" if it would not. `sim.engines.qemu.guest_devices` has the reason."""
        return "device_del aborts a QEMU that has heard of a peer's leave" if self._peers_left else ""

    def unplug(self, number: int) -> None:
        """Remove a device: device_del, and the guest's part of it (QEMU, docs/specs/acpi_pci_hotplug, "eject").

        Raises:
            QemuError: QEMU did not remove it.
        """
        self.qemu.qmp("device_del", id=f"device{number}")
        self.qemu.ask([f"outl {EJECT_PORT:#x} {1 << self.slot(number):#x}"])
        self.qemu.wait_for("DEVICE_DELETED")

    def slot(self, number: int) -> int:
        """The PCI slot of a device, on bus 0."""
        return FIRST_SLOT + number

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
        if self.state is not None:
            self.state.close()
        for relay in self.relays:
            relay.close()
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self.descriptor)
            self.descriptor = -1
