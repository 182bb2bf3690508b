"""A bare 64-bit guest, as firmware, and its processor: it does a list of commands whenever it is interrupted.

QEMU maps `firmware` by its option ``-bios``, and the processor starts in it. The guest goes to long mode, with memory
mapped at its own addresses, and halts. Vector `WAKE` wakes it; the interrupt comes from outside, as a store of that
number to `MESSAGES`. It then does the commands at `COMMANDS` up to one of zeros and writes a line feed to the debug
port. It writes one after each start, too.

The source is ``firmware.S`` beside this file. `CODE` is what an assembler makes of it, so that a host needs none; a
test compares both.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from nodes.errors import QemuError
from sim.engines.qemu.qmp import LineConnection
from sim.engines.qemu.qtest import Qemu
from sim.kernel.closeable import Closeable

IMAGE_BYTES = 1 << 16  # QEMU wants whole 64 KiB, and maps the last ones below 1 MiB as well
BASE = 0xF0000
RESET_VECTOR, JUMP_TO_BOOT = 0xFFF0, bytes.fromhex("ea000000f0")  # ljmpw $0xf000, $0
WAKE = 0x40
MESSAGES = 0xFEE0_0000
"""Where a PC takes messages of interrupts (Intel SDM, volume 3, 11.11)."""
DEBUG_PORT = 0xE9
COMMANDS, COMMAND_BYTES, RESULT_AT = 0x30_0000, 40, 24
"""A command: what to call, the address or the port, the value, the result, what to write to port 0xcf8 before."""
COPIES = 0x40_0000
"""Memory that nothing else uses."""
CONFIG_ENABLE, CONFIG_DATA = 1 << 31, 0xCFC  # PCI 3.0, 3.2.2.3.2

ACCESSES, ACCESS_BYTES = 0x200, 16
_KINDS = [(kind, size) for kind in ("load", "store") for size in (1, 2, 4, 8)]
_KINDS += [(kind, size) for kind in ("in", "out") for size in (1, 2, 4)]
_KINDS += [("copy", 8), ("clear", 8)]

CODE = bytes.fromhex(
    "fa2e660f011668010f20c00c010f22c066ea18000f000800b8100000008ed88ec08ed0c7050010000003200000c70500200000030001"
    "00c7050820000003100100c7051020000003200100c7051820000003300100c7052021000003400100b88300000031d2bf0000010089"
    "0789570405000020007305ba0900000083c70881ff0050010075e4b8001000000f22d8b8200000000f22e0b9800000c0b80001000031"
    "d20f300f20c00d000000800f22c0eab7000f001800bc00900000b808010f006689042500440000c70425024400001800008ec1e81089"
    "042506440000c704250a440000000000000f011c256e010f00bd0000e0fec785f0000000ff010000b00ae6e9fbf4ebfdbb00003000eb"
    "208b432085c07406baf80c0000ef488b7b0889fa488b4310ff134889431883c32848833b0075dac785b000000000000000b00ae6e948"
    "cf0000000000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf001f0048010f000f040040"
).ljust(ACCESSES, b"\0") + b"".join(
    bytes.fromhex(access).ljust(ACCESS_BYTES, b"\0")
    for access in (
        *("0fb607c3", "0fb707c3", "8b07c3", "488b07c3", "8807c3", "668907c3", "8907c3", "488907c3"),
        *("ecc3", "66edc3", "edc3", "eec3", "66efc3", "efc3"),
        *("89c189fe488b7b18f348a5c3", "89c131c0f348abc3"),
    )
)


def firmware() -> bytes:
    """The firmware, as QEMU's option ``-bios`` takes it."""
    return (CODE.ljust(RESET_VECTOR, b"\0") + JUMP_TO_BOOT).ljust(IMAGE_BYTES, b"\0")


def access(address: int, size_bytes: int, value: int | None = None) -> bytes:
    """The command that loads 1, 2, 4 or 8 bytes, or stores ``value``."""
    return _command("load" if value is None else "store", size_bytes, address, value or 0)


def config_access(slot: int, offset: int, size_bytes: int, value: int | None = None) -> bytes:
    """The command that reads 1, 2 or 4 bytes of configuration space of function ``slot``.0, or writes ``value``."""
    select = CONFIG_ENABLE | slot << 11 | offset & ~3
    return _command("in" if value is None else "out", size_bytes, CONFIG_DATA + offset % 4, value or 0, select=select)


def copy(address: int, size_bytes: int, to: int) -> bytes:
    """The command that copies memory, in loads and stores of 8 bytes."""
    return _command("copy", 8, address, size_bytes // 8, result=to)


def clear(address: int, size_bytes: int) -> bytes:
    """The command that sets memory to zero, in stores of 8 bytes."""
    return _command("clear", 8, address, size_bytes // 8)


def results(commands: bytes) -> list[int]:
    """The results in a list of commands that was done."""
    fields = range(RESULT_AT, len(commands), COMMAND_BYTES)
    return [int.from_bytes(commands[at : at + 8], "little") for at in fields]


def _command(kind: str, size_bytes: int, place: int, value: int, *, result: int = 0, select: int = 0) -> bytes:
    code = BASE + ACCESSES + ACCESS_BYTES * _KINDS.index((kind, size_bytes))
    return struct.pack("<5Q", code, place, value, result, select)


class GuestCpu(Closeable):
    """Owns the firmware that QEMU reads, and the connection to the debug port.

    QEMU is started with ``arguments`` and the descriptors in ``inherit``; then comes `start`.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            image = os.memfd_create("firmware", os.MFD_CLOEXEC)
            stack.callback(os.close, image)
            os.write(image, firmware())
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
            *("-device", f"isa-debugcon,chardev=done,iobase={DEBUG_PORT:#x}"),
        ]

    def close(self) -> None:
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
    """The qtest commands that have the processor do a list of commands of this firmware."""
    whole = commands + bytes(8)
    write = f"write {COMMANDS:#x} {len(whole):#x} 0x{whole.hex()}"
    return [write, f"writel {MESSAGES:#x} {WAKE:#x}"]
