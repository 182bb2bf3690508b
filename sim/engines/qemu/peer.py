"""A real QEMU as a peer of a server, driven by a test in the place of its guest: its device, its doorbells, its memory.

A machine of a run is a `sim.engines.qemu.machine.QemuMachine` instead, whose messages pass through the simulator.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from nodes.guest import Interrupt
from sim.engines.qemu.qtest import Qemu
from sim.kernel.closeable import Closeable
from sim.kernel.qemu_program import find_qemu
from sim.wire.qemu_options import qemu_options

SLOT = 4
BARS = {0: 0xFEB0_0000, 1: 0xFEB0_1000, 2: 0x80_0000_0000}
COMMAND, MSIX_CONTROL, MSIX_ENABLE = 0x04, 0x42, 1 << 15
IVPOSITION, DOORBELL = 8, 12  # ivshmem-spec, "Device Registers"
MESSAGES, MESSAGE_DATA = 0x10_0000, 0xC0DE_0000  # guest memory: where a vector's message lands, for want of a processor


class QemuPeer(Closeable):
    """A QEMU with one ivshmem-doorbell device, probed as a driver would. A context manager.

    Args:
        path: the socket of the server, of dialect v0.
        vectors: how many vectors the device has.
        arguments: further arguments of QEMU.
        program: the QEMU; None: that of IVSHMEM_QEMU, or the one on PATH.

    Attributes:
        qemu: the process: QMP, guest memory, configuration space.
        id: its ID, as its IVPosition register shows it.

    Raises:
        UsageError: there is no such program.
        QemuError: it does not start; the message ends with what it printed.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, vectors: int, arguments: Sequence[str] = (), program: str | None = None
    ) -> None:
        self.vectors = vectors
        options = qemu_options(path, vectors).split(" ")
        options[-1] += f",addr={SLOT:02x}.0"
        self.qemu = Qemu(find_qemu(program), ["-machine", "pc", *options, *arguments])
        try:
            self._probe()
            self.id = self.read(0, IVPOSITION)
        except BaseException:
            self.close()
            raise

    def _probe(self) -> None:
        """Place the BARs, decode memory, master the bus, fill the MSI-X table and enable it."""
        for bar, address in BARS.items():
            self.qemu.config_write(SLOT, 0x10 + 4 * bar, 4, address & 0xFFFF_FFFF)
        self.qemu.config_write(SLOT, 0x10 + 4 * 3, 4, BARS[2] >> 32)  # BAR2 has 64 bits
        self.qemu.config_write(SLOT, COMMAND, 2, 0x0006)
        for vector in range(self.vectors):
            for word, value in enumerate((MESSAGES + 4 * vector, 0, MESSAGE_DATA + vector, 0)):
                self.write(1, 16 * vector + 4 * word, value)
        control = self.qemu.config_read(SLOT, MSIX_CONTROL, 2)
        self.qemu.config_write(SLOT, MSIX_CONTROL, 2, control | MSIX_ENABLE)

    def read(self, bar: int, offset: int, size_bytes: int = 4) -> int:
        """Read 1, 2, 4 or 8 bytes of a BAR as the guest would: 0 registers, 1 MSI-X table, 2 shared memory."""
        return self.qemu.read(BARS[bar] + offset, size_bytes)

    def write(self, bar: int, offset: int, value: int, size_bytes: int = 4) -> None:
        """Write 1, 2, 4 or 8 bytes of a BAR as the guest would."""
        self.qemu.write(BARS[bar] + offset, size_bytes, value)

    def ring(self, peer: int, vector: int = 0) -> None:
        """Write the doorbell register. QEMU drops a doorbell for a peer that it does not know."""
        self.write(0, DOORBELL, peer << 16 | vector)

    def wait(self, vector: int | None = None, *, timeout: float = 20.0) -> Interrupt:
        """Wait for an MSI-X message of a vector, or of any; how many doorbells it stands for, QEMU does not tell.

        Raises:
            TimeoutError: none came within ``timeout`` seconds.
        """
        deadline_s = time.monotonic() + timeout
        vectors = range(self.vectors) if vector is None else (vector,)
        while True:
            self.qemu.settle()
            for each in vectors:
                if self.qemu.read(MESSAGES + 4 * each, 4) == MESSAGE_DATA + each:
                    self.qemu.write(MESSAGES + 4 * each, 4, 0)
                    return Interrupt(each, 1)
            if time.monotonic() >= deadline_s:
                raise TimeoutError(f"no message of {'any vector' if vector is None else f'vector {vector}'}")

    def close(self) -> None:
        self.qemu.close()
