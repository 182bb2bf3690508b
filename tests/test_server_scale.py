"""`ivsim serve` with sixty-four real QEMUs at once: where QEMU's own server loses eventfds, none is lost.

By hand: IVSIM_TRIES=10 for ten tries, IVSIM_MUTE=100 for a hundred clients beside them that never read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from sim.oracle.qtest import DEFAULT_QEMU, find_qemu
from tests.test_serve import serving

pytestmark = pytest.mark.qemu

MACHINES, VECTORS = 64, 8
OWN_EVENTFDS = 3  # reference: 515 of a QEMU that has all 512
PATIENCE_S = 60.0
TRIES = int(os.environ.get("IVSIM_TRIES", "1"))
MUTE = int(os.environ.get("IVSIM_MUTE", "10"))


class Crowd:
    """QEMUs without a guest, and nothing to drive them with: each holds what the server sent it."""

    def __init__(self, stack: contextlib.ExitStack, path: Path) -> None:
        self._stack, self._path, self._qemu = stack, path, find_qemu(DEFAULT_QEMU)
        self.machines: list[subprocess.Popen[bytes]] = []

    def start(self, count: int) -> None:
        for _ in range(count):
            self.machines.append(
                subprocess.Popen(
                    [
                        *(self._qemu, "-nodefaults", "-display", "none", "-accel", "tcg", "-S", "-m", "16M"),
                        *("-machine", "pc", "-chardev", f"socket,path={self._path},id=iv"),
                        *("-device", f"ivshmem-doorbell,chardev=iv,vectors={VECTORS}"),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
            self._stack.callback(_end, self.machines[-1])

    def stop(self, count: int) -> None:
        for _ in range(count):
            _end(self.machines.pop(0))

    def await_eventfds(self, expected: int) -> float:
        """Until every one holds so many; how long that took."""
        started_s = time.monotonic()
        while (counts := {eventfds(machine.pid) for machine in self.machines}) != {expected}:
            assert time.monotonic() - started_s < PATIENCE_S, f"expected {expected} eventfds each, found {counts}"
            assert all(machine.poll() is None for machine in self.machines), "a QEMU has ended"
            time.sleep(0.05)
        return time.monotonic() - started_s


def _end(machine: subprocess.Popen[bytes]) -> None:
    if machine.returncode is not None:
        return
    machine.kill()
    _, printed = machine.communicate()
    assert printed == b""


def eventfds(pid: int) -> int:
    count = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                count += os.readlink(f"/proc/{pid}/fd/{name}") == "anon_inode:[eventfd]"
    return count


@pytest.mark.timeout(300 * TRIES)
@pytest.mark.parametrize("attempt", range(TRIES))
@pytest.mark.parametrize("mute", [0, MUTE])
def test_every_one_of_64_qemus_holds_every_eventfd(attempt: int, mute: int, short_path: Path) -> None:
    path = short_path / "s"
    expected = (MACHINES + mute) * VECTORS + OWN_EVENTFDS
    with serving(path, "-n", str(VECTORS)) as server, contextlib.ExitStack() as stack:
        for _ in range(mute):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(os.fspath(path))
        crowd = Crowd(stack, path)
        started_s = time.monotonic()
        crowd.start(MACHINES)
        crowd.await_eventfds(expected)
        up_s = time.monotonic() - started_s
        crowd.stop(MACHINES // 2)
        crowd.await_eventfds(expected - MACHINES // 2 * VECTORS)
        crowd.start(MACHINES // 2)
        took_s = crowd.await_eventfds(expected)
        print(f"{mute} mute: {MACHINES} up in {up_s:.2f} s, half of them anew in {took_s:.2f} s")
        assert server.poll() is None


def test_a_qemu_that_is_not_let_in_says_why(short_path: Path) -> None:
    path = short_path / "s"
    with serving(path, "--max-clients", "1"), contextlib.ExitStack() as stack:
        crowd = Crowd(stack, path)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(os.fspath(path))
        crowd.start(1)
        refused = crowd.machines[0]
        _, printed = refused.communicate(timeout=PATIENCE_S)
    assert refused.returncode == 1
    assert b"server sent version -87, expecting 0" in printed
