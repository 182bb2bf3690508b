"""A machine under virtual time: what a worker process is elsewhere, a slice of work at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nodes.device import profiles
from nodes.errors import HostError, UsageError
from nodes.load import shared_load
from sim.engines import messages
from sim.engines.base import DeviceRow
from sim.engines.messages import Ended, Order, Report
from sim.engines.shared.bound_program import BoundProgram, stop_program
from sim.engines.shared.configuration import WorkerConfiguration
from sim.engines.shared.failures import ProgramError, blaming_program, explain
from sim.engines.shared.worker_actions import WorkerActions
from sim.engines.virtual.announced_link import AnnouncedLink
from sim.engines.virtual.counter import VirtualCounter
from sim.engines.virtual.cpus import Task
from sim.engines.virtual.device import VirtualDevice
from sim.engines.virtual.device_connector import DeviceConnector
from sim.engines.virtual.execution import Execution
from sim.engines.virtual.host import VirtualHost
from sim.engines.virtual.link import VirtualLink
from sim.engines.virtual.migration import VirtualMigration
from sim.engines.virtual.orders import OrderQueue
from sim.engines.virtual.ready_counters import ReadyCounters
from sim.recording import Recording, State, header

KILL_NS = 500_000


class VirtualMachine(Task):
    """One incarnation of a machine; a `sim.engines.base.LiveMachine`.

    ``run`` is its only work: orders, what servers say, interrupts, and the program, as a worker's loop does them.
    """

    __slots__ = (
        *("_actions", "_announced", "_clock", "_configuration", "_connector", "_dismissed", "_execution"),
        *("_has_mail", "_host", "_is_executing", "_loop", "_migration", "_orders", "_program"),
        *("_report_to", "_rows", "_said_ready", "_start_ns", "_stopped", "_vms"),
        *("counters", "devices", "is_running"),
    )

    pid = None
    is_starved = False

    def __init__(
        self,
        host: VirtualHost,
        configuration: WorkerConfiguration,
        rows: Sequence[DeviceRow],
        recordings: Sequence[Recording],
        report: Callable[[Report], None],
        *,
        may_migrate: bool = False,
    ) -> None:
        super().__init__()
        self._host, self._loop, self._clock = host, host.loop, host.loop.clock
        self._configuration, self._rows, self._report_to = configuration, rows, report
        self.is_running = self._stopped = self._dismissed = False
        wire_delay = host.wire_delay_to(configuration.name)
        self._orders = OrderQueue(host.loop, wire_delay, self._can_read)
        self.counters = ReadyCounters(self, host.add_counter, host.holding)
        self._connector = DeviceConnector(
            self,
            host,
            self.counters,
            delay=wire_delay,
            vectors=configuration.vectors,
            may_migrate=may_migrate,
            on_readable=self._can_read,
            poke=self._poke,
            warn=self._warn,
        )
        self._announced = self._connector.announced
        self.heard = host.announced
        self._said_ready = self._has_mail = self._is_executing = False
        self._start_ns: int | None = None
        self._migration: VirtualMigration | None = None
        self.devices: list[VirtualDevice] = []
        for row, profile, recording in zip(rows, configuration.profiles, recordings, strict=True):
            self.devices.append(
                VirtualDevice(
                    recording,
                    profiles.profile(profile),
                    domain=row.domain,
                    vectors=configuration.vectors,
                    role=configuration.role,
                    memory_bytes=len(host.servers[row.domain].memory) if row.domain < len(host.servers) else 0,
                    seed=configuration.seed,
                    sample_every=configuration.sample_every,
                    first=self.devices[0].vm if self.devices else None,
                    name=row.name,
                    cut=host.decisions.cuts(configuration.name),
                    signal=host.signal,
                    make_batch=host.make_batch,
                    clock=host.now_ns,
                )
            )
        self.vm = self.devices[0].vm
        self.vm.guest.load = shared_load(configuration.load)
        name, vectors = configuration.name, configuration.vectors
        self._execution = Execution(host, self.devices, self.counters, vectors, self._poke, self, name)
        self._vms = [device.vm for device in self.devices]
        for vm in self._vms:
            vm.on_warned, vm.doorbells.on_ignored = self._warned, host.charge_ignored
        self._actions = WorkerActions(
            self._vms,
            vectors,
            delay_interrupts=self._execution.delay_interrupts,
            stop_reading=self._stop_reading,
            remove_devices=self._remove_devices,
        )
        self.wake_delay = host.decisions.delays("wake", name)

    # What its coordinator does

    def start(self) -> None:
        self.is_running = True
        self._loop.after(self._host.start_delay(), self._begin)

    def tell(self, order: Order) -> bool:
        if not self.is_running or self.is_gone:
            return False
        if isinstance(order, messages.Ping) and not self.is_still:
            self._store_counts(order.number)  # at once: to have all machines answer costs more than what they do
        else:
            self._orders.send(order)
        return True

    def stall(self) -> None:
        self.is_still, self.is_plain = True, False

    def resume(self) -> None:
        self.is_still = False
        self._poke()

    def kill(self) -> None:
        if self.is_running and not self.is_gone:
            self.is_gone, self.is_plain = True, False
            for device in self.devices:
                device.vm.doorbells.flush()
            self._loop.after(KILL_NS, lambda: self._end("SIGKILL"))

    def close(self) -> None:
        self.is_gone, self.is_running, self.is_plain = True, False, False

    # Its beginning and its end

    def _begin(self) -> None:
        if self.is_gone:
            return
        self.report(messages.Placed())
        try:
            with blaming_program():
                self._program = BoundProgram(self._configuration)
            for number, row in enumerate(self._rows):
                self.connect(number, row.domain)
        except (ProgramError, HostError, UsageError) as error:
            self.fail(error)
            return
        self._enter(State.CONNECTED)

    def connect(self, number: int, domain: int, place: Callable[[int, int], object] | None = None) -> None:
        """Connect a device to the server of a domain, as `DeviceConnector`."""
        self._connector.connect(self.devices[number], number, domain, place)
        self.heard = -1

    def fail(self, error: Exception) -> None:
        """The machine cannot go on, as a worker that raises. What has failed may be its migration alone."""
        if self._migration is not None:
            self._migration.fail(str(error) or type(error).__name__)
            return
        self.is_gone, self._is_executing, self.is_plain = True, False, False
        for device in self.devices:
            device.vm.doorbells.flush()
        self._enter(State.FAILED)
        self.report(explain(error))
        self._loop.after(KILL_NS, lambda: self._end("exit 1"))

    def _end(self, how: str) -> None:
        if not self.is_running:
            return
        self.is_gone, self.is_running, self.is_plain = True, False, False
        for device in self.devices:
            self._hang_up(device)
        if self._migration is not None:
            self._migration.abandon()
        self.report(Ended(how))

    def _hang_up(self, device: VirtualDevice) -> None:
        link, device.link = device.link, None
        if link is not None:
            self.hang_up(link)

    def report(self, report: Report) -> None:
        """Report something to the coordinator."""
        self._loop.news = True
        self._report_to(report)

    def _warn(self, text: str) -> None:
        self.report(messages.Warned(text))

    def _enter(self, state: int, stamp: int | None = None) -> None:
        for device in self.devices:
            words = device.recording.words
            if stamp is not None:
                words[stamp] = self._clock.ns
            words[header.STATE] = state

    def rung(self, counter: VirtualCounter, at_ns: int) -> None:
        if counter.is_heard:
            self.queue.append(counter)
            self._host.cpus.wake(self, at_ns)

    # Its work

    def _poke(self) -> None:
        """There may be something to do."""
        self._host.cpus.wake_now(self)

    def run(self) -> bool:
        host = self._host
        if self.is_gone or self.is_still:
            return False
        host.running, host.ticks = self, 0
        try:
            return self._run_all()
        except Exception as error:  # whatever it is: the machine fails, not the engine
            self.fail(error)
            return False
        finally:
            host.running = None

    def _run_all(self) -> bool:
        """A slice of whatever there is to do."""
        self.is_plain = False
        if self._has_mail:
            self._read_mail()
        if self.heard != self._host.announced:
            self._hear()
        if not self._is_executing or self._clock.ns >= self.stop_ns:
            return not self.is_gone and not self._stopped and self._proceed()
        more = self._execution.step()
        if self.vm.warnings:
            self.tell_warnings()
        self.is_plain = self._is_executing and not self._has_mail and self._execution.is_plain
        return more and self._is_executing

    def _proceed(self) -> bool:
        """Go on with what is no execution of the program: migrate, meet the peers, start, or stop."""
        if self._migration is not None:
            self._migration.proceed()
            return False
        if self._start_ns is None:
            self._meet()
            return False
        now_ns = self._clock.ns
        if now_ns >= self.stop_ns:
            self._stop()
            return False
        if now_ns < self._start_ns:
            return False
        self._enter(State.RUNNING, header.STARTED_NS)
        self._is_executing = True
        self._actions.program = self._execution.begin(self._program)
        self.tell_warnings()
        return self._is_executing and self._execution.has_more()

    def _hear(self) -> None:
        """Take in what servers have announced to all; look again with the next slice unless that was all."""
        for link in self._announced:
            link.hear()
        if all(link.heard == link.announcements.end for link in self._announced):
            self.heard = self._host.announced

    def _warned(self) -> None:
        self.has_warned = True

    def tell_warnings(self) -> None:
        self.has_warned = False
        while self.vm.warnings:
            self._warn(self.vm.warnings.pop(0))

    def _meet(self) -> None:
        for device in self.devices:
            if device.peer is not None:
                device.recording.words[header.PEER] = device.peer
        if not self._said_ready and all(device.is_met for device in self.devices):
            self._said_ready = True
            self._enter(State.READY, header.READY_NS)
            self.report(messages.Ready())

    # What the coordinator and servers say

    def _can_read(self) -> None:
        self._has_mail, self.is_plain = True, False
        self._poke()

    def _read_mail(self) -> None:
        """Take the orders of the coordinator that have arrived, then what servers have said."""
        self._has_mail = False
        while not self.is_gone and (order := self._orders.take()) is not None:
            self._obey(order)
        # Once stopped it hears no more, as in a process: a leave would let a device of ivshmem v2 ring itself.
        for device in () if self.is_gone or self._stopped else self.devices:
            if device.link is not None and not device.read():
                self._hang_up(device)

    def _stop_reading(self) -> None:
        for device in self.devices:
            if device.link is not None:
                device.link.close()

    def _remove_devices(self) -> None:
        self.counters.forget(self.counters.lines)
        with blaming_program():
            for vm in self._vms:
                vm.unplug()
        self.wait = None
        for device in self.devices:
            device.vm.doorbells.flush()
            self._hang_up(device)

    # What its coordinator orders

    def _obey(self, order: Order) -> None:
        match order:
            case messages.Ping(number):
                self._store_counts(number)
            case messages.PeerIds(peers, anew, foreign):
                self._program.learn(peers, anew=anew, foreign=foreign)
                self.vm.guest.generation += 1
            case messages.Expect(eventfds):
                for device, count in zip(self.devices, eventfds, strict=True):
                    device.expected = count
            case messages.Start():
                self._take_start(order)
            case messages.Stop():
                self._take_stop()
            case messages.Leave():
                if not self._stopped:
                    self._actions.unplug()
                self._take_stop()
            case messages.Migrate():
                self._is_executing = False
                self._migration = VirtualMigration(self, self._host, order)
                self._migration.begin()
            case messages.Act():
                self._actions.carry_out(order)
                self.wait = self.vm.wait

    def _store_counts(self, ping: int) -> None:
        self._execution.flush()
        for device in self.devices:
            device.vm.doorbells.flush()
            device.recording.words[header.PING_NS] = self._clock.ns
            device.recording.words[header.PING] = ping

    def _take_start(self, start: messages.Start) -> None:
        self._start_ns, self.stop_ns = start.start_ns, start.stop_ns
        for guest in self.vm.guest.devices:
            guest.start_ns, guest.joined_ns, guest.stop_ns = start.start_ns, start.joined_ns, start.stop_ns
        for at_ns in (start.start_ns, start.stop_ns):
            self._loop.after(max(0, at_ns - self._clock.ns), self._poke)

    def _take_stop(self) -> None:
        self._dismissed = True
        if self._stopped:
            self._end("")
        else:
            self._stop()

    def end_migration(self) -> None:
        """A migration is over, and the machine continues."""
        self._migration = None
        self._is_executing = self._execution.has_begun and not self._stopped
        self._poke()

    def hang_up(self, link: VirtualLink | AnnouncedLink) -> None:
        """Close a connection."""
        link.close()
        for server in self._host.servers:
            server.disconnect(link)

    def _stop(self) -> None:
        """End the program: no more rings, no more drains; the counts are final."""
        stopped = stop_program(self._vms, self.devices[0].recording.words)
        self._execution.flush()
        self._stopped, self._is_executing = True, False
        self._enter(State.STOPPED, header.STOPPED_NS)
        self.tell_warnings()
        self.report(stopped)
        if self._dismissed:
            self._end("")
