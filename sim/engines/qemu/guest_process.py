"""One QEMU process of a machine with a guest: its process, its monitor, and what it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sim.engines.qemu.guest_monitor import GuestMonitor, OnEvent
from sim.kernel.loop import Loop
from sim.kernel.processes import RUN_VARIABLE, ChildProcess, end_with_parent, has_stopped, wants_cpu, work_ticks

PRINTED_CHARACTERS = 400


class GuestProcess:
    """Owns the process, once it has started, and the connection to its monitor.

    Args:
        on_event: is told each event of the monitor.
        on_exit: is told the exit code, once.
    """

    def __init__(self, loop: Loop, *, on_event: OnEvent, on_exit: Callable[[int], None]) -> None:
        self._loop, self.on_exit = loop, on_exit
        self.monitor = GuestMonitor(loop, on_event)
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  (close() closes it)
        self._process: ChildProcess | None = None
        self.has_ended = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and not self.has_ended

    @property
    def is_still(self) -> bool:
        return self.pid is not None and has_stopped(self.pid)

    def work_ticks(self) -> int:
        return work_ticks(self.pid) if self.pid is not None else 0

    def waits_for_cpu(self, since_ticks: int, ticks: int) -> bool:
        """Whether it could execute and has used less than ``ticks`` since ``work_ticks`` was ``since_ticks``."""
        return self.pid is not None and wants_cpu(self.pid) and self.work_ticks() - since_ticks < ticks

    def start(self, command: Sequence[str], descriptors: Iterable[int], runtime: Path) -> int:
        """Start it with these descriptors, that of the monitor included; returns its process ID.

        Raises:
            OSError: the program cannot be executed.
        """
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._printed,
            stderr=self._printed,
            pass_fds=tuple(descriptors),
            env={**os.environ, RUN_VARIABLE: str(runtime)},
            start_new_session=True,  # a terminal's signals are for its user
            preexec_fn=end_with_parent,  # noqa: PLW1509  (this process has one thread that forks)
        )
        self._process = ChildProcess(process.pid)
        process.returncode = 0  # only that waits for it
        self._loop.add(self._process.descriptor, self._collect_exit)
        return process.pid

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and not self.has_ended:
            self._process.signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    @property
    def printed(self) -> str:
        """The end of what it has printed, in one line or several."""
        self._printed.seek(0)
        return self._printed.read().decode(errors="replace").strip()[-PRINTED_CHARACTERS:]

    def close(self) -> None:
        self.kill()
        self.has_ended = True
        if self._process is not None:
            self._loop.remove(self._process.descriptor)
            self._process.close()
        self.monitor.close()
        self._printed.close()

    def _collect_exit(self) -> None:
        assert self._process is not None
        code = self._process.exit_code()
        if code is not None:
            self._loop.remove(self._process.descriptor)
            self.has_ended = True
            self.on_exit(code)
