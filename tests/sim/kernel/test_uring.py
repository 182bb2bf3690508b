"""sim.kernel.uring: many doorbells in one system call, refused as a single one is."""

from __future__ import annotations

import errno
import os
import random

import pytest

from nodes.bursts import LoopBatch
from nodes.device import profiles
from nodes.vm import Vm
from sim.kernel import uring
from sim.kernel.eventfd import COUNTER_MAX, EventFd, signal
from sim.kernel.uring import ENTRIES, FILES, LEAST, BatchMaker
from tests.fabric import KeptLedger

SIZES = [1, LEAST - 1, LEAST, 17, 60, ENTRIES, ENTRIES + 1, 150]


@pytest.fixture(params=["io_uring", "without"])
def way(request, monkeypatch):
    """With io_uring, where this host has it, and on a host that does not allow it: the same is expected."""
    if request.param == "without":
        monkeypatch.setattr(uring, "_syscall", lambda *arguments: -1)
    elif not has_io_uring():
        pytest.skip("this kernel allows no io_uring")
    return request.param


@pytest.fixture
def maker(way):
    made = BatchMaker()
    yield made
    assert way != "without" or made._ring is None
    made.close()


@pytest.fixture
def eventfds():
    made = [EventFd.create() for _ in range(max(SIZES))]
    yield made
    for each in made:
        each.close()


def has_io_uring():
    maker = BatchMaker()
    try:
        return maker.ring_of_process() is not None
    finally:
        maker.close()


def lines(eventfds):
    return [each.descriptor for each in eventfds]


@pytest.mark.parametrize("size", SIZES)
def test_each_line_is_rung_once_whatever_part_of_the_batch_is_asked_for(maker, eventfds, size):
    batch = maker(lines(eventfds[:size]))
    rng = random.Random(size)
    expected = [0] * size
    for _ in range(300):
        start = rng.randrange(size)
        if batch.ring_from is not None and rng.random() < 0.5:
            assert list(batch.ring_from(start)) == []
            expected = [count + 1 for count in expected]
            continue
        stop = rng.choice([size, rng.randint(start, size)])
        assert list(batch.ring(start, stop)) == []
        for place in range(start, stop):
            expected[place] += 1
    assert [each.take() for each in eventfds[:size]] == expected


@pytest.mark.parametrize("size", SIZES)
def test_full_counters_are_refused_by_place_and_the_others_rung(maker, eventfds, size):
    batch = maker(lines(eventfds[:size]))
    full = sorted(random.Random(size).sample(range(size), (size + 2) // 3))
    for place in full:
        eventfds[place].add(COUNTER_MAX)
    assert list(batch.ring(0, size)) == full
    if batch.ring_from is not None:
        assert sorted(batch.ring_from(size // 2)) == full
        for place in set(range(size)) - set(full):
            assert eventfds[place].take() == 2
            eventfds[place].add(1)
    assert list(batch.ring(0, size)) == full
    values = [each.take() for each in eventfds[:size]]
    assert values == [COUNTER_MAX if place in full else 2 for place in range(size)]


def test_a_refused_doorbell_does_not_land_when_the_counter_is_drained(maker, eventfds):
    """Without RWF_NOWAIT it waits in the kernel, and does."""
    batch = maker(lines(eventfds[:ENTRIES]))
    eventfds[5].add(COUNTER_MAX)
    assert list(batch.ring(0, ENTRIES)) == [5]
    assert eventfds[5].take() == COUNTER_MAX
    for _ in range(3):
        batch.ring(ENTRIES - LEAST, ENTRIES)
        assert eventfds[5].take() == 0


def test_a_counter_that_a_peer_has_made_blocking_refuses_too(eventfds):
    if not has_io_uring():
        pytest.skip("this kernel allows no io_uring")
    maker = BatchMaker()
    os.set_blocking(eventfds[3].descriptor, True)
    eventfds[3].add(COUNTER_MAX)
    assert list(maker(lines(eventfds[:LEAST])).ring(0, LEAST)) == [3]
    maker.close()


def test_batches_of_one_machine_take_turns(maker, eventfds):
    batches = [maker(lines(eventfds[first : first + 50])) for first in (0, 20, 60)]
    for _ in range(7):
        for batch in batches:
            assert not batch.ring(0, 50)
            assert not batch.ring(10, 40)
    counts = [each.take() for each in eventfds]
    for first in (0, 20, 60):
        for place in range(50):
            counts[first + place] -= 14 if 10 <= place < 40 else 7
    assert counts == [0] * len(counts)


def test_closed_batches_make_room_and_too_many_lines_are_rung_all_the_same(maker, eventfds):
    many = lines(eventfds[:1]) * FILES
    first = maker(many)
    assert not first.ring(0, FILES)
    second = maker(lines(eventfds[:ENTRIES]))
    assert not second.ring(0, ENTRIES)  # there is no room: one by one
    first.close()
    third = maker(many)
    assert not third.ring(0, FILES)
    assert eventfds[0].take() == 2 * FILES + 1
    assert eventfds[1].take() == 1


def test_a_child_process_does_not_touch_the_queue_of_its_parent(maker, eventfds):
    batch = maker(lines(eventfds[:ENTRIES]))
    assert not batch.ring(0, ENTRIES)
    queue = maker._ring and bytes(maker._ring._queues)
    child = os.fork()
    if child == 0:
        try:
            done = not batch.ring(0, ENTRIES) and not batch.ring(3, ENTRIES)
        finally:
            os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert queue == (maker._ring and bytes(maker._ring._queues))
    assert not batch.ring(0, ENTRIES)
    assert [each.take() for each in eventfds[:ENTRIES]] == [3] * 3 + [4] * (ENTRIES - 3)


def test_a_kernel_that_does_not_refuse_a_full_counter_is_not_used(monkeypatch, eventfds):
    monkeypatch.setattr(uring._Ring, "image", lambda ring, places: b"")
    monkeypatch.setattr(uring._Ring, "__init__", lambda ring: None)
    monkeypatch.setattr(uring._Ring, "add", lambda ring, those: list(range(len(those))))
    monkeypatch.setattr(uring._Ring, "remove", lambda ring, places: None)
    monkeypatch.setattr(uring._Ring, "close", lambda ring: None)
    monkeypatch.setattr(uring._Ring, "submit", lambda ring, image, start, stop: [], raising=False)
    uring.check_rings.cache_clear()
    with pytest.raises(OSError, match="does not refuse") as raised:
        uring.check_rings()
    assert raised.value.errno == errno.ENOSYS


def test_a_maker_leaves_no_descriptor(way, eventfds):
    before = os.listdir("/proc/self/fd")
    maker = BatchMaker()
    batch = maker(lines(eventfds[:ENTRIES]))
    batch.ring(0, ENTRIES)
    maker.close()
    batch.ring(0, ENTRIES)
    batch.close()
    assert os.listdir("/proc/self/fd") == before


class _Machine:
    """A machine that rings real eventfds, and its peers."""

    def __init__(self, maker, sample_every):
        self.ledger = KeptLedger()
        self.vm = Vm(
            profiles.PROFILES["qemu-doorbell"],
            vectors=4,
            role="peer",
            signal=signal,
            make_batch=maker,
            ledger=self.ledger,
            clock=lambda: 1,
            random=random.Random(0),
            sample_every=sample_every,
        )
        self.vm.place(0, memoryview(bytearray(4096)))

    def connect(self, peer):
        eventfds = [EventFd.create() for _ in range(4)]
        for vector, each in enumerate(eventfds):
            self.vm.connect(peer, vector, each.descriptor)
        return eventfds

    def counts(self):
        self.vm.doorbells.flush()
        return {self.ledger.edges[edge]: counts for edge, counts in self.ledger.stored.items()}


@pytest.mark.parametrize("sample_every", [0, 1, 7, 64])
def test_a_burst_counts_what_it_rings_while_peers_leave_and_their_descriptors_are_used_again(maker, sample_every):
    """A registered file outlives its descriptor: a doorbell must reach the eventfd that the number names now."""
    machine = _Machine(maker, sample_every)
    peers = {peer: machine.connect(peer) for peer in range(1, 11)}
    burst = machine.vm.guest.burst([(peer, vector) for peer in peers for vector in range(4)])
    for _ in range(5):
        burst.ring()
    numbers = lines(peers[3])
    machine.vm.disconnect(3)
    for each in peers.pop(3):
        each.close()
    for _ in range(5):
        burst.ring()
    peers[11] = machine.connect(11)
    assert lines(peers[11]) == numbers
    for _ in range(5):
        burst.ring()
    peers[3] = machine.connect(3)
    for _ in range(5):
        burst.ring()
    peers[5][2].add(COUNTER_MAX - 20)
    burst.ring()
    assert [each.take() for each in peers[11]] == [0] * 4
    assert [each.take() for each in peers[3]] == [6] * 4
    assert [each.take() for each in peers[5]] == [21, 21, COUNTER_MAX, 21]
    counts = machine.counts()
    assert counts[3, 0] == (21, 10)
    assert counts[5, 2] == (21, 1)
    assert counts[10, 3] == (21, 0)
    for eventfds in peers.values():
        for each in eventfds:
            each.close()


def test_few_lines_need_no_ring():
    maker = BatchMaker()
    assert type(maker([0] * (LEAST - 1))) is LoopBatch
    assert maker._ring is None
