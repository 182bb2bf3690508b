"""Carries out the actions of `topologies.actions` on machines and servers; the timeline says when.

A `WorkerAction` is sent to its machine; each other action has a method ``_NAME`` here. An action that is impossible
at the time (a machine to kill has exited already) raises `Impossible` with the reason: the run goes on, and its events
say so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nodes.device import profiles
from nodes.device.ivshmem import Ivshmem
from nodes.device.migration import Blocker, Blockers, MigrationError
from nodes.errors import HostError
from sim.coordination.domain import LiveDomain
from sim.coordination.machines import LiveMachines
from sim.engines.process import control
from sim.engines.process.handle import Moving, WorkerHandle
from sim.kernel.eventfd import COUNTER_MAX, EventFd
from sim.kernel.loop import Loop
from topologies.actions import Action, Fill, Garble, Join, MachineAction, Migrate, ServerAction, WorkerAction

__all__ = ["Actions", "Impossible"]

STOPPED_STATE = "T"
LOOK_NS = 1_000_000
GATE_BYTES = 4096  # any size: what forbids a migration does not hang on it


class Impossible(Exception):  # noqa: N818  (no error)
    """It cannot be done now; the text says why."""


class Actions:
    """Does what the timeline says. ``bear(hand)`` starts the process of a life that has been made."""

    def __init__(
        self,
        machines: LiveMachines,
        domains: Sequence[LiveDomain],
        loop: Loop,
        *,
        spawn: Callable[[WorkerHandle], None],
    ) -> None:
        self._machines, self._domains, self._loop, self._spawn = machines, domains, loop, spawn
        self._over = False
        self._filled: dict[WorkerHandle, list[tuple[EventFd, int]]] = {}
        """Of each machine whose counters were filled: the eventfds, and what they had counted before."""

    def do(self, action: Action, machine: int | None) -> dict[str, Any]:
        """Carry out one action, on a machine or, if that is None, on a server.

        Returns: what the event says besides. Raises: `Impossible`.
        """
        if isinstance(action, ServerAction):
            return self._on_server(action)
        assert machine is not None
        assert isinstance(action, MachineAction)
        if isinstance(action, Join):
            return self._join(machine)
        handle = self._machines.current[machine]
        if not handle.lives:
            raise Impossible("it is not there")
        if handle.ending is not None:
            raise Impossible(f"it is going: {handle.ending}")
        if handle.moving is not None and not action.while_migrating:
            raise Impossible("it is migrating")
        if not handle.ready and not action.before_ready:
            raise Impossible("it has not joined yet")
        if isinstance(action, WorkerAction):
            arguments = {key: value for key, value in msgspec.structs.asdict(action).items() if value is not None}
            handle.tell(control.Act(action.do, arguments))
            return arguments
        done: dict[str, Any] | None = getattr(self, f"_{action.do}")(handle, action)
        return done or {}

    def is_there(self, machine: int) -> bool:
        """Whether a machine is there and stays, as far as is known."""
        handle = self._machines.current[machine]
        return handle.lives and handle.ending is None

    def undo(self) -> None:
        """Nothing more is begun; everybody goes on, so that everybody can end."""
        self._over = True
        for handle in self._machines.handles:
            if handle.stalled:
                self._let_go(handle)

    # Machines

    def _join(self, machine: int) -> dict[str, Any]:
        current = self._machines.current[machine]
        if current.lives and current.ending is None:
            raise Impossible("it is there already")
        if current.lives:
            self._loop.at(time.monotonic_ns() + LOOK_NS, lambda: self._join_when_gone(machine))
            return {"waits_until": f"{current.name} has gone"}
        try:
            handle = self._machines.new_incarnation(machine)
        except HostError as error:
            raise Impossible(str(error)) from error
        self._spawn(handle)
        return {"life": handle.name}

    def _join_when_gone(self, machine: int) -> None:
        if not self._over:
            with contextlib.suppress(Impossible):
                self._join(machine)

    def _leave(self, handle: WorkerHandle, action: Action) -> None:
        self._let_go(handle)
        handle.ending = action.do
        handle.tell(control.Leave())

    def _kill(self, handle: WorkerHandle, action: Action) -> None:
        handle.ending = action.do
        self._empty(handle)
        handle.kill()

    def _stall(self, handle: WorkerHandle, _action: Action) -> None:
        if handle.stalled:
            raise Impossible("it stands still already")
        handle.stalled = True
        handle.signal(signal.SIGSTOP)

    def _resume(self, handle: WorkerHandle, _action: Action) -> None:
        if not handle.stalled:
            raise Impossible("it does not stand still")
        self._let_go(handle)

    def _fill(self, handle: WorkerHandle, action: Fill) -> None:
        if not handle.stalled:
            self._stall(handle, action)
        self._filled.setdefault(handle, [])
        self._fill_when_still(handle, action.vectors or ())

    def _fill_when_still(self, handle: WorkerHandle, vectors: tuple[int, ...]) -> None:
        """A machine that still runs would drain what is put into its counters: wait until it has stopped."""
        if not handle.stalled or not handle.lives:
            return
        if not _has_stopped(handle.pid):
            self._loop.at(time.monotonic_ns() + LOOK_NS, lambda: self._fill_when_still(handle, vectors))
            return
        for eventfd in self._eventfds(handle, vectors):
            held = eventfd.take()
            while not eventfd.add(COUNTER_MAX):  # somebody has rung meanwhile
                held += eventfd.take()
            self._filled[handle].append((eventfd, held))

    def _let_go(self, handle: WorkerHandle) -> None:
        """End a stall; counters that were filled hold again what was rung."""
        self._empty(handle)
        if handle.stalled:
            handle.stalled = False
            handle.signal(signal.SIGCONT)

    def _empty(self, handle: WorkerHandle) -> None:
        for eventfd, held in self._filled.pop(handle, ()):
            eventfd.take()
            if held:
                eventfd.add(held)

    def _eventfds(self, handle: WorkerHandle, vectors: tuple[int, ...]) -> list[EventFd]:
        found: list[EventFd] = []
        for row, peer in zip(handle.rows, handle.peers, strict=True):
            if peer is not None:
                eventfds = self._domains[row.domain].eventfds(peer)
                found += [each for vector, each in enumerate(eventfds) if not vectors or vector in vectors]
        return found

    def _unplug(self, handle: WorkerHandle, _action: Action) -> None:
        if handle.moving is not None:
            raise Impossible("device_del not allowed while migrating")
        handle.unplugged = True
        handle.tell(control.Act("unplug", {}))

    def _garble(self, handle: WorkerHandle, action: Garble) -> dict[str, Any]:
        peer = handle.peers[0]
        if peer is None or not self._domains[handle.rows[0].domain].garble(peer, action.message):
            raise Impossible("no server is connected to it")
        handle.garbled = True
        return {"message": action.message}

    # Migration

    def _migrate(self, handle: WorkerHandle, action: Migrate) -> dict[str, Any]:
        """Raises `Impossible` where there is nothing to migrate; a refusal is QEMU's, and told with its words."""
        if len(handle.rows) > 1:
            raise Impossible("it has devices in several domains")
        if handle.unplugged or handle.stalled:
            raise Impossible("it has no device any more" if handle.unplugged else "it stands still")
        here = handle.rows[0].domain
        target = next((each for each in self._domains if each.name == action.to_domain), self._domains[here])
        if action.hand_over and target.number != here:
            raise Impossible("a connection that is handed over leads where it led before: leave out to_domain")
        try:
            _gate(handle).check()
        except MigrationError as refusal:
            return {"refused": str(refusal)}
        server = "" if action.hand_over else str(target.path)
        if action.fault == "server_gone":
            server += ".gone"
        if not handle.tell(control.Migrate(server, target.number, os.getpid(), action.fault or "")):
            raise Impossible("it does not read what it is told")
        if action.fault == "source_dies":
            handle.ending = action.do
        handle.moving = Moving(target.number, action.hand_over, action.fault or "")
        return {"to_domain": target.name, "hand_over": action.hand_over, "fault": action.fault or ""}

    # Servers

    def _on_server(self, action: ServerAction) -> dict[str, Any]:
        domain = next(each for each in self._domains if action.domain in (None, each.name))
        getattr(self, f"_{action.do}")(domain)
        return {"domain": domain.name}

    def _stop_server(self, domain: LiveDomain) -> None:
        if domain.server is None:
            raise Impossible("no server listens")
        domain.stop()

    def _start_server(self, domain: LiveDomain) -> None:
        if domain.server is not None:
            raise Impossible("a server listens already")
        domain.start()


def _gate(handle: WorkerHandle) -> Blockers:
    """The reasons of a machine not to migrate, as QEMU would have collected them."""
    machine = handle.machine
    profile = profiles.profile(machine.profile)
    device = Ivshmem(profile, vectors=machine.vectors, role=machine.role, size_bytes=GATE_BYTES, ring=lambda *_: None)
    device.peer = handle.peers[0] if profile.server else 0  # a role may be left to it
    blockers = Blockers(locked=profile.migration_locks_devices)
    for reason in machine.blockers:  # older than the device's, as in topologies.migration_plan
        blockers.add(Blocker(reason))
    blockers.plug(device)
    blockers.migrating = handle.moving is not None
    return blockers


def _has_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken effect (proc_pid_stat(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == STOPPED_STATE
