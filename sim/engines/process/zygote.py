"""The process that workers are forked from.

Everything that a worker needs is imported here and frozen, so that a worker is a fork that shares these pages and
not a new interpreter. A worker gets a page of its own for each page that it touches, if only to count references
in it. So the standard library comes first, what workers run stays close together behind it, and nothing is
collected in between. Measured with CPython 3.11: half a megabyte less for each machine.
"""

# ruff: noqa: E402, F401  (the order is the purpose)
from __future__ import annotations

import gc

gc.disable()

import contextlib
import ctypes
import os
import pathlib
import random
import signal
import socket
import sys
import traceback

import nodes.programs
from sim.engines.messages import Failed
from sim.engines.process.control import Control
from sim.engines.process.main import main
from sim.kernel.channel import Channel
from sim.kernel.processes import name_process
from sim.kernel.segments import remove_orphaned
from sim.kernel.signals import ENDING
from sim.kernel.waiting import readable_within

__all__ = ["serve"]

REQUEST_BYTES = 16
UNDER_WAY_MAX = 3
STANDARD_ERROR = 2


def serve(requests: int, stderr: int, runtime: str, path: list[str], name: str) -> None:
    """Fork a worker for each request until the coordinator closes its end, which it does only by dying.

    Args:
        requests: the socket on which requests come.
        stderr: the standard error for workers. Until now it was a file in which the coordinator finds last words.
        runtime: the run's private directory, removed when the coordinator has died.
        path: where workers find modules.
        name: the name of the process, which its descendants inherit: zombies among them are known by it.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects the exits of the processes between
    _switch_stderr(stderr)
    coordinator = os.getppid()
    name_process(name)
    channel = Channel(socket.socket(fileno=requests))
    gc.freeze()
    gc.enable()
    forks = 0
    while readable_within(requests, None):
        received = channel.receive(REQUEST_BYTES)
        if received is None:
            continue
        forks += 1
        if not forks % UNDER_WAY_MAX:  # a bound on processes beyond those that the preflight has counted
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)
        data, descriptors = received
        if not data:
            break
        configuration, control = descriptors
        _fork(channel, coordinator, path, configuration, control)
        for descriptor in descriptors:
            os.close(descriptor)
    _clean_up_orphaned(pathlib.Path(runtime))


def _switch_stderr(stderr: int) -> None:
    """Print what was written to the file of last words, and write to the standard error of the run from now on."""
    with contextlib.suppress(OSError):
        os.write(stderr, os.pread(STANDARD_ERROR, 1 << 20, 0))
    os.dup2(stderr, STANDARD_ERROR)
    os.close(stderr)


def _fork(channel: Channel, coordinator: int, path: list[str], configuration: int, control: int) -> None:
    """Fork a worker that the coordinator adopts: its parent, a fork between, ends at once."""
    forker = os.getpid()
    try:
        if os.fork():
            return  # without a wait for its end: on a busy host that waits for the time slices of others
        parent = os.getpid()
        if os.fork():
            os._exit(0)
    except OSError as error:
        Control(socket.socket(fileno=os.dup(control))).send(Failed("host", f"fork: {error.strerror}"))
        if os.getpid() != forker:
            os._exit(1)
        return
    try:
        channel.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.path[:] = path
        main(configuration, socket.socket(fileno=control), parent, coordinator)
    finally:
        os._exit(1)


def _clean_up_orphaned(runtime: pathlib.Path) -> None:
    """Remove the memory and the sockets that a killed coordinator left."""
    remove_orphaned()
    with contextlib.suppress(OSError):
        for entry in runtime.iterdir():
            with contextlib.suppress(OSError):
                entry.unlink()
        runtime.rmdir()
