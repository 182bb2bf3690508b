"""The process of one machine that is a real QEMU without a guest: its program runs here and drives QEMU by qtest."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal as signals
import time
from collections.abc import Mapping

from nodes.errors import HostError, IvshmemError, QemuError
from nodes.vm import Vm
from sim.engines import messages
from sim.engines.process import control
from sim.engines.process.attached_device import AttachedDevice
from sim.engines.process.waiting import register_all
from sim.engines.process.worker import Worker
from sim.engines.qemu.device import QemuIvshmem, QemuVm
from sim.engines.qemu.machine import QemuMachine
from sim.engines.qemu.migration import send_state
from sim.engines.shared.configuration import WorkerConfiguration
from sim.kernel.fork_handover import remap
from sim.kernel.memory import map_region
from sim.recording import Recording, header


class QemuWorker(Worker):
    """A worker whose devices are those of a QEMU, which it starts and ends."""

    def __init__(self, configuration: WorkerConfiguration, recordings: list[Recording]) -> None:
        self._machine = QemuMachine()
        self._make_vm = functools.partial(QemuVm, self._machine)
        self._placed: list[tuple[QemuVm, int, memoryview]] = []
        self._memory = -1  # that of the first device, for a QEMU that it is handed over to
        super().__init__(configuration, recordings)

    def _take_memory(self, vm: Vm, peer: int, descriptor: int) -> None:
        """A device has its ID and its memory; when all have, QEMU starts and the driver finds them."""
        assert isinstance(vm, QemuVm)
        if not self._placed:
            self._memory = os.dup(descriptor)
        vm.real.greet(peer, descriptor)
        self._placed.append((vm, peer, memoryview(map_region(descriptor))))
        if len(self._placed) < len(self._configuration.devices):
            return
        self._machine.start()
        self._take_in(self._machine)
        for each, its, memory in self._placed:
            each.place(its, memory)

    def _take_in(self, machine: QemuMachine) -> None:
        """The machine is in this QEMU from now on."""
        self._machine = machine
        self._link.send(control.Hosted(machine.qemu.pid))
        self._epoll.register(machine.descriptor, select.EPOLLIN)

    def _handle_event(self, descriptor: int) -> None:
        if descriptor == self._machine.descriptor:
            raise QemuError(self._machine.qemu.end())
        super()._handle_event(descriptor)

    def _remove_devices(self) -> None:
        if self._machine.why_not_unplugged:
            self._forget_qemu()
        super()._remove_devices()
        self._warn()

    def _end_processes(self) -> None:
        self._forget_qemu()
        self._machine.close()
        super()._end_processes()

    def _forget_qemu(self) -> None:
        """QEMU is about to be ended: that is no accident."""
        if self._machine.descriptor >= 0:
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(self._machine.descriptor)

    def _migrate(self, order: control.Continue) -> None:
        """Continue in a new QEMU; this process stays."""
        paused_ns = time.monotonic_ns()
        vm, source, target = self._qemu_vm, self._machine, QemuMachine(incoming=True)
        vm.doorbells.flush()
        before, place = vm.stand_by(target), _Place(self._devices[0], dict(self._own), dict(self._servers))
        try:
            peer, memory = self._connect_elsewhere(order, target) if order.server else self._hand_over(before, target)
            assert target.state is not None
            self._link.send(control.Hosted(target.qemu.pid, stands_by=True))
            state_bytes = send_state(source.qemu, target.qemu, target.state, fault=order.fault)
            if order.fault == "source_dies":
                os.kill(os.getpid(), signals.SIGKILL)
            if order.server:
                remap(vm.guest.memory, memory)
        except BaseException as error:  # whatever it is, the machine continues where it was
            target.close()
            vm.real.close()
            vm.stay(source, before)
            self._return(place)
            self._link.send(messages.Stayed(str(error) or "the run is over", time.monotonic_ns() - paused_ns))
            if isinstance(error, IvshmemError):
                return
            raise
        self._forget_qemu()
        source.close()
        before.close()
        place.leave(self._devices[0])
        self._take_in(target)
        os.close(self._memory)
        self._memory = memory
        recording = self._devices[0].recording
        elsewhere = recording.words[header.DOMAIN] != order.domain
        recording.words[header.PEER], recording.words[header.DOMAIN] = peer, order.domain
        vm.arrive_as(peer)
        pending = sum(vm.guest.pending(vector) for vector in range(vm.guest.vectors))
        memory_bytes = len(vm.guest.memory) if elsewhere else 0
        self._link.send(messages.Moved(peer, time.monotonic_ns() - paused_ns, state_bytes, memory_bytes, pending))
        vm.settle()

    @property
    def _qemu_vm(self) -> QemuVm:
        assert isinstance(self._vm, QemuVm)
        return self._vm

    def _hand_over(self, before: QemuIvshmem, target: QemuMachine) -> tuple[int, int]:
        """Let the new QEMU take over the connection. Returns the ID, and a descriptor of the memory."""
        self._qemu_vm.take_over(before, self._memory)
        target.start()
        assert before.peer is not None
        return before.peer, os.dup(self._memory)

    def _connect_elsewhere(self, order: control.Continue, target: QemuMachine) -> tuple[int, int]:
        """Connect to a server for the new QEMU, and start that. Returns the ID, and a descriptor of the memory."""
        arrived: list[tuple[int, int]] = []

        def place(peer: int, descriptor: int) -> None:
            arrived.append((peer, os.dup(descriptor)))
            self._qemu_vm.real.greet(peer, descriptor)
            target.start()

        self._ignore()
        device = self._devices[0]
        device.connect_also(order.server, order.domain, place)
        self._heed({}, {device.connection.fileno(): device})
        try:
            while not device.is_met:
                if not self._servers:
                    raise HostError("the server has gone")
                self._wait_and_handle_event()
        except BaseException:
            for _, descriptor in arrived:
                os.close(descriptor)
            raise
        return arrived[0]

    def _return(self, place: _Place) -> None:
        """Use the connection again that was used before."""
        device = self._devices[0]
        if device.connection is not place.connection:
            self._ignore()
            device.connection.close()
            device.connection, device.recorder.domain = place.connection, place.domain
        elif self._servers or self._own:
            return
        self._heed(place.own, place.servers)

    def _ignore(self) -> None:
        """Wait neither for the servers nor for own eventfds."""
        for descriptor in (*self._own, *self._servers):
            self._epoll.unregister(descriptor)
        self._own.clear()
        self._servers.clear()

    def _heed(self, own: Mapping[int, int], servers: Mapping[int, AttachedDevice]) -> None:
        """Wait for these own eventfds and servers."""
        self._own.update(own)
        self._servers.update(servers)
        register_all(self._epoll, own, servers)

    def close(self) -> None:
        self._machine.close()
        for vm, _, _ in self._placed:
            vm.real.close()
        if self._memory >= 0:
            os.close(self._memory)
        super().close()


class _Place:
    """Where a machine is connected before it migrates."""

    def __init__(self, device: AttachedDevice, own: dict[int, int], servers: dict[int, AttachedDevice]) -> None:
        self.connection, self.domain = device.connection, device.recorder.domain
        self.own, self.servers = own, servers

    def leave(self, device: AttachedDevice) -> None:
        """The machine is connected elsewhere: end this connection, unless it was handed over."""
        if device.connection is not self.connection:
            self.connection.close()
