"""`ivsim serve` with 64 real QEMUs at once: no eventfd is lost, as some are by QEMU's own server.

By hand: IVSIM_TRIES=10 for ten tries, IVSIM_MUTE=100 for a hundred clients beside them that never read, and
`python -m tests.qemu.test_server_scale` for what those cost the others.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.kernel.channel import Channel
from sim.kernel.qemu_program import find_qemu
from tests.system.test_serve import serving

pytestmark = pytest.mark.qemu

MACHINES, VECTORS = 64, 8
OWN_EVENTFDS = 3  # reference: 515 of a QEMU that has all 512
PATIENCE_S = 60.0
TRIES = int(os.environ.get("IVSIM_TRIES", "1"))
MUTE = int(os.environ.get("IVSIM_MUTE", "10"))


class QemuGroup:
    """QEMUs without a guest, of which each holds what the server sent it."""

    def __init__(self, stack: contextlib.ExitStack, path: Path) -> None:
        self._stack, self._path, self._qemu = stack, path, find_qemu()
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
@pytest.mark.sample(TRIES)
@pytest.mark.parametrize("attempt", range(TRIES))
@pytest.mark.parametrize("mute", [0, MUTE])
def test_every_one_of_64_qemus_holds_every_eventfd(attempt: int, mute: int, short_path: Path) -> None:
    path = short_path / "s"
    expected = (MACHINES + mute) * VECTORS + OWN_EVENTFDS
    with serving(path, "-n", str(VECTORS)) as server, contextlib.ExitStack() as stack:
        for _ in range(mute):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(os.fspath(path))
        qemus = QemuGroup(stack, path)
        started_s = time.monotonic()
        qemus.start(MACHINES)
        qemus.await_eventfds(expected)
        up_s = time.monotonic() - started_s
        qemus.stop(MACHINES // 2)
        qemus.await_eventfds(expected - MACHINES // 2 * VECTORS)
        qemus.start(MACHINES // 2)
        took_s = qemus.await_eventfds(expected)
        print(f"{mute} mute: {MACHINES} up in {up_s:.2f} s, half of them anew in {took_s:.2f} s")
        assert server.poll() is None


def test_a_qemu_that_is_refused_prints_why(short_path: Path) -> None:
    path = short_path / "s"
    with serving(path, "--max-clients", "1"), contextlib.ExitStack() as stack:
        qemus = QemuGroup(stack, path)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(os.fspath(path))
        qemus.start(1)
        refused = qemus.machines[0]
        _, printed = refused.communicate(timeout=PATIENCE_S)
    assert refused.returncode == 1
    assert b"server sent version -87, expecting 0" in printed


COMPANIES = ("none", "that read", "that never read")


@contextlib.contextmanager
def company(kind: str, count: int, path: Path) -> Iterator[None]:
    """So many clients beside the QEMUs; those that read throw away what they are sent."""
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        channels = [Channel(stack.enter_context(socket.socket(socket.AF_UNIX))) for _ in range(count)]
        for channel in channels:
            channel.socket.setblocking(True)
            channel.socket.connect(os.fspath(path))
            channel.socket.setblocking(False)
        if kind == "that read":
            thread = threading.Thread(target=_read_all, args=(channels, over))
            thread.start()
            stack.callback(thread.join)
            stack.callback(over.set)
        yield


def _read_all(channels: list[Channel], over: threading.Event) -> None:
    poll = select.poll()
    for channel in channels:
        poll.register(channel.fileno(), select.POLLIN)
    by_number = {channel.fileno(): channel for channel in channels}
    while not over.is_set():
        for number, _ in poll.poll(50):
            while received := by_number[number].receive(8):
                for descriptor in received[1]:
                    os.close(descriptor)
                if not received[0]:
                    poll.unregister(number)
                    break


def up_s(kind: str, count: int) -> float:
    """How long all the QEMUs take, from the first one's start until each holds every eventfd."""
    beside = 0 if kind == "none" else count
    with tempfile.TemporaryDirectory(prefix="iv-") as directory, contextlib.ExitStack() as stack:
        path = Path(directory, "s")
        stack.enter_context(serving(path, "-n", str(VECTORS)))
        stack.enter_context(company(kind, beside, path))
        qemus = QemuGroup(stack, path)
        started_s = time.monotonic()
        qemus.start(MACHINES)
        qemus.await_eventfds((MACHINES + beside) * VECTORS + OWN_EVENTFDS)
        return time.monotonic() - started_s


def main() -> None:
    """What clients that never read cost those that do, in turns with none, and with as many that read."""
    count = MUTE if "IVSIM_MUTE" in os.environ else 100
    took_s: dict[str, list[float]] = {kind: [] for kind in COMPANIES}
    for _ in range(max(TRIES, 3)):
        for kind in COMPANIES:
            took_s[kind].append(up_s(kind, count))
    for kind, seconds in took_s.items():
        beside = kind if kind == "none" else f"{count} {kind}"
        print(f"{MACHINES} QEMUs beside {beside}: {', '.join(f'{one:.2f}' for one in sorted(seconds))} s")
    # The host may be busy with other things: the least is what it costs, the median what it cost here.
    for name, pick in (("least", min), ("median", statistics.median)):
        none, read, never = (pick(took_s[kind]) for kind in COMPANIES)
        print(f"{name}: never reading is {never / none:.2f} x none, {never / read:.2f} x reading")


if __name__ == "__main__":
    main()
