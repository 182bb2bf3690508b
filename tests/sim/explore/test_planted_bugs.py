"""Bugs planted in the server, the device, the driver and the engine: each is found by seeds, and shrunk."""

from __future__ import annotations

import functools

import pytest

from nodes.device.msix import Msix
from nodes.vm import Vm
from nodes.wire.client import Client
from nodes.wire.server import Server
from sim.engines.shared.recorder import Drains
from sim.engines.virtual.counter import VirtualCounter
from sim.explore import explore, run_seed, shrink
from topologies import loads

STORM = """
[run]
duration_s = 0.02
warmup_s = 0.0
sample_every = 0
[memory]
size = "4K"
[machines.storm]
count = 4
vectors = 2
program = "storm"
parameters = { to = "storm", rate_hz = 4000.0 }
[machines.driver]
vectors = 2
program = "moderate"
parameters = { window_us = 500.0 }
[machines.far]
count = 2
vectors = 2
program = "storm"
parameters = { to = "driver", rate_hz = 4000.0 }
[chaos]
wake_delays = 0.05
message_delays = 0.1
cuts = 0.2
reorders = 0.1
delay_max_us = 300.0
kills_per_s = 100
stalls_per_s = 50
fills_per_s = 50
outage_max_us = 1000.0
"""


@functools.cache
def storm():
    return loads(STORM)


def plant_lost_leave(monkeypatch):
    """The last peer is not told that a machine has left."""
    leave = Server.leave
    monkeypatch.setattr(Server, "leave", lambda self, peer: leave(self, peer)[:-1])


def plant_leave_told_twice(monkeypatch):
    leave = Server.leave
    monkeypatch.setattr(Server, "leave", lambda self, peer: 2 * leave(self, peer))


def plant_reused_id(monkeypatch):
    """A machine that joins gets the lowest free ID."""

    def next_peer(self):
        return next(peer for peer in range(1 << 16) if peer not in self.peers)

    monkeypatch.setattr(Server, "_next_peer", next_peer)


def plant_dropped_half_message(monkeypatch):
    """A client that reads half of a message drops it."""
    receive = Client.receive
    monkeypatch.setattr(
        Client,
        "receive",
        lambda self, data, descriptors=(): receive(self, data if len(data) % 8 == 0 else b"", descriptors),
    )


def plant_masked_vector_that_fires(monkeypatch):
    """A write to the table updates the shortcut of the wrong vector."""
    refresh = Msix._refresh

    def wrong(self, vectors=None):
        refresh(self, None if vectors is None else [0])

    monkeypatch.setattr(Msix, "_refresh", wrong)


def plant_pending_bit_that_does_not_fire(monkeypatch):
    """Unmasking clears the pending bit, and the message is not sent."""
    monkeypatch.setattr(Msix, "_send_unmasked", lambda self, vector: None)


def plant_pending_bit_cleared_late(monkeypatch):
    """Unmasking sends the message and leaves the pending bit: it fires once more."""
    release = Msix._release

    def twice(self, vector):
        pending = self.pending
        release(self, vector)
        self.pending = pending

    monkeypatch.setattr(Msix, "_release", twice)


def plant_doorbell_counted_twice(monkeypatch):
    """A drain of several doorbells is recorded as one more."""
    drained = Drains.drained

    def wrong(self, vector, count, at_ns):
        drained(self, vector, count + (count > 1), at_ns)

    monkeypatch.setattr(Drains, "drained", wrong)


def plant_drain_that_takes_too_much(monkeypatch):
    """A drain empties the counter, with the doorbells that arrive during it."""
    drain = VirtualCounter.drain

    def wrong(self, now_ns):
        count = drain(self, now_ns)
        self.clear()
        return count

    monkeypatch.setattr(VirtualCounter, "drain", wrong)


def plant_swapped_vectors(monkeypatch):
    """The lines of a peer's two vectors are exchanged when it joins late."""
    connect = Vm.connect

    def wrong(self, peer, vector, line):
        return connect(self, peer, 1 - vector if peer >= 7 else vector, line)

    monkeypatch.setattr(Vm, "connect", wrong)


def plant_interrupt_from_nothing(monkeypatch):
    """An interrupt says one doorbell more than were taken."""
    deliver = Vm.deliver
    monkeypatch.setattr(Vm, "deliver", lambda self, vector, count: deliver(self, vector, count + (count == 3)))


def plant_join_that_is_not_told(monkeypatch):
    """A machine that joins later is announced to all but one."""
    spell_out = Server.spell_out

    def wrong(self, said):
        messages = spell_out(self, said)
        late = max(self.peers)
        return [each for each in messages if late < 7 or each.message.number != late or each.peer != min(self.peers)]

    monkeypatch.setattr(Server, "spell_out", wrong)


BUGS = {
    plant_lost_leave: "each leave is told once",
    plant_leave_told_twice: "each leave is told once",
    plant_reused_id: "one machine, one ID",
    plant_dropped_half_message: "no machine fails",
    plant_masked_vector_that_fires: "a masked vector is silent",
    plant_pending_bit_that_does_not_fire: "an interrupt is not lost",
    plant_pending_bit_cleared_late: "no interrupt from nothing",
    plant_doorbell_counted_twice: "rung = delivered + pending + refused",
    plant_drain_that_takes_too_much: "rung = delivered + pending + refused",
    plant_swapped_vectors: "no wrong peer",
    plant_interrupt_from_nothing: "no interrupt from nothing",
    plant_join_that_is_not_told: "each join is told",
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__.removeprefix("plant_"))
def test_a_planted_bug_is_found_and_shrunk(plant, monkeypatch):
    plant(monkeypatch)
    found = explore(storm(), range(100)).broken
    assert found
    assert found[0].broken.invariant == BUGS[plant]
    shortest = shrink(storm(), found[0], runs_max=100)
    assert shortest.broken.invariant == BUGS[plant]
    assert len(shortest.decisions) <= 4
    monkeypatch.undo()
    assert run_seed(storm(), shortest.seed, shortest.decisions).broken is None


def test_nothing_is_found_without_a_bug():
    assert explore(storm(), range(30)).broken == []
