"""The process shell of one machine: its descriptors, its clock, its wait.

A worker lives between two words of the coordinator, Start and Stop, and never outlives it: the control socket
ends when the coordinator dies, and should the program never let go, the kernel ends the worker with the fork
server (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import ctypes
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

from nodes import profiles, programs
from nodes.client import Assigned, Client, Event, Ignored, MemoryShared, PeerLeft, VectorConnected
from nodes.errors import GuestError, IvshmemError, ProtocolError, RemoteProtocolError
from nodes.guest import Guest, Program
from nodes.vm import Vm
from sim import control, recording
from sim.channel import Channel
from sim.control import Control
from sim.eventfd import EventFd, drain, signal
from sim.memory import map_region
from sim.recorder import Recorder
from sim.recording import Recording, State

__all__ = ["WorkerPlan", "main"]

PR_SET_PDEATHSIG = 1
PR_SET_TIMERSLACK = 29
EVENTS_MAX = 64
# Below this, epoll's whole milliseconds are too coarse, and select() on the epoll descriptor waits instead.
FINE_WAIT_NS = 3_000_000


@dataclass(frozen=True)
class WorkerPlan:
    """All that a worker is told at its birth."""

    name: str
    machine: int
    vectors: int
    role: str
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
    signals.signal(signals.SIGINT, signals.SIG_IGN)
    signals.signal(signals.SIGTERM, signals.SIG_DFL)
    _tie_to_fork_server()
    link = Control(control_socket)
    code = 1
    try:
        with Recording.open(Path(plan.recording)) as book:
            worker = _Worker(plan, link, book)
            try:
                worker.run()
                code = 0
            except EOFError:
                _clean_up_orphaned(Path(plan.runtime))
            except BaseException as error:  # noqa: BLE001  (the last frame of the process: it must be told, whatever it is)
                book.words[recording.STATE] = State.FAILED
                link.send(_explain(error))
            finally:
                worker.close()
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
    alive = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)  # type: ignore[attr-defined]
    if alive is not None:
        os.close(alive)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]


def _explain(error: BaseException) -> control.Failed:
    """Whose fault it is, in one line, and the traceback where it helps to find it."""
    text = "".join(traceback.format_exception(error))[-control.TEXT_MAX :]
    summary = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, ProtocolError):
        return control.Failed("server", summary)
    if isinstance(error, _ProgramFailed):
        cause = error.__cause__ or error
        summary = f"{type(cause).__name__}: {cause}"
        return control.Failed("program", summary, "".join(traceback.format_exception(cause))[-control.TEXT_MAX :])
    return control.Failed("simulator", summary, text)


def _clean_up_orphaned(runtime: Path) -> None:
    """The coordinator is gone and can no longer remove its sockets: whoever notices does it, the last one all."""
    with contextlib.suppress(OSError):
        for entry in runtime.iterdir():
            with contextlib.suppress(OSError):
                entry.unlink()
        runtime.rmdir()


class _ProgramFailed(Exception):
    """The guest program raised; the cause tells what."""


class _Stopped(Exception):
    """The coordinator said Stop."""


class _Worker:
    """One machine in this process: everything it holds, and the two loops it lives in."""

    def __init__(self, plan: WorkerPlan, link: Control, book: Recording) -> None:
        self._plan = plan
        self._link = link
        self._book = book
        self._recorder = Recorder(book)
        self._client: Client[int] = Client(plan.vectors)
        self._channel: Channel | None = None
        self._eventfds: dict[int, list[EventFd]] = {}
        self._own: dict[int, int] = {}  # descriptor -> vector
        self._epoll = select.epoll()
        self._start_ns: int | None = None
        self._vm = Vm(
            profiles.PROFILES[plan.profile],
            vectors=plan.vectors,
            role=plan.role,
            signal=signal,
            ledger=self._recorder,
            clock=time.monotonic_ns,
            random=random.Random(f"{plan.seed}/{plan.name}"),
            sample_every=plan.sample_every,
        )

    def run(self) -> None:
        words = self._book.words
        program = _load_program(self._plan)
        self._epoll.register(self._link.fileno(), select.EPOLLIN)
        try:
            self._connect()
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
        for eventfds in self._eventfds.values():
            for eventfd in eventfds:
                eventfd.close()
        if self._channel is not None:
            self._channel.close()
        self._epoll.close()

    # The server

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(self._plan.server)
        except OSError as error:
            sock.close()
            raise RemoteProtocolError(f"no server at {self._plan.server}: {error.strerror}") from error
        self._channel = Channel(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._book.words[recording.STATE] = State.CONNECTED

    def _meet_everyone(self) -> None:
        """Take in the greeting until every vector of every machine that should be there is connected."""
        expected = self._plan.expected
        while not all(self._client.peers.get(peer, 0) >= vectors for peer, vectors in enumerate(expected)) or (
            not self._client.is_set_up
        ):
            for descriptor, _ in self._epoll.poll():
                self._attend(descriptor)

    def _await_start(self) -> None:
        while self._start_ns is None:
            for descriptor, _ in self._epoll.poll():
                if descriptor not in self._own:
                    self._attend(descriptor)
        self._vm.guest.start_ns = self._start_ns
        while time.monotonic_ns() < self._start_ns:
            time.sleep(max(0, self._start_ns - time.monotonic_ns()) / 1e9)

    def _read_server(self) -> None:
        """Everything that the server has said so far."""
        channel, client = self._channel, self._client
        assert channel is not None
        while True:
            received = channel.receive(client.missing_bytes)
            if received is None:
                return
            data, descriptors = received
            try:
                if not data:
                    client.end()
                    # Doorbells and interrupts go on without a server; there is only no more news.
                    self._epoll.unregister(channel.fileno())
                    return
                for event in client.receive(data, descriptors):
                    self._take(event)
            finally:
                for descriptor in client.unclaimed():
                    os.close(descriptor)

    def _take(self, event: Event[int]) -> None:
        match event:
            case Assigned(peer):
                self._book.words[recording.PEER] = peer
            case MemoryShared(descriptor):
                try:
                    memory = map_region(descriptor)
                finally:
                    os.close(descriptor)
                assert self._client.peer is not None
                self._vm.place(self._client.peer, memoryview(memory))
            case VectorConnected(peer, vector, descriptor):
                eventfd = EventFd.adopt(descriptor)
                self._eventfds.setdefault(peer, []).append(eventfd)
                self._vm.connect(peer, vector, eventfd.descriptor)
                if peer == self._client.peer:
                    self._own[eventfd.descriptor] = vector
                    self._epoll.register(eventfd.descriptor, select.EPOLLIN)
            case PeerLeft(peer):
                self._vm.disconnect(peer)
                for eventfd in self._eventfds.pop(peer, ()):
                    eventfd.close()
            case Ignored(reason, descriptors):
                for descriptor in descriptors:
                    os.close(descriptor)
                self._link.send(control.Warned(reason))

    # The coordinator

    def _attend(self, descriptor: int) -> None:
        """Something other than an own eventfd is readable."""
        if descriptor == self._link.fileno():
            self._read_orders()
        else:
            self._read_server()

    def _read_orders(self) -> None:
        while (order := self._link.receive()) is not None:
            match order:
                case control.Start(start_ns):
                    self._start_ns = start_ns
                case control.Ping(number):
                    self._vm.doorbells.flush()
                    self._book.words[recording.PING_NS] = time.monotonic_ns()
                    self._book.words[recording.PING] = number
                case control.Stop():
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

    def _warn(self) -> None:
        while self._vm.warnings:
            self._link.send(control.Warned(self._vm.warnings.popleft()))

    # The guest

    def _serve(self, program: Callable[[Guest], Program]) -> None:
        """Run the program until Stop: wait as long as it says, and hand it what comes."""
        vm, own, poll, clock = self._vm, self._own, self._epoll.poll, time.monotonic_ns
        deliver, warnings = vm.deliver, vm.warnings
        drained, handled = self._recorder.make_drains()
        events_max = len(own) + 2
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
                    raise _ProgramFailed from error
                handled(clock())
            if warnings:
                self._warn()

    def _poll_until(self, deadline_ns: int, events_max: int) -> list[tuple[int, int]]:
        """Events, or none at the deadline. ``epoll`` waits whole milliseconds, so the last ones are select's."""
        if type(deadline_ns) is not int:
            raise _ProgramFailed from GuestError(
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
        raise _ProgramFailed from error


def _load_program(plan: WorkerPlan) -> Callable[[Guest], Program]:
    """The plan's program with its parameters bound; it needs only its guest."""
    name, parameters = plan.program, plan.parameters
    if ":" in name:
        module, _, function = name.partition(":")
        program = getattr(importlib.import_module(module), function)
    else:
        program = getattr(programs, name)
    return functools.partial(program, **parameters)
