"""Becomes a daemon: the command returns when the service is ready, or with the reason why it is not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from nodes.errors import UsageError
from sim.kernel.closeable import Closeable
from sim.kernel.processes import process_name

READY = b"\0"


class StartReport:
    """The daemon reports once whether it has started; the process that started it waits for that."""

    def __init__(self, report: int) -> None:
        self._report = report

    def ready(self, text: str = "") -> None:
        """It has started; ``text`` is for standard error."""
        self._say(READY + text.encode(errors="replace"))

    def failed(self, code: int, text: str) -> None:
        """It has not started: ``text`` is for standard error, ``code`` for the exit."""
        self._say(bytes([code]) + text.encode(errors="replace"))

    def _say(self, data: bytes) -> None:
        report, self._report = self._report, -1
        if report >= 0:
            with contextlib.suppress(OSError):  # the process that started it has ended
                os.write(report, data)
            os.close(report)


def detach(say: Callable[[str], object]) -> StartReport:
    """Continue as a daemon: in a session of its own, without a terminal, its standard streams on /dev/null.

    Returns in the daemon only. The calling process waits for the daemon's report, calls ``say`` with its text, and ends
    with its code. Open nothing before that belongs to the daemon alone. The working directory stays, as paths may be
    relative.
    """
    read_end, write_end = os.pipe()
    if child := os.fork():
        os.close(write_end)
        _wait(child, read_end, say)
    os.close(read_end)
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    sys.stdout.flush()
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    if nothing > 2:
        os.close(nothing)
    return StartReport(write_end)


def _wait(child: int, read_end: int, say: Callable[[str], object]) -> NoReturn:
    os.waitpid(child, 0)  # the process between this one and the daemon
    told = b""
    while chunk := os.read(read_end, 65536):
        told += chunk
    code, text = (told[0], told[1:].decode()) if told else (1, "the server ended before it had started")
    if code or text:
        say(text)
    sys.stderr.flush()
    os._exit(code)


class PidFile(Closeable):
    """Owns a file with this process's ID, locked while this process runs.

    Takes over a file that an ended process left. Raises ``UsageError`` when its process runs, it is no pid file, or it
    cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write pid file {path}: {error.strerror} (choose another with -p)") from error
        try:
            self._take()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise UsageError(f"{self.path} is not a file for a pid (choose another with -p)")
        content = os.read(self._descriptor, 64)
        if not re.fullmatch(rb"\s*[0-9]*\s*", content):
            raise UsageError(f"{self.path} is not a pid file: it stays as it is (choose another with -p)")
        owner = content.strip().decode()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self.path}: another server has it, process {owner or 'unknown'}") from None
        # QEMU's own server does not lock its pid file.
        if owner and process_name(int(owner)).startswith("ivshmem-server"):
            raise UsageError(f"{self.path}: process {owner} is an ivshmem-server that runs")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor)):
                os.unlink(self.path)
        os.close(self._descriptor)
