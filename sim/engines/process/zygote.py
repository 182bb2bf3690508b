"""The process that workers are forked from.

Everything that a worker needs is imported here and frozen, so that a worker is a fork that shares these pages and
not a new interpreter. A worker gets a page of its own for each page that it touches, if only to count references
in it. So the standard library comes first, what workers run stays close together behind it, and nothing is
collected in between. And what all machines of a kind begin with is made here, once (`make_template`): a worker that is
forked from it has less to execute, so it touches fewer pages and is ready sooner.
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
from types import CodeType, FunctionType
from typing import NamedTuple

import nodes.programs
from sim.engines.messages import Failed
from sim.engines.process.control import Control
from sim.engines.process.main import main, make_template
from sim.engines.process.rehearsal import rehearse
from sim.engines.process.worker import Worker
from sim.engines.shared.configuration import decode_configuration
from sim.kernel.channel import Channel
from sim.kernel.processes import name_process
from sim.kernel.segments import remove_orphaned
from sim.kernel.signals import ENDING
from sim.kernel.uring import check_rings
from sim.kernel.waiting import readable_within

REHEARSED = b"rehearsed"
REQUEST_BYTES = 16
TOGETHER_MAX = 8
"""So many workers are forked by one process between. They wait for its end, so they are not very many."""
UNDER_WAY_MAX = 3
UNDER_WAY_LOOK_S = 0.01
STANDARD_ERROR = 2
GATHERED = {"contextlib", "ctypes", "nodes", "random", "sim", "socket"}
"""The packages of the functions that workers call. With those of all packages, what they call lies apart again."""


class _Asked(NamedTuple):
    """A worker that was asked for: the descriptors of its configuration and of its control socket, its template."""

    configuration: int
    control: int
    template: Worker | None

    def close(self) -> None:
        os.close(self.configuration)
        os.close(self.control)


def serve(requests: int, stderr: int, runtime: str, path: list[str], name: str) -> None:
    """Have a worker forked for each request until the coordinator closes its end, which it does only by dying.

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
    signal.signal(signal.SIGALRM, lambda *_: None)  # workers inherit it: the alarm ends their wait, no more
    _switch_stderr(stderr)
    coordinator = os.getppid()
    name_process(name)
    channel = Channel(socket.socket(fileno=requests))
    with contextlib.suppress(OSError):  # each worker rings one by one then
        check_rings()
    _originals = _gather_code()
    gc.freeze()
    gc.enable()
    templates: list[Worker | None] = []
    under_way = 0  # processes between this one and workers, whose exits are not collected yet
    while True:
        if not readable_within(requests, UNDER_WAY_LOOK_S if under_way else None):
            under_way = _collect(under_way)
            continue
        asked: list[_Asked] = []
        while len(asked) < TOGETHER_MAX and (received := channel.receive(REQUEST_BYTES)) is not None:
            data, descriptors = received
            if not data:
                _clean_up_orphaned(pathlib.Path(runtime))
                return
            configuration, *control = descriptors
            if control:
                asked.append(_Asked(configuration, control[0], templates[int(data)] if data.isdigit() else None))
                continue
            if data == REHEARSED:  # the end of a machine ends the children of its process
                under_way = _collect(under_way, all_of_them=True)
            templates.append(_template(configuration, pathlib.Path(runtime) if data == REHEARSED else None))
            os.close(configuration)
        if asked:
            _fork(channel, coordinator, path, asked)
            under_way = _collect(under_way + 1)


def _gather_code() -> list[CodeType]:
    """Give the functions that workers call copies of their code, which lie side by side.

    A function that is called counts references in its code. Where it was loaded, its page holds mostly names, line
    tables and docstrings: each worker would copy these.

    Returns:
        The originals. While they are kept, the copies do not take their places.
    """
    originals: list[CodeType] = []

    def copy(code: CodeType) -> CodeType:
        originals.append(code)
        consts = tuple([copy(each) if isinstance(each, CodeType) else each for each in code.co_consts])
        return code.replace(co_consts=consts)

    for function in [each for each in gc.get_objects() if isinstance(each, FunctionType)]:
        if str(function.__module__).partition(".")[0] in GATHERED:
            function.__code__ = copy(function.__code__)
    return originals


def _template(configuration: int, rehearsed_in: pathlib.Path | None) -> Worker | None:
    """The template of machines with this configuration; None when it cannot be made: each machine then says why.

    A rehearsal that fails changes nothing but the time that the machines take.
    """
    try:
        with open(configuration, "rb", buffering=0, closefd=False) as file:
            machine = decode_configuration(file.read())
        if rehearsed_in is not None:
            with contextlib.suppress(Exception):
                rehearse(machine, rehearsed_in)
            gc.collect()
        template = make_template(machine)
    except Exception:
        return None
    gc.freeze()
    return template


def _collect(under_way: int, *, all_of_them: bool = False) -> int:
    """Collect the exits of processes between; returns how many are left, fewer than ``UNDER_WAY_MAX``.

    It waits only for the last of those: on a busy host each wait is for the time slices of others. The bound is for
    processes beyond those that the preflight has counted.
    """
    while under_way:
        try:
            pid, _ = os.waitpid(-1, 0 if all_of_them or under_way >= UNDER_WAY_MAX else os.WNOHANG)
        except ChildProcessError:
            return 0
        if not pid:
            break
        under_way -= 1
    return under_way


def _switch_stderr(stderr: int) -> None:
    """Print what was written to the file of last words, and write to the standard error of the run from now on."""
    with contextlib.suppress(OSError):
        os.write(stderr, os.pread(STANDARD_ERROR, 1 << 20, 0))
    os.dup2(stderr, STANDARD_ERROR)
    os.close(stderr)


def _fork(channel: Channel, coordinator: int, path: list[str], asked: list[_Asked]) -> None:
    """Fork workers that the coordinator adopts: their parent, a fork between, ends once it has forked them all."""
    try:
        if os.fork():
            for each in asked:
                each.close()
            return
    except OSError as error:
        for each in asked:
            _refuse(each, error)
        return
    try:
        channel.close()
        parent = os.getpid()
        while asked:
            first = asked.pop(0)
            try:
                if os.fork():
                    first.close()
                    continue
            except OSError as error:
                _refuse(first, error)
                continue
            for each in asked:
                each.close()
            sys.path[:] = path
            main(first.configuration, socket.socket(fileno=first.control), parent, coordinator, first.template)
        os._exit(0)
    finally:
        os._exit(1)


def _refuse(asked: _Asked, error: OSError) -> None:
    """Tell the coordinator why a worker is not forked."""
    Control(socket.socket(fileno=os.dup(asked.control))).send(Failed("host", f"fork: {error.strerror}"))
    asked.close()


def _clean_up_orphaned(runtime: pathlib.Path) -> None:
    """Remove the memory and the sockets that a killed coordinator left."""
    remove_orphaned()
    with contextlib.suppress(OSError):
        for entry in runtime.iterdir():
            with contextlib.suppress(OSError):
                entry.unlink()
        runtime.rmdir()
