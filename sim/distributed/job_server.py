"""The process that jobs are forked from: ``python -m sim.distributed.job_server DESCRIPTOR``.

A fresh interpreter needs 0.8 s of CPU time to load what a run uses. Here it is loaded once and frozen, and each job is
a fork that leads a process group of its own. Between the server and a job is a process that keeps the job: it collects
the exit code, and the job ends with it. It ends with the other end of the job's socket, so that no job survives its
worker.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import get_args

import msgspec

from sim.host.libraries import be_frugal, leave_out_pandas
from sim.kernel.channel import Channel, send_descriptors
from sim.kernel.processes import end_with_parent, name_process
from sim.kernel.waiting import readable_within

LOADED = (
    "numpy.ma",
    "sim.cli",
    "sim.commands.explore",
    "sim.commands.progress",
    "sim.commands.run",
    "sim.results.finalize",
    "sim.runner",
    "sim.views.notebook",
)
"""What `ivsim run` and `ivsim explore` use; each loads what it needs."""
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Variables with which jemalloc (in Arrow) and OpenBLAS (in numpy) start no threads, whatever the caller has set."""
JOB_SERVER = "ivsim-jobs"
"""The name of the process, and of those that keep jobs."""
REQUEST, STDOUT, STDERR = "request", "stdout", "stderr"
PATH_BYTES_MAX = 4096
"""PATH_MAX, limits.h."""


class Request(msgspec.Struct, frozen=True):
    """A job, as a file in the job's directory: arguments of `ivsim`, and variables for its environment."""

    arguments: list[str]
    variables: dict[str, str]


def main() -> None:
    """Fork a job for each message until the other end is closed.

    A message is the path of the job's directory, with the job's socket, and the socket that holds the start of a run if
    there is one (`sim.start_socket`). On the job's socket, the process ID of the job is sent with a pidfd of it, or the
    reason why there is none. The job is collected after a byte has come; its exit code is the answer.
    """
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    name_process(JOB_SERVER)
    load()
    signal.signal(signal.SIGCHLD, _collect)
    while readable_within(channel.fileno(), None):
        if (received := channel.receive(PATH_BYTES_MAX)) is None:
            continue
        path, descriptors = received
        if not path:
            break
        job, *start = descriptors
        if _fork(socket.socket(fileno=job), channel):
            _run(Path(os.fsdecode(path)), start)  # in the job
        for descriptor in start:
            os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(ChildProcessError):
        while os.wait():
            pass


def _collect(_number: int, _frame: object) -> None:
    """Collect the exits of processes that kept jobs; the CPU time of jobs then counts as that of this process."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def load() -> None:
    """Load the modules without threads: a fork has only the one that forks."""
    before = dict(os.environ)
    be_frugal()
    leave_out_pandas()
    os.environ.update(NO_THREADS)
    engines = get_args(importlib.import_module("topologies.model").EngineName)
    for name in (*LOADED, *(f"sim.engines.{engine}.engine" for engine in engines)):
        importlib.import_module(name)
    os.environ.clear()
    os.environ.update(before)
    gc.collect()
    gc.freeze()


def _fork(job: socket.socket, channel: Channel) -> bool:
    """Fork a process that keeps a job, which it forks. Returns True in the job, False in this process."""
    with job:
        try:
            if os.fork():
                return False
        except OSError as error:
            _refuse(job, error)
            return False
        channel.close()
        keeper = os.getpid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(job, error)
            os._exit(1)
        if pid:
            _keep(job, pid)
    os.setpgid(0, 0)
    end_with_parent(signal.SIGTERM)
    if os.getppid() != keeper:
        os._exit(1)
    return True


def _refuse(job: socket.socket, error: OSError) -> None:
    with contextlib.suppress(OSError):  # the worker has gone
        job.send(f"fork: {error.strerror}".encode())


def _keep(job: socket.socket, pid: int) -> None:
    """Tell the worker of its job, and the exit code once it asks for that. Does not return; the job ends with this."""
    try:
        with contextlib.suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(pid, pid)
        descriptor = os.pidfd_open(pid)
        send_descriptors(job, str(pid).encode(), (descriptor,))
        if job.recv(1):
            job.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    finally:
        os._exit(0)


def _run(place: Path, start: list[int]) -> None:
    """Be the command of the request in a directory; ends this process."""
    os.chdir(place)
    request = msgspec.msgpack.decode(Path(REQUEST).read_bytes(), type=Request)
    os.environ.update(request.variables)
    for descriptor, name in enumerate((STDOUT, STDERR), start=1):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    name_process("ivsim")
    held = [word for descriptor in start for word in ("--start-fd", str(descriptor))]
    sys.argv = ["ivsim", *request.arguments, *held]
    from sim.cli import main as ivsim

    ivsim()


if __name__ == "__main__":
    main()
