"""The process shell of one machine: its descriptors, its clock, its wait.

A worker lives between two words of the coordinator, Start and Stop, and never outlives it: the control socket
ends when the coordinator dies, and should the program never let go, the kernel ends the worker with the fork
server (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
import random
import select
import signal as signals
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from nodes import programs
from nodes.device import profiles
from nodes.errors import GuestError, HostError, ProtocolError, UsageError
from nodes.guest import Guest, Program
from nodes.vm import Vm
from sim import control, recording
from sim.control import Control
from sim.kernel.eventfd import drain, signal
from sim.kernel.signals import ENDING
from sim.recorder import Recorder
from sim.recording import Recording, State
from sim.wire.connection import Connection

__all__ = ["WorkerPlan", "main"]

PR_SET_PDEATHSIG = 1
PR_SET_TIMERSLACK = 29
EVENTS_MAX = 64
# Below this, epoll's whole milliseconds are too coarse, and select() on the epoll descriptor waits instead.
FINE_WAIT_NS = 3_000_000
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class WorkerPlan:
    """All that a worker is told at its birth."""

    name: str
    machine: int
    vectors: int
    role: str
    memory_bytes: int
    profile: str
    program: str
    parameters: dict[str, Any]
    seed: int
    sample_every: int
    server: str
    recording: str
    runtime: str
    expected: tuple[int, ...]
    """How many vectors each peer has that must be connected before this machine is Ready; index = peer."""


def main(plan: WorkerPlan, control_socket: socket.socket) -> None:
    """The target of the process: run one machine from birth to Stop."""
    for number in ENDING:
        signals.signal(number, signals.SIG_IGN)
    _tie_to_fork_server()
    link = Control(control_socket)
    code = 1
    try:
        with Recording.open(plan.recording) as book:
            try:
                with contextlib.closing(_Worker(plan, link, book)) as worker:
                    worker.run()
                code = 0
            except EOFError:
                _clean_up_orphaned(Path(plan.runtime))
            except BaseException as error:  # the last frame of the process: whatever it is, it must be told
                book.words[recording.STATE] = State.FAILED
                link.send(_explain(error))
    finally:
        # Straight out: a guest program may hold views of the memory, which would only make the exit complain.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tie_to_fork_server() -> None:
    """Die with the fork server, and let it die with the coordinator: it lives while anyone holds its pipe."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signals.SIGKILL)
    prctl(PR_SET_TIMERSLACK, 1)
    alive = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if alive is not None:
        os.close(alive)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]


def _explain(error: BaseException) -> control.Failed:
    """Whose fault it is, in one line, and the traceback where it helps to find it."""
    whose, cause = "simulator", error
    if isinstance(error, _ProgramError) and error.__cause__ is not None:
        whose, cause = "program", error.__cause__
    elif isinstance(error, ProtocolError | UsageError):
        whose = "server"
    elif isinstance(error, HostError):
        whose = "host"
    summary = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    trace = "".join(traceback.format_exception(cause)) if whose in ("program", "simulator") else ""
    return control.Failed(whose, summary[: control.TEXT_MAX], trace[-control.TEXT_MAX :])


def _clean_up_orphaned(runtime: Path) -> None:
    """The coordinator is gone and can no longer remove its sockets: whoever notices does it, the last one all."""
    with contextlib.suppress(OSError):
        for entry in runtime.iterdir():
            with contextlib.suppress(OSError):
                entry.unlink()
        runtime.rmdir()


class _ProgramError(Exception):
    """The guest program raised; the cause tells what."""


class _Stopped(Exception):  # noqa: N818  (no error)
    """The time is up, or the coordinator said Stop before it was."""


class _Worker:
    """One machine in this process: everything it holds, and the two loops it lives in."""

    def __init__(self, plan: WorkerPlan, link: Control, book: Recording) -> None:
        self._plan = plan
        self._link = link
        self._book = book
        self._recorder = Recorder(book)
        self._epoll = select.epoll()
        self._start_ns: int | None = None
        self._stop_ns = 0
        self._dismissed = False
        self._alarm, self._alarm_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        profile = profiles.profile(plan.profile)
        self._vm = Vm(
            profile,
            vectors=plan.vectors,
            role=plan.role,
            size_bytes=plan.memory_bytes if profile.memory_container else None,
            signal=signal,
            ledger=self._recorder,
            clock=time.monotonic_ns,
            random=random.Random(f"{plan.seed}/{plan.name}"),
            sample_every=plan.sample_every,
        )
        self._connection = Connection(
            plan.server,
            self._vm,
            on_own=lambda descriptor: self._epoll.register(descriptor, select.EPOLLIN),
            warn=lambda text: link.send(control.Warned(text)),
        )

    def run(self) -> None:
        words = self._book.words
        program = _load_program(self._plan)
        self._epoll.register(self._link.fileno(), select.EPOLLIN)
        self._epoll.register(self._connection.fileno(), select.EPOLLIN)
        words[recording.STATE] = State.CONNECTED
        try:
            self._meet_everyone()
            words[recording.READY_NS] = time.monotonic_ns()
            words[recording.STATE] = State.READY
            self._link.send(control.Ready())
            self._await_start()
            words[recording.STARTED_NS] = time.monotonic_ns()
            words[recording.STATE] = State.RUNNING
            self._serve(program)
        except _Stopped:
            self._stop()

    def close(self) -> None:
        self._connection.close()
        self._epoll.close()
        os.close(self._alarm)
        os.close(self._alarm_writer)

    # The server

    def _meet_everyone(self) -> None:
        """Take in the greeting until every vector of every machine that should be there is connected."""
        vectors = self._vm.guest.vectors
        total = sum(min(count, vectors) for count in self._plan.expected)
        # The quick look first: going through a thousand peers for each of a thousand messages takes minutes.
        while self._connection.connected < total or not self._connection.knows(self._plan.expected):
            for descriptor, _ in self._epoll.poll():
                self._attend(descriptor)
            if (peer := self._connection.peer) is not None:
                self._book.words[recording.PEER] = peer

    def _await_start(self) -> None:
        while self._start_ns is None:
            for descriptor, _ in self._epoll.poll():
                if descriptor not in self._connection.own:
                    self._attend(descriptor)
        self._vm.guest.start_ns = self._start_ns
        self._set_alarm()
        while (left_ns := self._start_ns - time.monotonic_ns()) > 0:
            time.sleep(left_ns / 1e9)

    def _set_alarm(self) -> None:
        """Have the wait end at the time to stop: by then, the coordinator may wait long for its turn on a CPU."""
        self._epoll.register(self._alarm, select.EPOLLIN)
        signals.signal(signals.SIGALRM, lambda *_: None)
        signals.set_wakeup_fd(self._alarm_writer)
        signals.setitimer(signals.ITIMER_REAL, max(1, self._stop_ns - time.monotonic_ns()) / SECOND_NS)

    def _read_server(self) -> None:
        if not self._connection.read():
            # Doorbells and interrupts go on without a server; there is only no more news.
            self._epoll.unregister(self._connection.fileno())

    # The coordinator

    def _attend(self, descriptor: int) -> None:
        """Something other than an own eventfd is readable."""
        if descriptor == self._link.fileno():
            self._read_orders()
        elif descriptor == self._alarm:
            raise _Stopped
        else:
            self._read_server()

    def _read_orders(self) -> None:
        while (order := self._link.receive()) is not None:
            match order:
                case control.Start(start_ns, stop_ns):
                    self._start_ns, self._stop_ns = start_ns, stop_ns
                case control.Ping(number):
                    self._vm.doorbells.flush()
                    self._book.words[recording.PING_NS] = time.monotonic_ns()
                    self._book.words[recording.PING] = number
                case control.Stop():
                    self._dismissed = True
                    raise _Stopped
                case _:
                    raise RuntimeError(f"not an order: {order}")

    def _stop(self) -> None:
        """No more rings, no more drains; the counts are final."""
        words = self._book.words
        with _blaming_program():
            self._vm.stop()
        self._vm.doorbells.flush()
        words[recording.STOPPED_NS] = time.monotonic_ns()
        words[recording.STATE] = State.STOPPED
        self._warn()
        self._link.send(control.Stopped())
        # Who stopped by the clock stays until it is told to go: the coordinator takes a last look at everybody.
        with contextlib.suppress(_Stopped):
            while not self._dismissed:
                select.select([self._link], [], [])
                self._read_orders()

    def _warn(self) -> None:
        while self._vm.warnings:
            self._link.send(control.Warned(self._vm.warnings.popleft()))

    # The guest

    def _serve(self, program: Callable[[Guest], Program]) -> None:
        """Run the program until Stop: wait as long as it says, and hand it what comes."""
        vm, own, poll, clock = self._vm, self._connection.own, self._epoll.poll, time.monotonic_ns
        deliver, warnings = vm.deliver, vm.warnings
        drained, handled = self._recorder.make_drains()
        events_max = len(own) + 3
        with _blaming_program():
            wait = vm.start(program)
        while True:
            if wait is None:
                events = poll(-1, events_max)
            elif wait == 0:
                events = poll(0, events_max)
            else:
                events = self._poll_until(wait, events_max)
            if not events:
                with _blaming_program():
                    wait = vm.expire()
                continue
            for descriptor, _ in events:
                vector = own.get(descriptor)
                if vector is None:
                    self._attend(descriptor)
                    continue
                try:
                    count = drain(descriptor)
                except BlockingIOError:
                    continue  # somebody else who holds it has drained it
                drained(vector, count, clock())
                try:
                    wait = deliver(vector, count)
                except Exception as error:
                    raise _ProgramError from error
                handled(clock())
            if warnings:
                self._warn()

    def _poll_until(self, deadline_ns: int, events_max: int) -> list[tuple[int, int]]:
        """Events, or none at the deadline. ``epoll`` waits whole milliseconds, so the last ones are select's."""
        if type(deadline_ns) is not int:
            raise _ProgramError from GuestError(
                f"a program yields FOREVER, NOW or a time in whole nanoseconds, not {deadline_ns!r}"
            )
        poll, epoll = self._epoll.poll, self._epoll.fileno()
        while True:
            left_ns = deadline_ns - time.monotonic_ns()
            if left_ns <= 0:
                return poll(0, events_max)
            if left_ns > FINE_WAIT_NS:
                events = poll((left_ns - FINE_WAIT_NS) // 1_000_000 / 1000, events_max)
            else:
                ready, _, _ = select.select([epoll], [], [], left_ns / 1e9)
                events = poll(0, events_max) if ready else []
            if events:
                return events


@contextlib.contextmanager
def _blaming_program() -> Iterator[None]:
    """What goes wrong in here is the guest program's."""
    try:
        yield
    except Exception as error:
        raise _ProgramError from error


def _load_program(plan: WorkerPlan) -> Callable[[Guest], Program]:
    """The plan's program with its parameters bound; it needs only its guest."""
    name, parameters = plan.program, plan.parameters
    if ":" in name:
        module, _, function = name.partition(":")
        program = getattr(importlib.import_module(module), function)
    else:
        program = getattr(programs, name)
    return functools.partial(program, **parameters)
