"""The machine in a worker's process: its descriptors, its clock, its wait.

Its program runs from Start to Stop. Orders that come meanwhile are carried out between two events of the program.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal as signals
import time
from collections.abc import Callable

from nodes.errors import GuestError, HostError
from nodes.load import Load
from nodes.vm import Vm
from sim.engines import messages
from sim.engines.process import control
from sim.engines.process.attached_device import AttachedDevice
from sim.engines.process.control import Control
from sim.engines.process.migration import FailurePipe, IncomingDevice, let_go
from sim.engines.process.waiting import OWN_EVENTS, drain_late, poll_until, register_all
from sim.engines.shared.bound_program import BoundProgram, stop_program
from sim.engines.shared.configuration import WorkerConfiguration
from sim.engines.shared.delivery import make_delivery
from sim.engines.shared.failures import ProgramError, blaming_program
from sim.engines.shared.worker_actions import WorkerActions
from sim.kernel.eventfd import drain
from sim.kernel.fork_handover import Source, fork_successor
from sim.kernel.processes import end_children, keep_orphans
from sim.kernel.waiting import readable_within
from sim.recording import Recording, State, header
from sim.wire.connection import place_memory

SECOND_NS = 1_000_000_000


class _Stopped(Exception):  # noqa: N818  (no error)
    """The time is up, or the coordinator has ordered Stop or Leave."""


class _Moved(Exception):  # noqa: N818  (no error)
    """The machine continues in another process: this one ends without a further report."""


class Worker:
    """One machine in this process: all that it holds, and its two loops, before and after Start.

    It is made in two steps. A new one has devices, which are connected to nothing, and no descriptor: forks of a
    process that has made it can each become a machine. `attach` makes it the machine that it is.
    """

    _make_vm: Callable[..., Vm] = Vm

    def __init__(self, configuration: WorkerConfiguration, recordings: list[Recording]) -> None:
        self._configuration = configuration
        self.recordings = recordings
        self._start_ns: int | None = None
        self._stop_ns = self._joined_ns = 0
        self._told_to_stop = self._may_proceed = False
        self._take: Callable[[int], int] = drain
        self._own: dict[int, int] = {}  # own eventfd -> its vector, counted through all devices
        self._passed_over: set[int] = set()  # own eventfds whose events came while no program could take interrupts
        self._servers: dict[int, AttachedDevice] = {}  # socket to a server -> the device that is connected to it
        self._devices: list[AttachedDevice] = []
        for device_configuration, recording in zip(configuration.devices, recordings, strict=True):
            device = AttachedDevice(
                device_configuration,
                recording,
                configuration,
                make_vm=self._make_vm,
                first=self._devices[0].vm if self._devices else None,
                on_memory=self._take_memory,
                on_own=self._add_own,
                on_own_gone=self._remove_own,
                warn=lambda text: self._link.send(messages.Warned(text)),
            )
            self._devices.append(device)
        self._vm = self._devices[0].vm
        self._delivery = make_delivery(self._devices, configuration.vectors)
        self._vm.guest.load = Load(configuration.load)
        self._actions = WorkerActions(
            [device.vm for device in self._devices],
            configuration.vectors,
            delay_interrupts=self._delay_interrupts,
            stop_reading=self._stop_reading,
            remove_devices=self._remove_devices,
        )

    def attach(self, configuration: WorkerConfiguration, link: Control, coordinator: int) -> None:
        """Become the machine of this configuration, which has the common part of the one that this was made from.

        Args:
            configuration: the machine's own.
            link: the way to the coordinator.
            coordinator: the process that adopts this one.
        """
        self._configuration, self._link, self._coordinator = configuration, link, coordinator
        self._epoll = select.epoll()
        self._alarm, self._alarm_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for its, device in zip(configuration.devices, self._devices, strict=True):
            device.attach(its.server, configuration.seed, coordinator)
            self._servers[device.connection.fileno()] = device

    def _take_memory(self, vm: Vm, peer: int, descriptor: int) -> None:
        place_memory(vm, peer, descriptor)

    def run(self) -> None:
        with blaming_program():
            self._program = BoundProgram(self._configuration)
        register_all(self._epoll, (), (self._link.fileno(), *self._servers))
        self._enter(State.CONNECTED)
        try:
            self._await_greetings()
            self._enter(State.READY, header.READY_NS)
            self._link.send(messages.Ready())
            self._await_start()
            self._enter(State.RUNNING, header.STARTED_NS)
            self._serve()
        except _Stopped:
            self._stop()
        except _Moved:
            pass  # all that this process still holds are copies

    def close(self) -> None:
        for device in self._devices:
            device.connection.close()
        self._epoll.close()
        os.close(self._alarm)
        os.close(self._alarm_writer)

    def _migrate(self, order: control.Continue) -> None:
        """Continue in a new process; returns there, or here when the migration fails."""
        paused_ns = time.monotonic_ns()
        device = self._devices[0]
        device.vm.doorbells.flush()
        state = device.vm.device.save()
        failure_pipe = FailurePipe()
        side = fork_successor()
        if isinstance(side, Source):
            if not (reason := let_go(side, order.fault)):
                raise _Moved
            self._link.send(messages.Stayed(failure_pipe.take() or reason, time.monotonic_ns() - paused_ns))
            failure_pipe.close()
            return
        keep_orphans()
        # Not reported by the source: should that be killed now, the coordinator would not know of this process.
        self._link.send(control.Forked(os.getpid()))
        try:
            if order.fault == "target_dies":
                os.kill(os.getpid(), signals.SIGKILL)
            copied_bytes = self._rebuild(device, order, state)
            if not (side.stand_ready() and side.tie_to(self._coordinator)):
                os._exit(1)
        except _Stopped:
            failure_pipe.give("the run is over")
            os._exit(1)
        except BaseException as error:  # whatever it is, the machine continues where it was
            failure_pipe.give(str(error) or type(error).__name__)
            os._exit(1)
        failure_pipe.close()
        peer, guest = device.connection.endpoint.peer, device.vm.guest
        assert peer is not None
        device.recording.words[header.PEER], device.recording.words[header.DOMAIN] = peer, order.domain
        pending = sum(guest.pending(vector) for vector in range(guest.vectors)) if device.vm.device.msix else 0
        self._set_alarm()
        downtime_ns = time.monotonic_ns() - paused_ns
        self._link.send(messages.Moved(peer, downtime_ns, len(state), copied_bytes, pending))
        device.vm.settle()

    def _rebuild(self, device: AttachedDevice, order: control.Continue, state: bytes) -> int:
        """In the new process: make anew what may not be shared. Returns how much memory was copied, in bytes."""
        self._epoll.close()  # this copy only: never unregister, the set behind it is the source's, too
        self._epoll = select.epoll()
        for descriptor in (self._alarm, self._alarm_writer):
            os.close(descriptor)
        self._alarm, self._alarm_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._link.fileno(), select.EPOLLIN)
        self._may_proceed = False
        while not self._may_proceed:
            self._wait_and_handle_event()
        if not order.server:
            register_all(self._epoll, self._own, self._servers)
            return 0
        self._own.clear()
        self._servers.clear()
        elsewhere = order.domain != device.recorder.domain
        arrival = IncomingDevice(device.vm, state, elsewhere=elsewhere, fault=order.fault)
        device.connection.close()  # this process's copies of it and of its eventfds
        device.connect_also(order.server, order.domain, arrival.take)
        self._servers[device.connection.fileno()] = device
        self._epoll.register(device.connection.fileno(), select.EPOLLIN)
        while not device.is_met:
            if not self._servers:
                raise HostError("the server has gone")
            self._wait_and_handle_event()
        return arrival.memory_bytes

    def _wait_and_handle_event(self, timeout_s: float | None = None) -> bool:
        """While no program can take interrupts: `_serve` returns to them. False when the time is up."""
        for descriptor, _ in (events := self._epoll.poll(timeout_s)):
            if descriptor in self._own:
                self._passed_over.add(descriptor)
            else:
                self._handle_event(descriptor)
        return bool(events)

    def _return_to_passed_over(self) -> None:
        for descriptor in self._passed_over & self._own.keys():
            self._epoll.modify(descriptor, OWN_EVENTS)  # it is an event again, if the eventfd still holds something
        self._passed_over.clear()

    def _enter(self, state: int, stamp: int | None = None) -> None:
        for recording in self.recordings:
            if stamp is not None:
                recording.words[stamp] = time.monotonic_ns()
            recording.words[header.STATE] = state

    # The servers

    def _add_own(self, descriptor: int, device: int) -> None:
        """Wait for an own eventfd from now on."""
        self._own[descriptor] = device * self._configuration.vectors + self._devices[device].connection.own[descriptor]
        self._epoll.register(descriptor, OWN_EVENTS)

    def _remove_own(self, descriptor: int) -> None:
        """Stop waiting for an own eventfd, which the device is about to close."""
        del self._own[descriptor]
        self._epoll.unregister(descriptor)

    def _await_greetings(self) -> None:
        """Read the greetings until all peers are connected that were present when this machine joined."""
        while not all(device.is_met for device in self._devices):
            self._wait_and_handle_event()
            for device in self._devices:
                if (peer := device.connection.endpoint.peer) is not None:
                    device.recording.words[header.PEER] = peer

    def _await_start(self) -> None:
        while self._start_ns is None:
            self._wait_and_handle_event()
        for guest in self._vm.guest.devices:
            guest.start_ns, guest.joined_ns, guest.stop_ns = self._start_ns, self._joined_ns, self._stop_ns
        self._set_alarm()
        while (left_ns := self._start_ns - time.monotonic_ns()) > 0:
            time.sleep(left_ns / SECOND_NS)

    def _set_alarm(self) -> None:
        """End the wait at the time to stop, without the coordinator: that may get a CPU much later."""
        with contextlib.suppress(FileExistsError):  # a machine that has migrated before its start has registered it
            self._epoll.register(self._alarm, select.EPOLLIN)
        # SIGALRM itself does nothing: its handler is inherited from the fork server.
        signals.set_wakeup_fd(self._alarm_writer)
        signals.setitimer(signals.ITIMER_REAL, max(1, self._stop_ns - time.monotonic_ns()) / SECOND_NS)

    def _read_server(self, server: int) -> None:
        if not self._servers[server].connection.read():
            # Doorbells and interrupts need no server; only news of peers ends.
            self._forget_server(server)

    def _forget_server(self, server: int) -> None:
        if self._servers.pop(server, None) is not None:
            self._epoll.unregister(server)

    # The coordinator

    def _handle_event(self, descriptor: int) -> None:
        """Something other than an own eventfd is readable."""
        if descriptor == self._link.fileno():
            while (order := self._link.receive()) is not None:
                self._carry_out(order)
        elif descriptor == self._alarm:
            raise _Stopped
        elif descriptor in self._servers:
            self._read_server(descriptor)

    def _carry_out(self, order: control.ToWorker | control.FromWorker) -> None:
        match order:
            case messages.Ping(number):
                self._delivery.flush()
                for device in self._devices:
                    device.vm.doorbells.flush()
                    device.recording.words[header.PING_NS] = time.monotonic_ns()
                    device.recording.words[header.PING] = number
            case messages.PeerIds(peers, anew, foreign):
                self._program.learn(peers, anew=anew, foreign=foreign)
                self._vm.guest.generation += 1
            case messages.Expect(eventfds):
                for device, count in zip(self._devices, eventfds, strict=True):
                    device.expected = count
            case messages.Start(start_ns, stop_ns, joined_ns):
                self._start_ns, self._stop_ns, self._joined_ns = start_ns, stop_ns, joined_ns
            case messages.Stop():
                self._told_to_stop = True
                raise _Stopped
            case messages.Leave():
                self._actions.unplug()
                self._told_to_stop = True
                raise _Stopped
            case control.Continue():
                self._migrate(order)
            case control.Proceed():
                self._may_proceed = True
            case messages.Act():
                self._actions.carry_out(order)
            case _:
                raise RuntimeError(f"not an order: {order}")

    # What actions need

    def _delay_interrupts(self, delay_ns: int) -> None:
        self._take = functools.partial(drain_late, delay_ns / SECOND_NS) if delay_ns else drain

    def _stop_reading(self) -> None:
        for server in list(self._servers):
            self._forget_server(server)

    def _remove_devices(self) -> None:
        for descriptor in self._own:
            self._epoll.unregister(descriptor)
        self._own.clear()
        self._stop_reading()
        with blaming_program():
            for device in self._devices:
                device.vm.unplug()
        for device in self._devices:
            device.vm.doorbells.flush()
            device.connection.close()

    def _stop(self) -> None:
        """End the program: no more rings, no more drains; the counts are final."""
        stopped = stop_program([device.vm for device in self._devices], self.recordings[0].words)
        self._delivery.flush()
        self._end_processes()
        self._enter(State.STOPPED, header.STOPPED_NS)
        self._warn()
        self._link.send(stopped)
        # A machine that the clock has stopped stays until Stop comes: the coordinator samples all processes before.
        with contextlib.suppress(_Stopped):
            while not self._told_to_stop:
                readable_within(self._link.fileno(), None)
                self._handle_event(self._link.fileno())

    def _end_processes(self) -> None:
        ended, all_gone = end_children()
        if ended or not all_gone:
            text = f"its program left {len(ended)} processes behind, which were ended: {', '.join(ended)}"
            self._link.send(messages.Warned(text if all_gone else f"{text}; some of them do not end"))

    def _warn(self) -> None:
        while self._vm.warnings:
            self._link.send(messages.Warned(self._vm.warnings.pop(0)))

    # The guest

    def _serve(self) -> None:
        """Run the program until Stop: wait as long as it asks to, and resume it with each interrupt."""
        vm, own, poll, take = self._vm, self._own, self._epoll.poll, self._take
        deliver = self._delivery.recorded(time.monotonic_ns)
        warnings = vm.warnings
        events_max = len(own) + 3
        with blaming_program():
            wait = vm.start(self._program)
        self._actions.program = self._program
        self._return_to_passed_over()
        while True:
            if wait is None or wait == 0:
                events = poll(wait, events_max)
            else:
                try:
                    events = poll_until(self._epoll, wait, events_max)
                except GuestError as error:
                    raise ProgramError from error
            if not events:
                with blaming_program():
                    wait = vm.expire()
                continue
            for descriptor, _ in events:
                vector = own.get(descriptor)
                if vector is None:
                    self._handle_event(descriptor)
                    # The handler may have changed all of this, even the process.
                    self._return_to_passed_over()
                    take, wait, poll, events_max = self._take, vm.wait, self._epoll.poll, len(own) + 3
                    continue
                try:
                    count = take(descriptor)
                except BlockingIOError:
                    continue  # another process that holds it has drained it
                try:
                    wait = deliver(vector, count)
                except BaseException as error:
                    raise ProgramError from error
            if warnings:
                self._warn()
