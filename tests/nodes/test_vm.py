"""nodes.vm: one machine between its doorbells and its program."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from nodes import programs
from nodes.device.profiles import PROFILES
from nodes.errors import GuestError
from nodes.guest import FOREVER, NOW, STEP, Interrupt
from nodes.peer_table import PeerTable
from nodes.vm import Vm
from tests.fabric import KeptLedger

MSIX_CONTROL = 0x42
MEMORY_BYTES = defaultdict(lambda: 4096, {name: 4 << 20 for name in PROFILES if name.startswith("qemu-1.1")})
FUNCTION_MASK, ENABLE = 1 << 14, 1 << 15


class VmSetup:
    """One machine: peer 0 with its own lines 0.., peer 1 with lines 100.. ."""

    def __init__(self, vectors=2, profile="qemu-doorbell", sample_every=1, first=None, role="peer", placed=True):
        self.rung = []
        self.heard = []
        self.ledger = KeptLedger()
        self.now_ns = 1000
        self.vm = Vm(
            PROFILES[profile],
            vectors=vectors,
            role=role,
            signal=lambda line, value: self.rung.append(line),
            ledger=self.ledger,
            clock=lambda: self.now_ns,
            random=random.Random(0),
            sample_every=sample_every,
            first=first,
        )
        self.left, self.fired = [], []
        self.vm.on_left = lambda *what: self.left.append(what)
        self.vm.on_fired = self.fired.append
        self.guest = self.vm.guest
        if placed:
            self.vm.place(0, memoryview(bytearray(MEMORY_BYTES[profile])))
        for vector in range(vectors):
            self.vm.connect(0, vector, vector)
            self.vm.connect(1, vector, 100 + vector)

    def listen(self, wait=FOREVER):
        """A program that keeps what it is resumed with and waits as it is told."""

        def program(guest):
            while True:
                self.heard.append((yield wait))

        return self.vm.start(program)

    def counts(self):
        self.vm.doorbells.flush()
        return {self.ledger.edges[edge]: counts for edge, counts in self.ledger.stored.items() if counts != (0, 0)}


@pytest.fixture
def bench():
    return VmSetup()


def test_an_interrupt_resumes_the_program_with_vector_and_count(bench):
    assert bench.listen() is FOREVER
    bench.vm.deliver(1, 1)
    bench.vm.deliver(0, 5)
    assert bench.heard == [Interrupt(1, 1), Interrupt(0, 5)]
    assert (bench.left, bench.fired) == ([], [])


@pytest.mark.parametrize("wait", [FOREVER, NOW, 12345])
def test_how_long_the_program_waits_is_what_it_yielded(bench, wait):
    assert bench.listen(wait) == wait
    assert bench.vm.deliver(0, 1) == wait
    assert bench.vm.expire() == wait
    assert bench.heard == [Interrupt(0, 1), None]


@pytest.mark.parametrize("wait", [FOREVER, NOW, 12345])
def test_an_interrupt_that_stays_pending_does_not_change_what_the_program_waits_for(bench, wait):
    bench.guest.mask(0)
    bench.listen(wait)
    assert bench.vm.deliver(0, 1) == wait
    assert bench.heard == []


def test_mask_pending_unmask_fires_once(bench):
    bench.listen()
    bench.guest.mask(0)
    for _ in range(3):
        bench.vm.deliver(0, 2)
    assert bench.heard == []
    assert bench.guest.read(1, 0x800) == 1
    bench.guest.unmask(0)
    bench.vm.expire()
    assert bench.heard == [None, Interrupt(0, 1)]
    assert bench.guest.read(1, 0x800) == 0
    assert (bench.left, bench.fired) == ([(0, 2, 0)] * 3, [0])


def test_unmasking_inside_the_program_is_answered_after_it_yields(bench):
    heard, order = [], []

    def program(guest):
        guest.mask(0)
        yield FOREVER
        guest.unmask(0)
        order.append("the program goes on")
        heard.append((yield 777))
        order.append("the interrupt came")
        heard.append((yield 888))

    bench.vm.start(program)
    assert bench.vm.deliver(0, 4) is FOREVER
    assert bench.vm.expire() == 888
    assert order == ["the program goes on", "the interrupt came"]
    assert heard == [Interrupt(0, 1)]


def test_a_masked_vector_leaves_the_others_alone(bench):
    bench.listen()
    bench.guest.mask(0)
    bench.vm.deliver(1, 3)
    assert bench.heard == [Interrupt(1, 3)]


@pytest.mark.parametrize("vectors", [1, 64, 2048])
def test_all_vectors_pending_fire_when_the_function_is_unmasked(vectors):
    """As many as MSI-X can have; each once, in the order of the table."""
    bench = VmSetup(vectors)
    bench.listen()
    device = bench.vm.device
    device.config_write(MSIX_CONTROL, 2, ENABLE | FUNCTION_MASK)
    for vector in range(vectors):
        assert bench.vm.deliver(vector, 2) is FOREVER
    assert bench.heard == []
    device.config_write(MSIX_CONTROL, 2, ENABLE)
    bench.vm.expire()
    assert bench.heard == [None, *(Interrupt(vector, 1) for vector in range(vectors))]


def test_a_program_that_masks_and_unmasks_as_it_handles_is_interrupted_as_often_as_it_was_rung():
    bench = VmSetup()
    heard = []

    def program(guest):
        guest.mask(0)
        guest.mask(1)
        while True:
            interrupt = yield FOREVER
            heard.append(interrupt)
            guest.unmask(1)
            guest.mask(1)

    bench.vm.start(program)
    for _ in range(3):
        bench.vm.deliver(1, 1)
        bench.vm.expire()
    assert [one for one in heard if one is not None] == [Interrupt(1, 1)] * 3


def read_status(found):
    """A handler of 2012: it reads IntrStatus, which clears it and lowers the line."""

    def program(guest):
        while True:
            interrupt = yield FOREVER
            found.append((interrupt, guest.devices[interrupt.device].read(0, 4)))

    return program


def test_intx_is_one_level_for_all_vectors():
    bench, found = VmSetup(profile="qemu-1.1-intx"), []
    bench.vm.start(read_status(found))
    bench.vm.deliver(1, 3)
    assert not bench.vm.device.intx_level
    bench.vm.deliver(0, 257)
    assert found == [(Interrupt(0, 3), 3), (Interrupt(0, 257), 1)]
    assert (bench.left, bench.fired) == ([], [])


def test_intx_stays_up_until_the_program_reads_the_status():
    """The line interrupts at each doorbell as long as it is up; only the program's own read clears the status."""
    bench = VmSetup(profile="qemu-1.1-intx")
    bench.listen()
    for count in (3, 5):
        bench.vm.deliver(1, count)
        assert bench.vm.device.intx_level
        assert bench.guest.read(0, 0) == 0xFFFF_FFFF
    assert bench.heard == [Interrupt(0, 3), Interrupt(0, 5)]
    assert bench.guest.read(0, 4) == 5
    assert not bench.vm.device.intx_level
    assert bench.guest.read(0, 4) == 0
    bench.vm.expire()
    assert bench.heard[2:] == [None]


def test_intx_that_the_program_masks_fires_when_it_unmasks():
    bench, left, fired, found = VmSetup(profile="qemu-1.1-intx"), [], [], []
    bench.vm.on_left = lambda *what: left.append(what)
    bench.vm.on_fired = fired.append
    bench.guest.write(0, 0, 0)
    bench.vm.start(read_status(found))
    bench.vm.deliver(1, 2)
    bench.vm.deliver(0, 7)
    assert (found, left, fired) == ([], [(1, 2, 0), (0, 7, 0)], [])
    bench.guest.write(0, 0, 4)
    bench.vm.settle()
    assert (found, fired) == ([(Interrupt(0, 1), 7)], [0])
    bench.vm.deliver(0, 3)  # none of its bits is in the mask
    assert left[2:] == [(0, 3, 0)]


def test_intx_counts_doorbells_of_which_the_status_keeps_nothing_as_lost():
    bench, left = VmSetup(profile="qemu-1.1-intx"), []
    bench.vm.on_left = lambda *what: left.append(what)
    bench.listen()
    bench.vm.deliver(0, 1)
    bench.vm.deliver(0, 512)  # the line was up, and goes down
    assert (bench.heard, left) == ([Interrupt(0, 1)], [(0, 0, 512)])
    assert not bench.vm.device.intx_level
    assert bench.fired == []


def test_intx_of_several_devices_are_lines_of_their_own():
    bench, found = VmSetup(profile="qemu-1.1-intx"), []
    second = VmSetup(profile="qemu-1.1-intx", first=bench.vm)
    bench.vm.start(read_status(found))
    second.vm.deliver(0, 9)
    bench.vm.deliver(0, 4)
    second.vm.deliver(1, 8)
    assert found == [(Interrupt(0, 9, 1), 9), (Interrupt(0, 4, 0), 4), (Interrupt(0, 8, 1), 8)]
    assert not bench.vm.device.intx_level
    assert not second.vm.device.intx_level


def test_intx_that_a_program_raises_itself_and_lowers_again_interrupts_nothing():
    bench = VmSetup(profile="qemu-1.1-intx")

    def program(guest):
        guest.write(0, 4, 1)
        guest.read(0, 4)
        bench.heard.append((yield FOREVER))

    bench.vm.start(program)
    assert bench.heard == []
    assert (bench.left, bench.fired) == ([], [])


@pytest.mark.parametrize("profile", ["qemu-1.1-shm", "qemu-1.1-shm-intx"])
@pytest.mark.parametrize("vectors", [0, 2])
def test_intx_of_a_device_without_a_server(profile, vectors):
    """Nothing rings it, but its own program can raise the line."""
    bench, found = VmSetup(vectors, profile=profile), []
    bench.vm.start(read_status(found))
    bench.guest.write(0, 4, 6)
    bench.vm.settle()
    assert found == [(Interrupt(0, 1), 6)]


def test_a_program_that_returns_leaves_a_machine_that_still_takes_interrupts(bench):
    def program(guest):
        yield 5

    assert bench.vm.start(program) == 5
    assert bench.vm.expire() is FOREVER
    assert bench.vm.deliver(0, 1) is FOREVER
    assert bench.vm.expire() is FOREVER
    assert bench.left == []


def test_a_program_that_ends_before_its_first_yield(bench):
    def program(guest):
        guest.ring(1)
        return
        yield

    assert bench.vm.start(program) is FOREVER
    assert bench.rung == [100]


@pytest.mark.parametrize("error", [ValueError, GuestError, KeyboardInterrupt])
def test_an_exception_of_a_program_is_raised(bench, error):
    def program(guest):
        yield FOREVER
        raise error("mine")

    bench.vm.start(program)
    with pytest.raises(error, match="mine"):
        bench.vm.deliver(0, 1)
    assert bench.vm.deliver(0, 1) is FOREVER  # a machine without a program


def test_a_stop_iteration_inside_a_program_is_an_error_not_an_end(bench):
    def program(guest):
        yield FOREVER
        next(iter(()))

    bench.vm.start(program)
    with pytest.raises(RuntimeError, match="StopIteration"):
        bench.vm.expire()


def test_stop_ends_the_program_where_it_stands(bench):
    ended = []

    def program(guest):
        try:
            while True:
                yield 99
        finally:
            guest.ring(1)
            ended.append(True)

    bench.vm.start(program)
    bench.vm.stop()
    bench.vm.stop()
    assert (ended, bench.rung) == ([True], [100])
    assert bench.vm.deliver(0, 1) is FOREVER


def test_interrupts_before_the_program_starts_are_taken_by_the_machine(bench):
    assert bench.vm.deliver(0, 7) is FOREVER
    assert bench.left == []


# Doorbells through the machine


@pytest.mark.parametrize("sample_every", [0, 1, 16])
def test_vector_256_of_a_device_that_knows_8_bits_is_vector_0(sample_every):
    bench = VmSetup(sample_every=sample_every)
    for _ in range(5):
        bench.guest.ring(1, 256)
        bench.guest.ring(1, 257)
    assert bench.rung == [100, 101] * 5
    assert bench.counts() == {(1, 0): (5, 0), (1, 1): (5, 0)}


def test_vectors_above_255_are_rung_as_the_register_would():
    """``guest.ring`` and a write of the same word ring the same vector, whatever the device makes of its upper bits."""
    for profile, peer, expected in (
        ("qemu-doorbell", 1, 257),
        ("qemu-doorbell", 0x9000, 1),
        ("qemu-doorbell-kvm", 0x9000, 257),
        ("qemu-1.1-intx", 1, 1),
    ):
        bench = VmSetup(280, profile=profile)
        for vector in range(280):
            bench.vm.connect(peer, vector, 1000 + vector)
        bench.guest.ring(peer, 257)
        bench.guest.write(0, 12, peer << 16 | 257)
        assert bench.rung == [1000 + expected] * 2
        assert bench.counts() == {(peer, expected): (2, 0)}


def test_vector_256_on_a_device_that_knows_16_bits_reaches_no_peer():
    bench = VmSetup(8, profile="acrn")
    bench.guest.ring(1, 256)
    bench.vm.doorbells.flush()
    assert (bench.rung, bench.ledger.nowhere) == ([], 1)


def test_a_doorbell_by_the_register_is_the_same_doorbell(bench):
    bench.guest.write(0, 12, 1 << 16 | 1)
    bench.guest.ring(1, 1)
    assert bench.rung == [101, 101]
    assert bench.counts() == {(1, 1): (2, 0)}


def test_a_doorbell_at_oneself(bench):
    bench.guest.ring(0, 1)
    assert bench.rung == [1]


@pytest.mark.parametrize(("peer", "vector"), [(-1, 0), (65536, 0), (0, -1), (0, 65536), (1 << 40, 3)])
def test_a_doorbell_that_cannot_be_written_is_the_guests_mistake(bench, peer, vector):
    with pytest.raises(GuestError, match=f"not peer {peer}, vector {vector}"):
        bench.guest.ring(peer, vector)
    assert (bench.rung, bench.counts()) == ([], {})


@pytest.mark.parametrize(("peer", "vector"), [(1, 2), (2, 0), (65535, 65535)])
def test_a_doorbell_that_reaches_no_peer_is_counted(bench, peer, vector):
    bench.guest.ring(peer, vector)
    bench.vm.doorbells.flush()
    assert (bench.rung, bench.ledger.nowhere) == ([], 1)


WAYS = ["ring", "write", "bell", "burst"]
"""How a program rings a doorbell."""


def ways_of(bench, peer, vector=0):
    """Each way to ring that doorbell, made before anything changes: bells and bursts are rung again and again."""
    bell = bench.guest.bell(peer, vector)
    burst = bench.guest.burst([(peer, vector)])
    return {
        "ring": lambda: bench.guest.ring(peer, vector),
        "write": lambda: bench.guest.write(0, 12, peer << 16 | vector),
        "bell": bell,
        "burst": burst.ring,
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [False, True], ids=["never rung", "rung before"])
@pytest.mark.parametrize("sample_every", [0, 1, 2])
def test_all_ways_to_ring_do_what_the_device_does_with_memory_decode_off(way, before, sample_every):
    bench = VmSetup(sample_every=sample_every)
    ring = ways_of(bench, 1)[way]
    if before:
        ring()
    bench.rung.clear()
    command = bench.vm.device.config_read(4, 2)
    bench.vm.device.config_write(4, 2, command & ~2)
    for _ in range(3):
        ring()
    assert bench.rung == []
    counts = bench.counts()
    assert sum(refused for _, refused in counts.values()) + bench.ledger.nowhere == 3
    bench.vm.device.config_write(4, 2, command)
    for _ in range(3):
        ring()
    assert bench.rung == [100] * 3


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_to_ring_do_what_the_device_does_after_a_reset(way):
    """A driver that has not switched memory decoding on again rings no peer."""
    bench = VmSetup()
    ring = ways_of(bench, 1)[way]
    ring()
    bench.vm.device.reset()
    ring()
    assert bench.rung == [100]
    bench.vm.reset(programs.idle)
    ring()
    assert bench.rung == [100, 100]


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_to_ring_reach_no_peer_before_the_driver_has_started(way):
    bench = VmSetup(placed=False)
    ways_of(bench, 1)[way]()
    assert bench.rung == []
    bench.vm.place(0, memoryview(bytearray(4096)))
    ways_of(bench, 1)[way]()
    assert bench.rung == [100]


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_to_ring_reach_no_peer_of_a_device_that_was_removed(way):
    bench = VmSetup()
    ring = ways_of(bench, 1)[way]
    ring()
    bench.vm.unplug()
    ring()
    assert bench.rung == [100]
    assert sum(refused for _, refused in bench.counts().values()) + bench.ledger.nowhere == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("decodes", [False, True])
def test_all_ways_to_ring_do_what_the_new_device_does_after_a_migration(way, decodes):
    """Memory decoding comes with the saved state; the peers come from the new server."""
    bench = VmSetup(role="master")
    ring = ways_of(bench, 1)[way]
    ring()
    vm = bench.vm
    if not decodes:
        vm.device.config_write(4, 2, vm.device.config_read(4, 2) & ~2)
    state = vm.device.save()
    vm.replace(vm.make_device(vm.device.profile, vectors=2, role="master", size_bytes=None))
    peers = PeerTable()
    vm.use_peers(peers)
    ring()
    vm.arrive(0, vm.guest.memory, state)
    assert bench.rung == [100]
    for vector in range(2):
        vm.connect(1, vector, 200 + vector)
    for _ in range(2):
        ring()
    assert bench.rung == [100, *([200, 200] if decodes else [])]


def test_a_peer_that_left_is_gone_for_device_and_doorbells(bench):
    bench.vm.disconnect(1)
    bench.guest.ring(1)
    bench.guest.write(0, 12, 1 << 16)
    assert bench.rung == []
    assert bench.counts() == {(1, 0): (1, 1)}
    assert bench.guest.peers == {0: 2}


def test_a_vector_that_the_device_has_no_room_for_cannot_be_rung(bench):
    """The device warns, and nothing else knows of that vector either."""
    bench.vm.connect(1, 2, 102)
    bench.listen()
    assert bench.guest.peers == {0: 2, 1: 2}
    bench.guest.ring(1, 2)
    assert bench.rung == []
    assert list(bench.vm.warnings) == ["Too many eventfd received, device has 2 vectors"]


def test_a_program_that_a_reset_or_an_unplug_ends_reports_what_it_missed(bench):
    def program(guest):
        due_ns = guest.clock()
        try:
            yield FOREVER
        finally:
            guest.miss(1, due_ns)

    bench.vm.start(program)
    bench.now_ns += 500
    bench.vm.reset(program)
    assert (bench.guest.missed, bench.guest.missed_oldest_ns) == (1, 500)
    bench.now_ns += 70
    bench.vm.unplug()
    assert (bench.guest.missed, bench.guest.missed_oldest_ns) == (2, 500)


def test_a_reset_of_a_machine_with_two_devices_starts_its_program_once(bench):
    """The program takes the interrupts of both devices afterwards, as before."""
    second, started = VmSetup(first=bench.vm), []

    def program(guest):
        started.append(guest)
        while True:
            bench.heard.append((yield FOREVER))

    bench.vm.start(program)
    for vm in (second.vm, bench.vm):
        vm.reset(program)
    assert started == [bench.guest, bench.guest]
    second.vm.deliver(1, 5)
    assert bench.heard == [Interrupt(1, 5, 1)]


def test_a_step_is_resumed_at_once_unless_the_engine_preempts():
    """The interrupt that arrives meanwhile waits for the next yield that is no STEP."""
    seen = []

    def program(guest):
        seen.append((yield STEP))
        seen.append((yield FOREVER))

    vm = VmSetup().vm
    assert vm.start(program) is FOREVER
    assert seen == [None]
    vm = VmSetup().vm
    vm.preempts = lambda: True
    assert vm.start(program) == STEP
    assert vm.expire() is FOREVER


def test_a_pending_vector_fires_after_the_step_at_which_the_program_is_preempted():
    """Unmasking fires the vector; its interrupt must not resume a program that stands at a STEP."""
    bench, seen = VmSetup(), []

    def program(guest):
        guest.mask(1)
        yield FOREVER
        guest.unmask(1)
        yield STEP
        seen.append("stepped")
        seen.append((yield FOREVER))
        yield FOREVER

    bench.vm.start(program)
    bench.vm.deliver(1, 1)
    assert bench.guest.pending(1)
    bench.vm.preempts = lambda: True
    assert bench.vm.deliver(0, 1) == STEP
    assert seen == []
    bench.vm.expire()
    assert seen == ["stepped", Interrupt(1, 1)]
