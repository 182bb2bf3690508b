"""Runs one job on this host: a command line in a process group of its own, which always ends with the job."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sim.distributed.job import Job, JobResult, pack, write_files
from sim.distributed.job_process import JobProcess, JobServer
from sim.distributed.job_server import STDERR, STDOUT, Request
from sim.host.runtime_directory import remove, runtime_directories
from sim.kernel.segments import remove_orphaned
from sim.kernel.waiting import readable_within
from sim.results.store.manifest import HOST_NAME_VARIABLE
from sim.start_socket import GO

LOOK_EVERY_S = 0.2
BARRIER_EVERY_S = 0.5
STOP_PATIENCE_S = 15.0
"""For a run to stop its machines and to write what it has; then its processes are killed."""
STDOUT_BYTES_MAX = 64 << 20
STDERR_BYTES_MAX = 4096


class JobStoppedError(Exception):
    """A job was stopped before its end: it is not wanted any more, or its worker ends."""


class Barrier(Protocol):
    """Where the runs of several hosts wait for each other; and what is told to them afterwards."""

    def arrive(self) -> None:
        """Tell that the run of this host is ready to start."""

    def is_open(self) -> bool:
        """Whether all have arrived; waits for it for a moment."""

    def is_over(self) -> bool:
        """Whether the run is to end now, with what it has measured."""


def execute(
    job: Job, server: JobServer, scratch: Path, host: str, is_wanted: Callable[[], bool], barrier: Barrier | None = None
) -> JobResult:
    """Run a job; nothing of it is left when this returns or raises.

    Args:
        job: the command line and its files.
        server: what forks its process.
        scratch: where its private directory is made.
        host: the name of this host, for the result and for the manifest of a run.
        is_wanted: is asked every 0.2 s; False stops the job.
        barrier: where the run waits before it starts.

    Raises:
        JobStoppedError: the job was stopped.
        UsageError: a file of the job has no name below the job's directory.
        HostError, OSError: this host refuses.
    """
    place = Path(tempfile.mkdtemp(prefix="job-", dir=scratch))
    try:
        write_files(job, place)
        for name in (STDOUT, STDERR):
            (place / name).touch(exist_ok=False)
        request = Request(job.arguments, {HOST_NAME_VARIABLE: host})
        with contextlib.ExitStack() as stack:
            held = _Held(barrier, stack) if barrier is not None else None
            process = stack.enter_context(server.job(place, request, held.theirs if held is not None else None))
            code = _wait(process, is_wanted, held)
        runs = list((place / job.collect).iterdir()) if job.collect else []
        archive, digest = pack(runs[0]) if runs else (b"", "")
        with (place / STDOUT).open("rb") as stdout:
            said = stdout.read(STDOUT_BYTES_MAX)
        complaint = (place / STDERR).read_bytes()[-STDERR_BYTES_MAX:].decode(errors="replace").strip()
        return JobResult(host, code, said, complaint, archive, digest)
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Held:
    """A run whose start is held by this process, until the barrier opens; ``theirs`` is the socket of the run."""

    def __init__(self, barrier: Barrier, stack: contextlib.ExitStack) -> None:
        self._barrier = barrier
        self._near, self.theirs = map(stack.enter_context, socket.socketpair())
        self._near.setblocking(False)
        self._has_arrived = self._has_started = self._is_ended = False
        self._looked_s = time.monotonic()

    @property
    def pause_s(self) -> float:
        """How long to wait for the end of the run between two looks: at the barrier, the look itself waits."""
        return 0 if self._has_arrived and not self._has_started else LOOK_EVERY_S

    def look(self, process: JobProcess) -> None:
        """Tell the barrier about the run, and the run about the barrier."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            if not self._has_arrived and self._near.recv(64):
                self._barrier.arrive()
                self._has_arrived = True
        if self._has_arrived and not self._has_started and self._barrier.is_open():
            self._has_started = True
            with contextlib.suppress(OSError):  # it has ended
                self._near.send(GO)
        if not self._is_ended and time.monotonic() - self._looked_s > BARRIER_EVERY_S:
            self._looked_s = time.monotonic()
            if self._barrier.is_over():
                self._is_ended = True
                process.terminate()


def _wait(process: JobProcess, is_wanted: Callable[[], bool], held: _Held | None) -> int:
    """Wait for the end of the process, and end its group whatever happens."""
    try:
        try:
            while not readable_within(process.descriptor, LOOK_EVERY_S if held is None else held.pause_s):
                if not is_wanted():
                    raise JobStoppedError("stopped: the job is not wanted any more")
                if held is not None:
                    held.look(process)
        except BaseException:
            process.terminate()
            readable_within(process.descriptor, STOP_PATIENCE_S)
            raise
    finally:
        code = process.collect()
        if code == -signal.SIGKILL:
            _clean_up()
    return code


def _clean_up() -> None:
    """Remove what a killed run left behind: its memory, and its directory of sockets."""
    remove_orphaned()
    for directory in runtime_directories():
        if not directory.owned:
            remove(directory)
