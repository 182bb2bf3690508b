"""The processes of jobs, as their worker holds them; `sim.distributed.job_server` forks them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from nodes.errors import HostError
from sim.distributed.job_server import REQUEST, Request
from sim.kernel.channel import Channel, send_descriptors
from sim.kernel.closeable import Closeable, closing
from sim.kernel.waiting import readable_within

TRIES = 2
END_PATIENCE_S = 10.0
ANSWER_BYTES_MAX = 1024


class JobProcess:
    """A job: the leader of a process group.

    Attributes:
        descriptor: a pidfd of it, readable once it has ended.
    """

    def __init__(self, pid: int, descriptor: int, keeper: socket.socket) -> None:
        self.descriptor = descriptor
        self._pid, self._keeper = pid, keeper

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGTERM)

    def collect(self) -> int:
        """Kill what is left of its group, and return its exit code; negative: the number of a signal."""
        # Its exit is not collected yet: its number, which is that of the group, belongs to nothing else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        code = b""
        with contextlib.suppress(OSError):  # the process that kept it was killed
            self._keeper.send(b"?")
            code = self._keeper.recv(ANSWER_BYTES_MAX)
        return int(code or -signal.SIGKILL)


class _Process(NamedTuple):
    """A server process, and the socket on which it takes jobs."""

    process: subprocess.Popen[bytes]
    socket: socket.socket

    def end(self) -> None:
        """End it, after the processes that keep jobs."""
        self.socket.close()
        try:
            self.process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class JobServer(Closeable):
    """Forks the jobs of a worker, for several threads.

    Its process is started when this is made, and once more if it was killed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server = _start()

    def close(self) -> None:
        self._server.end()

    @contextlib.contextmanager
    def job(self, place: Path, request: Request, held_by: socket.socket | None = None) -> Iterator[JobProcess]:
        """Start a job, which is to be collected within the context.

        Args:
            place: its current directory; its output is there, in the files `STDOUT` and `STDERR`.
            request: its command line.
            held_by: the socket that holds the start of a run.

        Raises:
            HostError: this host has no process for it.
        """
        (place / REQUEST).write_bytes(msgspec.msgpack.encode(request))
        answer = b""
        for _ in range(TRIES):
            server = self._server
            keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with keeper:
                with theirs, contextlib.suppress(ConnectionError):  # the server was killed
                    sent = (theirs.fileno(), *([] if held_by is None else [held_by.fileno()]))
                    send_descriptors(server.socket, os.fsencode(place), sent)
                readable_within(keeper.fileno(), None)
                answer, descriptors = Channel(keeper).receive(ANSWER_BYTES_MAX) or (b"", [])
                keeper.setblocking(True)
                if descriptors:
                    with closing(descriptors[0]) as descriptor:
                        yield JobProcess(int(answer), descriptor, keeper)
                    return
            if not answer:
                self._start_again(server)
        raise HostError(f"no process for the job: {answer.decode() or 'the process that starts jobs was killed'}")

    def _start_again(self, server: _Process) -> None:
        with self._lock:
            if self._server is server:
                server.end()
                self._server = _start()


def _start() -> _Process:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # A session of its own: signals of the terminal are the worker's to handle.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sim.distributed.job_server", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(theirs.fileno(),),
        )
    return _Process(process, ours)
