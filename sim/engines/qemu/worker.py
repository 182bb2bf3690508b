"""The process of one machine that is a real QEMU without a guest: its program runs here and drives QEMU by qtest."""

from __future__ import annotations

import functools
import select

from nodes.errors import QemuError
from nodes.vm import Vm
from sim.engines.process import control
from sim.engines.process.control import Control
from sim.engines.process.worker import Worker
from sim.engines.qemu.device import QemuVm
from sim.engines.qemu.machine import QemuMachine
from sim.engines.shared.configuration import WorkerConfiguration
from sim.kernel.memory import map_region
from sim.recording import Recording

__all__ = ["QemuWorker"]


class QemuWorker(Worker):
    """A worker whose devices are those of a QEMU, which it starts and ends."""

    def __init__(
        self, configuration: WorkerConfiguration, link: Control, recordings: list[Recording], coordinator: int
    ) -> None:
        self._machine = QemuMachine()
        self._make_vm = functools.partial(QemuVm, self._machine)
        self._placed: list[tuple[QemuVm, int, memoryview]] = []
        super().__init__(configuration, link, recordings, coordinator)

    def _take_memory(self, vm: Vm, peer: int, descriptor: int) -> None:
        """A device has its ID and its memory; when all have, QEMU starts and the driver finds them."""
        assert isinstance(vm, QemuVm)
        vm.real.greet(peer, descriptor)
        self._placed.append((vm, peer, memoryview(map_region(descriptor))))
        if len(self._placed) < len(self._configuration.devices):
            return
        self._machine.start()
        self._link.send(control.Hosted(self._machine.qemu.pid))
        self._epoll.register(self._machine.descriptor, select.EPOLLIN)
        for each, its, memory in self._placed:
            each.place(its, memory)

    def _handle_event(self, descriptor: int) -> None:
        if descriptor == self._machine.descriptor:
            raise QemuError(self._machine.qemu.end())
        super()._handle_event(descriptor)

    def _unplug(self) -> None:
        self._forget_qemu()
        super()._unplug()

    def _end_processes(self) -> None:
        self._forget_qemu()
        self._machine.close()
        super()._end_processes()

    def _forget_qemu(self) -> None:
        """QEMU is about to be ended: that is no accident."""
        if self._machine.descriptor >= 0:
            self._epoll.unregister(self._machine.descriptor)

    def close(self) -> None:
        self._machine.close()
        for vm, _, _ in self._placed:
            vm.real.close()
        super().close()
