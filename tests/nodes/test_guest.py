"""nodes.guest: what a program sees of its machine."""

from __future__ import annotations

import random

import pytest

from nodes.device.profiles import PROFILES
from nodes.errors import GuestError
from nodes.guest import Guest, Interrupt
from nodes.ledger import NoLedger
from nodes.vm import Vm
from tests.fabric import KeptLedger

MEMORY_BYTES = 8192


def machine(profile="qemu-doorbell", vectors=3, ledger=None):
    return Vm(
        PROFILES[profile],
        vectors=vectors,
        role="peer",
        signal=lambda line, value: None,
        ledger=ledger or NoLedger(),
        clock=lambda: 42,
        random=random.Random(1),
        sample_every=0,
    )


@pytest.fixture
def guest() -> Guest:
    vm = machine()
    vm.place(5, memoryview(bytearray(MEMORY_BYTES)))
    return vm.guest


def test_a_guest_that_is_not_connected_has_no_id_no_memory_and_no_peers():
    guest = machine().guest
    with pytest.raises(GuestError, match="no ID yet"):
        _ = guest.peer
    assert len(guest.memory) == 0
    assert guest.peers == {}


def test_a_guest_knows_its_id_vectors_and_clock(guest):
    assert (guest.peer, guest.vectors, guest.clock(), guest.start_ns) == (5, 3, 42, 0)
    assert guest.read(0, 8) == 5  # IVPosition says the same
    assert isinstance(guest.random, random.Random)


def test_the_memory_is_what_is_behind_bar2(guest):
    guest.memory[16:20] = b"\x01\x02\x03\x04"
    assert guest.read(2, 16) == 0x04030201
    guest.write(2, MEMORY_BYTES - 8, 0x1122334455667788, 8)
    assert bytes(guest.memory[-8:]) == bytes.fromhex("8877665544332211")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_accesses_of_every_size(guest, size):
    value = 0xA1A2A3A4A5A6A7A8 & ((1 << 8 * size) - 1)
    guest.write(2, 64, value, size)
    assert guest.read(2, 64, size) == value


def test_mask_and_unmask_are_the_vectors_own_bit(guest):
    for vector in range(guest.vectors):
        control = 16 * vector + 12
        assert guest.read(1, control) == 0  # the driver has unmasked it
        guest.mask(vector)
        assert [guest.read(1, 16 * v + 12) for v in range(3)] == [int(v == vector) for v in range(3)]
        guest.unmask(vector)


@pytest.mark.parametrize("vector", [-1, 3, 65536])
def test_a_vector_that_does_not_exist_cannot_be_masked(guest, vector):
    for change in (guest.mask, guest.unmask):
        with pytest.raises(GuestError, match=rf"vector {vector} does not exist.*0\.\.2"):
            change(vector)


@pytest.mark.parametrize("access", [lambda g: g.read(3, 0), lambda g: g.write(7, 0, 1), lambda g: g.read(2, 0, 3)])
def test_accesses_that_no_processor_can_make(guest, access):
    with pytest.raises(GuestError):
        access(guest)


def test_without_msix_there_is_nothing_to_mask():
    vm = machine("qemu-1.1-intx")
    vm.place(0, memoryview(bytearray(4 << 20)))
    with pytest.raises(GuestError, match="no MSI-X"):
        vm.guest.mask(0)


def test_an_interrupt_is_a_vector_and_a_number_of_doorbells():
    assert Interrupt(2, 7) == (2, 7, 0)


def test_a_doorbell_written_to_the_register_that_reaches_no_peer_is_counted():
    ledger = KeptLedger()
    vm = machine(ledger=ledger)
    vm.place(3, memoryview(bytearray(MEMORY_BYTES)))
    vm.connect(4, 0, line=9)
    vm.guest.write(0, 12, 4 << 16)
    assert vm.device.ignored_doorbells == 0
    vm.guest.write(0, 12, 5 << 16)
    vm.guest.write(0, 12, 7, 2)
    vm.guest.write(0, 0, 0xFFFFFFFF)
    vm.doorbells.flush()
    assert ledger.nowhere == 2


@pytest.mark.parametrize(("stop_ns", "oldest_ns"), [(40, 30), (42, 32), (99, 32)])
def test_missed_doorbells_are_added_and_the_oldest_is_kept(guest, stop_ns, oldest_ns):
    assert guest.end_ns == 42  # without an end, until now
    guest.stop_ns = stop_ns
    guest.miss(3, 10)
    guest.miss(2, 30)
    assert (guest.missed, guest.missed_oldest_ns) == (5, oldest_ns)
