"""sim.engines.virtual.batch: doorbells that are rung together, against the same doorbells one by one."""

from __future__ import annotations

import pytest

from sim.engines.base import COUNTER_MAX
from sim.engines.virtual.batch import CounterBatch
from sim.engines.virtual.counter import VirtualCounter
from sim.engines.virtual.loop import BEGIN_NS, VirtualClock


class Owner:
    """What `CounterBatch` needs of a machine: it is told which of its counters are no longer empty, and since when."""

    def __init__(self):
        self.queue, self.queued, self.told = [], False, []

    def rung(self, counter, at_ns):
        self.told.append((counter.vector, at_ns))


@pytest.fixture
def owner():
    return Owner()


@pytest.fixture
def holding():
    return set()


@pytest.fixture
def counters(owner, holding):
    return [VirtualCounter(owner, vector, holding) for vector in range(3)]


def ring(counters, holding, ring_ns=700, burst_ring_ns=300, places=(0, 1, 0, 2), start=0):
    clock = VirtualClock()
    batch = CounterBatch([counters[place] for place in places], clock, ring_ns, burst_ring_ns, holding)
    return list(batch.ring(start, len(places))), clock.ns - BEGIN_NS


@pytest.mark.parametrize(("ring_ns", "burst_ring_ns"), [(0, 0), (0, 1), (700, 0), (700, 300), (300, 700)])
def test_each_doorbell_is_later_than_the_one_before(counters, owner, holding, ring_ns, burst_ring_ns):
    assert ring(counters, holding, ring_ns, burst_ring_ns) == ([], ring_ns + 3 * burst_ring_ns)
    times = [BEGIN_NS + ring_ns + burst_ring_ns * place for place in range(4)]
    assert [list(counter) for counter in counters] == [[times[0], times[2]], [times[1]], [times[3]]]
    assert owner.told == [(0, times[0]), (1, times[1]), (2, times[3])]


def test_a_part_of_a_batch_is_rung(counters, owner, holding):
    assert ring(counters, holding, start=2) == ([], 1000)
    assert [len(counter) for counter in counters] == [1, 0, 1]


def test_an_empty_part_costs_nothing(counters, owner, holding):
    assert ring(counters, holding, start=4) == ([], 0)
    assert owner.told == []


def test_a_counter_that_is_not_empty_is_not_told_again(counters, owner, holding):
    ring(counters, holding)
    owner.told.clear()
    ring(counters, holding)
    assert owner.told == []
    assert [counter.value for counter in counters] == [4, 2, 2]


def test_a_full_counter_refuses_and_the_others_are_rung(counters, owner, holding):
    """The place in the batch is told, also where only a part is rung; the refused write takes its time, too."""
    assert counters[1].add(COUNTER_MAX)
    owner.told.clear()
    assert ring(counters, holding) == ([1], 1600)
    assert ring(counters, holding, start=1) == ([1], 1300)
    assert [counter.value for counter in counters] == [3, COUNTER_MAX, 2]
    assert [vector for vector, _ in owner.told] == [0, 2]
