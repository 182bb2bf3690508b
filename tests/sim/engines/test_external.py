"""sim.engines.qemu.external: what an external QEMU has rung is counted, whatever happens to the peer that it rang."""

from __future__ import annotations

import random
import select
from collections.abc import Callable, Iterator

import pytest

from nodes.device import profiles
from nodes.ledger import NoLedger
from sim.engines.qemu.external import ForwardingVm
from sim.kernel.eventfd import EventFd, signal

OTHER, RUNG = 5, 3


class OneEdgeCounts(NoLedger):
    """A ledger that keeps the counts of one edge."""

    edge = (0, 0)

    def store_edge(self, edge: int, rung: int, refused: int) -> None:
        self.edge = rung, refused


@pytest.fixture
def counts() -> OneEdgeCounts:
    return OneEdgeCounts()


@pytest.fixture
def machine(counts: OneEdgeCounts) -> Iterator[ForwardingVm]:
    epoll = select.epoll()
    vm = ForwardingVm(
        lambda: epoll,
        profiles.profile("qemu-doorbell"),
        vectors=1,
        role="peer",
        signal=signal,
        ledger=counts,
        clock=lambda: 0,
        random=random.Random(1),
        sample_every=0,
    )
    vm.place(0, memoryview(bytearray(4096)))
    yield vm
    vm.forwarding.close()
    epoll.close()


@pytest.mark.parametrize("ends", [lambda vm: vm.disconnect(OTHER), lambda vm: vm.unplug()], ids=["leave", "unplug"])
def test_what_was_rung_before_a_peer_or_the_machine_leaves_is_counted(
    ends: Callable[[ForwardingVm], None], machine: ForwardingVm, counts: OneEdgeCounts
) -> None:
    counter = EventFd.create()
    machine.connect(OTHER, 0, counter.descriptor)
    (rung,) = machine.forwarding.rung_at(OTHER)
    signal(rung, RUNG)
    ends(machine)
    machine.doorbells.flush()
    assert counts.edge == (RUNG, 0)
    assert counter.take() == RUNG
    counter.close()


def test_qemu_has_an_eventfd_for_each_line_of_a_peer_however_many_come_at_once(machine: ForwardingVm) -> None:
    counters = [EventFd.create() for _ in range(3)]
    lines = [counter.descriptor for counter in counters]
    machine.connect_next([OTHER, OTHER + 1, OTHER + 2], lines)
    assert [len(machine.forwarding.rung_at(OTHER + number)) for number in range(4)] == [1, 1, 1, 0]
    machine.unplug()
    for counter in counters:
        counter.close()
