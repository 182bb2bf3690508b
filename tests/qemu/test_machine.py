"""A machine that is a real QEMU, without a run: its doorbells at counters that fill or empty, its removal."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from nodes.device import profiles
from sim.engines.qemu.device import QemuVm
from sim.engines.qemu.machine import QemuMachine
from sim.engines.qemu.msix_state import MsixState, read_msix_states, run_commands
from sim.kernel.eventfd import COUNTER_MAX, EventFd

pytestmark = pytest.mark.qemu

ITSELF, OTHER, VECTORS, MEMORY_BYTES = 0, 1, 2, 1 << 20


class EdgeCounts:
    """A ledger that keeps the counts of each edge."""

    def __init__(self) -> None:
        self.edges: list[tuple[int, int]] = []

    def open_edge(self, peer: int, vector: int) -> int:
        self.edges.append((0, 0))
        return len(self.edges) - 1

    def store_edge(self, edge: int, rung: int, refused: int) -> None:
        self.edges[edge] = rung, refused

    def sample(self, edge: int, rung: int, refused: int, intended_ns: int, rung_ns: int) -> None:
        self.store_edge(edge, rung, refused)

    def store_nowhere(self, rung: int) -> None:
        assert not rung


class QemuAndCounter:
    """A machine that is a QEMU, and the counter of the vector that it rings."""

    def __init__(self) -> None:
        self.machine, self.counts = QemuMachine(), EdgeCounts()
        self.counter = EventFd.create()
        self.vm = QemuVm(
            self.machine,
            profiles.profile("qemu-doorbell"),
            vectors=VECTORS,
            role="peer",
            ledger=self.counts,
            clock=lambda: 0,
            random=random.Random(1),
            sample_every=0,
        )
        memory = os.memfd_create("shared")
        os.truncate(memory, MEMORY_BYTES)
        self.vm.real.greet(ITSELF, memory)
        self.machine.start()
        # As with a second device whose memory is still to come, or in another domain: the vectors are there first.
        self.own = EventFd.create()
        self.vm.connect(ITSELF, 0, self.own.descriptor)
        self.vm.place(ITSELF, memoryview(bytearray(MEMORY_BYTES)))
        os.close(memory)
        self.vm.connect(OTHER, 0, self.counter.descriptor)

    def ring(self, meanwhile: Callable[[], object]) -> tuple[int, int]:
        """Ring once; ``meanwhile`` happens right before QEMU writes. Returns rung and refused."""
        write, happened = self.machine.qemu.write, []

        def write_later(address: int, size_bytes: int, value: int) -> None:
            happened.append(meanwhile())
            write(address, size_bytes, value)

        self.machine.qemu.write = write_later  # type: ignore[method-assign]
        self.vm.guest.ring(OTHER, 0)
        self.machine.qemu.write = write  # type: ignore[method-assign]
        assert len(happened) == 1
        self.vm.doorbells.flush()
        (edge,) = self.counts.edges
        return edge

    def close(self) -> None:
        self.machine.close()
        self.vm.real.close()
        self.counter.close()
        self.own.close()


@pytest.fixture
def pair() -> Iterator[QemuAndCounter]:
    made = QemuAndCounter()
    yield made
    made.close()


def test_a_counter_that_fills_while_qemu_rings_has_refused_the_doorbell(pair: QemuAndCounter) -> None:
    assert pair.ring(lambda: pair.counter.add(COUNTER_MAX)) == (1, 1)
    assert pair.counter.take() == COUNTER_MAX


def test_a_counter_that_empties_while_qemu_rings_has_the_doorbell(pair: QemuAndCounter) -> None:
    assert pair.counter.add(COUNTER_MAX)
    assert pair.ring(pair.counter.take) == (1, 0)
    assert pair.counter.take() == 1


def test_qemu_rings_the_peers_that_were_announced_at_once(
    pair: QemuAndCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a greeting announces them; the doorbell goes through QEMU, and not past it."""
    qemu, third, written = pair.machine.qemu, EventFd.create(), []
    write = qemu.write

    def write_and_note(address: int, size_bytes: int, value: int) -> None:
        written.append(value)
        write(address, size_bytes, value)

    monkeypatch.setattr(qemu, "write", write_and_note)
    pair.vm.connect_next([OTHER + 1], [third.descriptor])
    pair.vm.guest.ring(OTHER + 1, 0)
    assert (written, third.take()) == ([OTHER + 1 << 16], 1)
    third.close()


def test_a_machine_rings_itself_whenever_its_vectors_were_announced(pair: QemuAndCounter) -> None:
    pair.vm.guest.ring(ITSELF, 0)
    assert pair.own.take() == 1


def test_a_doorbell_that_qemu_drops_is_refused(pair: QemuAndCounter) -> None:
    def decode_nothing() -> None:
        pair.machine.qemu.config_write(pair.machine.slot(0), 0x04, 2, 0)  # COMMAND, behind the machine's back

    assert pair.ring(decode_nothing) == (1, 1)
    assert pair.counter.take() == 0


def test_eventfds_of_a_peer_that_has_left_are_closed(pair: QemuAndCounter) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pair.vm.disconnect(OTHER)
    assert len(os.listdir("/proc/self/fd")) == before - 1


def devices(machine: QemuMachine) -> list[int]:
    """The slots on bus 0 that have a device."""
    (bus,) = machine.qemu.qmp("query-pci")
    return [device["slot"] for device in bus["devices"]]


def test_an_unplugged_device_is_removed_and_qemu_goes_on(pair: QemuAndCounter) -> None:
    slot = pair.machine.slot(0)
    assert slot in devices(pair.machine)
    pair.vm.unplug()
    assert slot not in devices(pair.machine)
    assert pair.vm.warnings == []


def test_a_qemu_that_the_removal_would_abort_is_ended(pair: QemuAndCounter) -> None:
    pair.vm.disconnect(OTHER)
    pair.vm.unplug()
    assert not pair.machine.is_running
    (warning,) = pair.vm.warnings
    assert "device_del aborts a QEMU that has heard of a peer's leave: its QEMU was ended instead" in warning


CONTROL = 0x42  # MSI-X: pci_config.json, capability at 40


def hear(pair: QemuAndCounter) -> MsixState:
    (found,) = run_commands(read_msix_states(), pair.machine.qemu.qmp)
    assert isinstance(found, MsixState)
    return found


def test_why_a_device_cannot_interrupt_is_read_from_outside(pair: QemuAndCounter) -> None:
    qemu, slot = pair.machine.qemu, pair.machine.slot(0)
    qemu.ask(["outl 0xcf8 0x80000010"])  # a guest that is about to access configuration space
    assert hear(pair) == MsixState(ITSELF, "")
    assert qemu.ask(["inl 0xcf8"]) == ["0x80000010"]
    pair.vm.guest.mask(1)
    assert hear(pair) == MsixState(ITSELF, "masked: 1 of its 2 vectors")
    pair.vm.deliver(1, 1)
    assert hear(pair) == MsixState(ITSELF, "masked: 1 of its 2 vectors, and a doorbell is pending on 1", 1)
    for command, control, reason in (
        (0x0006, 0xC001, "MSI-X is masked as a whole"),
        (0x0002, 0x8001, "bus mastering is off, and an MSI is a write by the device"),
        (0x0006, 0x0001, "MSI-X is off"),
    ):
        qemu.config_write(slot, 0x04, 2, command)
        qemu.config_write(slot, CONTROL, 2, control)
        assert hear(pair) == MsixState(ITSELF, reason, 1)  # the pending bit stays


def test_a_doorbell_that_cannot_interrupt_is_told_once(pair: QemuAndCounter) -> None:
    pair.vm.device.config_write(0x04, 2, 0x0002)
    for _ in range(2):
        pair.vm.deliver(0, 1)
    assert pair.vm.device.lost_doorbells == 2
    why = "bus mastering is off, and an MSI is a write by the device"
    assert pair.vm.warnings == [f"a doorbell came that cannot interrupt the guest: {why}"]
