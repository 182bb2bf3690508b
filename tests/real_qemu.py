"""What the tests ask of a real QEMU beside what `sim.oracle` does: QMP, what migration says there, and its memory.

JSON objects, one a line: commands one way; answers, errors and events the other (QEMU, docs/interop/qmp-spec).
:func:`monitor` gives a QEMU a monitor of its own, beside the one that :class:`sim.engines.qemu.qtest.Qemu` keeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import pytest

from nodes.errors import QemuError, UsageError
from sim.engines.qemu.peer import QemuPeer
from sim.engines.qemu.qmp import TIMEOUT_SECONDS, LineConnection
from sim.engines.qemu.qtest import Qemu
from sim.kernel.qemu_program import chosen_qemu, find_qemu, qemu_version

POLL_SECONDS = 0.005
PATIENCE_S = 60.0


MORE_QEMUS = [path for path in os.environ.get("IVSHMEM_MORE_QEMUS", "").split(os.pathsep) if path]
"""Programs of other versions, of which tests/qemu/test_versions.py tries a sample."""


def real_qemu() -> str:
    """The path of the QEMU that the tests use: that of IVSHMEM_QEMU, or the one on PATH. Skips the test without one.

    CI has one: there, the test fails.
    """
    try:
        return find_qemu()
    except UsageError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def qemus_in_words() -> str:
    """Which QEMUs the tests use, in one line."""
    try:
        used = f"{qemu_version(find_qemu())} ({chosen_qemu()})"
    except (UsageError, QemuError) as error:
        used = f"none: {error}"
    more = [str(qemu_version(path)) for path in MORE_QEMUS if os.access(path, os.X_OK)]
    return f"QEMU: {used}; a sample on {' and '.join(more) or 'no other version'}"


class QmpError(QemuError):
    """QEMU refused a command: its error class and its own words."""

    def __init__(self, kind: str, description: str) -> None:
        super().__init__(description)
        self.kind, self.description = kind, description


class Qmp:
    """One QMP connection; owns the socket. Events wait in ``events`` until they are asked for.

    Raises:
        QemuError: QEMU does not greet, or is gone.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._lines = LineConnection(sock, "QMP")
        self.events: deque[dict[str, Any]] = deque()
        try:
            json.loads(self._lines.line())
            self.execute("qmp_capabilities")
        except QemuError:
            self.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()

    def execute(self, command: str, **arguments: object) -> Any:
        """One command; what it returned.

        Raises:
            QmpError: QEMU refused it.
            QemuError: QEMU is gone.
        """
        self._lines.send(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        while True:
            answer = json.loads(self._lines.line())
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"]["class"], answer["error"]["desc"])
            else:
                return answer["return"]

    def wait_event(self, name: str) -> dict[str, Any]:
        """The next event of that name; those before it are dropped.

        Raises:
            QemuError: it did not come in time, or QEMU is gone.
        """
        while True:
            event = self.events.popleft() if self.events else json.loads(self._lines.line())
            if event.get("event") == name:
                return dict(event)

    def blockers(self) -> list[str]:
        """Why this machine cannot be migrated (query-migrate, blocked-reasons).

        The oldest reason first, though ``migrate`` is refused with the newest.
        """
        return list(self.execute("query-migrate").get("blocked-reasons", ()))

    def migrate(self, uri: str) -> dict[str, Any]:
        """Migrate to ``uri`` and wait for the end; what query-migrate says then.

        Raises:
            QmpError: it was refused.
            QemuError: it did not end in time, or QEMU is gone.
        """
        self.execute("migrate", uri=uri)
        return self.settled()

    def settled(self) -> dict[str, Any]:
        """Wait until a migration has ended, either way; what query-migrate says then.

        Raises:
            QemuError: it did not end in time, or QEMU is gone.
        """
        deadline_s = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline_s:
            answer = dict(self.execute("query-migrate"))
            if answer.get("status") in ("completed", "failed", "cancelled"):
                return answer
            time.sleep(POLL_SECONDS)
        raise QemuError(f"the migration did not end within {TIMEOUT_SECONDS:.0f} s: {answer}")


@contextlib.contextmanager
def monitor(path: str, arguments: Sequence[str]) -> Iterator[tuple[Qemu, Qmp]]:
    """A QEMU, and a monitor of its own for this connection.

    Raises:
        QemuError: it does not start; the message ends with what it printed.
    """
    near, far = socket.socketpair()
    with far, contextlib.ExitStack() as stack:
        stack.callback(near.close)
        number = far.fileno()
        chardev = ["-chardev", f"socket,id=second-monitor,fd={number}", "-qmp", "chardev:second-monitor"]
        machine = stack.enter_context(Qemu(path, [*chardev, *arguments], [number]))
        far.close()  # QEMU's end is QEMU's: when it dies, this one says so
        yield machine, stack.enter_context(Qmp(near))


def read_block(machine: Qemu, address: int, size_bytes: int) -> bytes:
    """Any number of bytes of its physical memory."""
    return bytes.fromhex(machine.ask([f"read {address:#x} {size_bytes:#x}"])[0].removeprefix("0x"))


def interrupt_itself(real: QemuPeer) -> None:
    """Ring QEMU's own ID until that arrives: its own vectors are announced last, after those of all other peers.

    It drops the doorbells of a peer that has not been announced (ivshmem.c, ivshmem_io_write).
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        real.ring(real.id, 0)
        with contextlib.suppress(TimeoutError):
            real.wait(0, timeout=0.1)
            return
    raise TimeoutError("QEMU does not interrupt itself")
