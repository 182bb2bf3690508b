"""Carries out the actions of `topologies.actions` on machines and servers; the timeline says when.

A `WorkerAction` is sent to its machine; each other action has a method ``_NAME`` here. An action that is not possible
now (the machine to be killed has ended) raises `ActionError` with the reason. The run continues; its events say so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from nodes.device.migration_texts import MigrationError
from nodes.errors import HostError, UsageError
from sim.coordination.domain import LiveDomain
from sim.coordination.incarnation import REFUSED, Incarnation, OngoingMigration
from sim.coordination.machines import LiveMachines
from sim.engines import messages
from sim.engines.base import COUNTER_MAX, Counter, RunLoop
from topologies import actions
from topologies.migration_plan import blockers_of

LOOK_NS = 1_000_000

Details = dict[str, Any]
"""The fields of an action's event besides the action."""


class ActionError(Exception):
    """The action is not possible now; the text says why."""


class Actions:
    """Carries out actions. ``spawn(incarnation)`` starts an incarnation that has been made, ``end()`` ends the run."""

    def __init__(
        self,
        machines: LiveMachines,
        domains: Sequence[LiveDomain],
        loop: RunLoop,
        *,
        spawn: Callable[[Incarnation], None],
        end: Callable[[], None],
    ) -> None:
        self._machines, self._domains, self._loop = machines, domains, loop
        self._spawn, self._end_run = spawn, end
        self._over = False
        self._filled: dict[Incarnation, list[tuple[Counter, int]]] = {}
        """By machine: the counters that were filled, and their values before."""

    def do(self, action: actions.Action, machine: int | None) -> Details:
        """Carry out an action on a machine, or on a server.

        Returns:
            Further fields of the event.

        Raises:
            ActionError: it is not possible now.
        """
        target: Incarnation | LiveDomain | None = None
        if isinstance(action, actions.RunAction):
            pass
        elif isinstance(action, actions.ServerAction):
            target = next(domain for domain in self._domains if action.domain in (None, domain.name))
        else:
            assert machine is not None
            assert isinstance(action, actions.MachineAction)
            target = incarnation = self._machines.current[machine]
            if not isinstance(action, actions.Join):
                self._check(incarnation, action)
            if isinstance(action, actions.WorkerAction):
                arguments = {key: value for key, value in msgspec.structs.asdict(action).items() if value is not None}
                incarnation.live.tell(messages.Act(action.do, arguments))
                return arguments
        done: Details | None = getattr(self, f"_{action.do}")(target, action)
        return done or {}

    def is_there(self, machine: int) -> bool:
        """Whether a machine runs and has not been told to end."""
        incarnation = self._machines.current[machine]
        return incarnation.is_running and incarnation.ending is None and not incarnation.left

    def undo(self) -> None:
        """Start no further action, and end all stalls, so that all machines can stop."""
        self._over = True
        for incarnation in self._machines.incarnations:
            if incarnation.stalled:
                self._let_go(incarnation)

    def _check(self, incarnation: Incarnation, action: actions.MachineAction) -> None:
        if not incarnation.is_running:
            raise ActionError("it is not running")
        if incarnation.left:
            raise ActionError("it has left")
        if incarnation.ending is not None:
            raise ActionError(f"it is ending: {incarnation.ending}")
        if incarnation.migration is not None and not action.while_migrating:
            raise ActionError("it is migrating")
        if not incarnation.ready and not action.before_ready:
            raise ActionError("it has not joined yet")

    def _join(self, current: Incarnation, _action: actions.Action | None = None) -> Details:
        if self.is_there(current.machine.index):
            raise ActionError("it is running already")
        machine = current.machine.index
        if current.left:
            current.live.tell(messages.Stop())
        if current.is_running:
            self._soon(lambda: self._join_when_gone(machine))
            return {"waits_until": f"{current.name} has gone"}
        try:
            incarnation = self._machines.new_incarnation(machine)
        except (HostError, OSError) as error:
            raise ActionError(str(error)) from error
        self._spawn(incarnation)
        return {"life": incarnation.name}

    def _join_when_gone(self, machine: int) -> None:
        if not self._over:
            with contextlib.suppress(ActionError):
                self._join(self._machines.current[machine])

    def _leave(self, incarnation: Incarnation, action: actions.Action) -> None:
        self._let_go(incarnation)
        incarnation.ending = action.do
        incarnation.live.tell(messages.Leave())

    def _kill(self, incarnation: Incarnation, action: actions.Action) -> None:
        incarnation.ending = action.do
        self._empty(incarnation)
        incarnation.live.kill()

    def _stall(self, incarnation: Incarnation, _action: actions.Action) -> None:
        if incarnation.stalled:
            raise ActionError("it is stalled already")
        incarnation.stalled = True
        incarnation.live.stall()

    def _resume(self, incarnation: Incarnation, _action: actions.Action) -> None:
        if not incarnation.stalled:
            raise ActionError("it is not stalled")
        self._let_go(incarnation)

    def _fill(self, incarnation: Incarnation, action: actions.Fill) -> None:
        if not incarnation.stalled:
            self._stall(incarnation, action)
        self._filled.setdefault(incarnation, [])
        self._fill_when_still(incarnation, action.vectors or ())

    def _fill_when_still(self, incarnation: Incarnation, vectors: tuple[int, ...]) -> None:
        """Wait until the machine has stopped: a running machine would drain its filled counters."""
        if not incarnation.stalled or not incarnation.is_running:
            return
        if not incarnation.live.is_still:
            self._soon(lambda: self._fill_when_still(incarnation, vectors))
            return
        filled = self._filled[incarnation]
        for row, peer in zip(incarnation.rows, incarnation.peers, strict=True):
            for counter in self._domains[row.domain].counters(peer, vectors) if peer is not None else ():
                if any(counter is full for full, _ in filled):
                    continue  # by an earlier fill of the same stall
                held = counter.take()
                while not counter.add(COUNTER_MAX):  # another machine has rung meanwhile
                    held += counter.take()
                filled.append((counter, held))

    def _let_go(self, incarnation: Incarnation) -> None:
        """End a stall; filled counters get their doorbells back."""
        self._empty(incarnation)
        if incarnation.stalled:
            incarnation.stalled = False
            incarnation.live.resume()

    def _empty(self, incarnation: Incarnation) -> None:
        for counter, held in self._filled.pop(incarnation, ()):
            counter.take()
            if held:
                counter.add(held)

    def _unplug(self, incarnation: Incarnation, _action: actions.Action) -> None:
        if incarnation.migration is not None:
            raise ActionError("device_del not allowed while migrating")
        incarnation.unplugged = True
        incarnation.live.tell(messages.Act("unplug", {}))

    def _garble(self, incarnation: Incarnation, action: actions.Garble) -> Details:
        peer = incarnation.peers[0]
        if peer is None or not self._domains[incarnation.rows[0].domain].server.garble(peer, action.message):
            raise ActionError("no server is connected to it")
        incarnation.garbled = True
        return {"message": action.message}

    def _migrate(self, incarnation: Incarnation, action: actions.Migrate) -> Details:
        """A refusal is QEMU's, in its words, and no `ActionError`."""
        if len(incarnation.rows) > 1:
            raise ActionError("it has devices in several domains")
        if incarnation.unplugged or incarnation.stalled:
            raise ActionError("its device is unplugged" if incarnation.unplugged else "it is stalled")
        here = incarnation.rows[0].domain
        target = next((domain for domain in self._domains if domain.name == action.to_domain), self._domains[here])
        if action.hand_over and target.number != here:
            raise ActionError("a connection that is handed over stays in its domain: remove to_domain")
        blockers = blockers_of(incarnation.machine, incarnation.peers[0])
        blockers.migrating = incarnation.migration is not None
        try:
            blockers.check()
        except MigrationError as refusal:
            incarnation.migrations[REFUSED] += 1
            return {"refused": str(refusal)}
        fault = action.fault or ""
        if not incarnation.live.tell(messages.Migrate(target.number, action.hand_over, fault)):
            raise ActionError("it does not read its orders")
        if action.fault == "source_dies":
            incarnation.ending = action.do
        incarnation.migration = OngoingMigration(target.number)
        return {"to_domain": target.name, "hand_over": action.hand_over, "fault": fault}

    def _end(self, _run: None, _action: actions.Action) -> None:
        self._end_run()

    def _stop_server(self, domain: LiveDomain, _action: actions.Action) -> Details:
        if not domain.server.is_listening:
            raise ActionError("no server listens")
        domain.server.stop()
        return {"domain": domain.name}

    def _start_server(self, domain: LiveDomain, _action: actions.Action) -> Details:
        if domain.server.is_listening:
            raise ActionError("a server listens already")
        try:
            domain.start()
        except (HostError, UsageError, OSError) as error:
            raise ActionError(str(error)) from error
        return {"domain": domain.name}

    def _soon(self, callback: Callable[[], None]) -> None:
        self._loop.at(self._loop.clock.now_ns() + LOOK_NS, callback)
