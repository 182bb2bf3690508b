"""A real QEMU, controlled by its qtest line protocol and by QMP.

With ``-S`` it runs no guest code before the QMP command ``cont``; qtest reads and writes ports and physical memory, one
line each way (QEMU, softmmu/qtest.c). All its sockets are inherited pairs: there are no paths to clean up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nodes.errors import QemuError
from sim.engines.qemu.qmp import BrokenConnectionError, LineConnection, Qmp
from sim.kernel.closeable import Closeable
from sim.kernel.processes import describe_exit, end_with_parent

END_SECONDS = 5.0
LAST_WORDS_CHARACTERS = 400
SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC  # PCI 3.0, 3.2.2.3.2


def read_line(address: int, size_bytes: int) -> str:
    """The command that reads 1, 2, 4 or 8 bytes of physical memory."""
    return f"read{SUFFIX[size_bytes]} {address:#x}"


def write_line(address: int, size_bytes: int, value: int) -> str:
    """The command that writes 1, 2, 4 or 8 bytes of physical memory."""
    return f"write{SUFFIX[size_bytes]} {address:#x} {value:#x}"


def config_read_lines(slot: int, offset: int, size_bytes: int) -> list[str]:
    """The commands that read the configuration space of function ``slot``.0 on bus 0; the last one has the value."""
    return [_select(slot, offset), f"in{SUFFIX[size_bytes]} {CONFIG_DATA + (offset & 3):#x}"]


def config_write_lines(slot: int, offset: int, size_bytes: int, value: int) -> list[str]:
    """The commands that write the configuration space of function ``slot``.0 on bus 0."""
    return [_select(slot, offset), f"out{SUFFIX[size_bytes]} {CONFIG_DATA + (offset & 3):#x} {value:#x}"]


def _select(slot: int, offset: int) -> str:
    return f"outl {CONFIG_ADDRESS:#x} {1 << 31 | slot << 11 | offset & ~3:#x}"


class Qemu(Closeable):
    """Owns one QEMU process. ``arguments`` may name the descriptors in ``inherit`` by number.

    ``accel`` is the accelerator of its processor.

    Raises:
        QemuError: it does not start; the message ends with what it printed.
    """

    def __init__(self, path: str, arguments: Sequence[str], inherit: Iterable[int] = (), *, accel: str = "tcg") -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (close() closes it)
        with contextlib.ExitStack() as far_ends:
            near_qtest, far_qtest = socket.socketpair()
            near_qmp, far_qmp = socket.socketpair()
            far_ends.callback(far_qtest.close)
            far_ends.callback(far_qmp.close)
            self._qtest = LineConnection(near_qtest, "qtest")
            self._qmp = Qmp(near_qmp)
            command = [
                *(path, "-nodefaults", "-display", "none", "-accel", accel, "-S", "-m", "16M"),
                *(
                    "-chardev",
                    f"socket,id=qt,fd={far_qtest.fileno()}",
                    "-object",
                    "qtest,id=qtest0,chardev=qt,log=/dev/null",
                ),
                *("-chardev", f"socket,id=ivsim-qmp,fd={far_qmp.fileno()}", "-qmp", "chardev:ivsim-qmp"),
                *arguments,
            ]
            descriptors = [far_qtest.fileno(), far_qmp.fileno(), *inherit]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=descriptors,
                start_new_session=True,  # a terminal's signals are for its user
                preexec_fn=end_with_parent,  # noqa: PLW1509  (the caller has one thread, or is a test)
            )
        try:
            self._qmp.negotiate()
        except QemuError as error:
            how = self.end()
            self.close()
            raise QemuError(f"{path} did not start: {how}") from error

    def close(self) -> None:
        """End the process and close the connections; ``printed`` keeps what it printed."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._qtest.close()
        self._qmp.close()
        if not self._stderr.closed:
            self.printed = self._read_printed()
            self._stderr.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> str:
        """Wait until the process has ended, for a moment; how it ended, in words, with what it printed last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        code = self._process.poll()
        how = "QEMU does not answer" if code is None else f"QEMU ended ({describe_exit(code)})"
        words = (self.printed if self._stderr.closed else self._read_printed())[-LAST_WORDS_CHARACTERS:]
        return f"{how}: {words}" if words else how

    def _read_printed(self) -> str:
        # Not seek and read: QEMU writes at the same offset.
        size_bytes = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size_bytes, 0).decode(errors="replace").strip()

    printed = ""

    @contextlib.contextmanager
    def _named_end(self) -> Iterator[None]:
        """An error of a connection says how QEMU has ended."""
        try:
            yield
        except BrokenConnectionError as error:
            raise QemuError(self.end()) from error

    def qmp(self, command: str, **arguments: object) -> Any:
        with self._named_end():
            return self._qmp.execute(command, **arguments)

    def give_descriptor(self, name: str, sock: socket.socket) -> None:
        """Pass a socket to QEMU, which commands then know by this name."""
        with self._named_end():
            self._qmp.give_descriptor(name, sock.fileno())

    def wait_for(self, event: str) -> None:
        """Return once QEMU has sent this event, which then counts as seen.

        Raises:
            QemuError: it did not come in time, or QEMU is gone.
        """
        with self._named_end():
            self._qmp.wait_for(event)

    def ask(self, lines: Sequence[str]) -> list[str]:
        """Run several qtest commands at once; returns the text after each ``OK``.

        Raises:
            QemuError: one failed, or QEMU is gone.
        """
        with self._named_end():
            self._qtest.send("".join(line + "\n" for line in lines))
            return [self._ok(line) for line in lines]

    def _ok(self, line: str) -> str:
        """The answer to one command, without its OK."""
        while (answer := self._qtest.line()).startswith("IRQ"):
            pass
        if not answer.startswith("OK"):
            raise QemuError(f"qtest {line!r}: {answer}")
        return answer[2:].strip()

    def settle(self, rounds: int = 1) -> None:
        """Let the main loop make ``rounds`` turns; each handles what was ready before it began."""
        for _ in range(rounds):
            self.ask(["inb 0x80"])

    def read(self, address: int, size_bytes: int) -> int:
        """Read 1, 2, 4 or 8 bytes of physical memory, as a processor's load."""
        return int(self.ask([read_line(address, size_bytes)])[0], 0)

    def write(self, address: int, size_bytes: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes of physical memory, as a processor's store."""
        self.ask([write_line(address, size_bytes, value)])

    def fill(self, address: int, size_bytes: int, byte: int) -> None:
        self.ask([f"memset {address:#x} {size_bytes:#x} {byte:#x}"])

    def config_read(self, slot: int, offset: int, size_bytes: int) -> int:
        """Read 1, 2 or 4 bytes of the configuration space of function ``slot``.0 on bus 0."""
        return int(self.ask(config_read_lines(slot, offset, size_bytes))[1], 0)

    def config_write(self, slot: int, offset: int, size_bytes: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of the configuration space of function ``slot``.0 on bus 0."""
        self.ask(config_write_lines(slot, offset, size_bytes, value))

    def reset(self) -> None:
        """Reset the machine and wait for its RESET event."""
        self._qmp.seen.pop("RESET", 0)
        self.qmp("system_reset")
        self.wait_for("RESET")
