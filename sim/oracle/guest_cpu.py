"""The processor of a QEMU, which makes the accesses that it is told to make, as a driver's code would."""

from __future__ import annotations

import contextlib
import os
import socket
from types import TracebackType

from nodes.errors import QemuError
from sim.engines.qemu.qtest import LineConnection, Qemu
from sim.oracle import firmware


class GuestCpu:
    """Owns the firmware that QEMU reads, and the connection to the debug port.

    QEMU is started with ``arguments`` and the descriptors in ``inherit``; then comes `start`.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            image = os.memfd_create("firmware", os.MFD_CLOEXEC)
            stack.callback(os.close, image)
            os.write(image, firmware.image())
            near, far = socket.socketpair()
            stack.callback(far.close)
            self._done = LineConnection(near, "debug port")
            stack.callback(self._done.close)
            self._far = far
            self._stack = stack.pop_all()
        self.inherit = [image, far.fileno()]
        self.arguments = [
            *("-bios", f"/proc/self/fd/{image}"),
            *("-chardev", f"socket,id=done,fd={far.fileno()}"),
            *("-device", f"isa-debugcon,chardev=done,iobase={firmware.DEBUG_PORT:#x}"),
        ]

    def __enter__(self) -> GuestCpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, qemu: Qemu, *, boots: bool = True) -> None:
        """Let the processor run; it boots, or goes on where the migration has stopped it."""
        self._far.close()
        qemu.qmp("cont")
        if boots:
            self.wait(qemu)

    def wait(self, qemu: Qemu) -> None:
        """Return when the processor has booted, or has made its access.

        Raises:
            QemuError: QEMU is gone, or the processor does nothing.
        """
        try:
            self._done.line()
        except QemuError as error:
            raise QemuError(f"{error}; {qemu.end()}") from error


def wake_lines(commands: bytes) -> list[str]:
    """The qtest commands that have the processor do a list of commands of `sim.oracle.firmware`."""
    whole = commands + bytes(8)
    write = f"write {firmware.COMMANDS:#x} {len(whole):#x} 0x{whole.hex()}"
    return [write, f"writel {firmware.MESSAGES:#x} {firmware.WAKE:#x}"]
