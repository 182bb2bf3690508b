"""Doorbells in great numbers: as fast as possible, at a rate, or at the times of a file."""

from __future__ import annotations

from bisect import bisect, bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate, cycle, islice, repeat
from math import inf
from operator import itemgetter, length_hint
from typing import Literal

from nodes.errors import GuestError
from nodes.guest import NOW, OTHERS, Guest, Peers, Program, Trace
from nodes.programs.arrivals import SECOND_NS, begin_ns, due_times, miss, rest, wait_until
from nodes.programs.targets import Targets

Doorbell = tuple[int, int]

DRAWN_AT_ONCE = 4096  # doorbells that a skewed storm without a rate draws; then it rings the same ones again
TRACE_BURST = 64


def storm(
    guest: Guest,
    *,
    to: Peers = OTHERS,
    rate_hz: float | None = None,
    burst: int = 64,
    arrivals: Literal["regular", "poisson", "bursts"] = "regular",
    skew: float = 0.0,
    vectors: tuple[int, ...] | None = None,
) -> Program:
    """Ring all vectors of the peers in ``to``, again and again, in an order that is drawn once from the seed.

    Without ``rate_hz`` the program rings as fast as possible (a closed loop): it takes its own interrupts after each
    ``burst`` doorbells, and rings none while the load is 0. With ``rate_hz`` it is an open loop: so many doorbells are
    due per second, times the load, however late earlier ones were. ``arrivals`` gives their times: ``regular``;
    ``poisson``, those of a Poisson process; ``bursts``, regular for groups of ``burst`` doorbells that are due
    together. The times follow from the seed, not from the host.

    With a ``skew`` above 0 each doorbell draws its peer: the peer at position k of ``to`` is rung in proportion to
    1 / k ** skew (Zipf's law). ``vectors`` are the vectors to ring, by default all; one that is listed twice is rung
    twice as often.
    """
    order = _Order(guest, Targets(guest, to, vectors), skew)
    if rate_hz is None:
        yield from _storm_at_will(guest, order, burst)
        return
    # The open loop is in this generator itself: a further one is resumed with each interrupt of each machine.
    group = burst if arrivals == "bursts" else 1
    mean_ns, poisson = SECOND_NS * group / rate_hz, arrivals == "poisson"
    clock, ring, targets = guest.clock, guest.ring, order.targets
    in_one_go = due_ns = 0
    try:
        while True:
            waited = yield from targets.wait()
            turns, bell, generation = order.turns(), order.bell(group), guest.generation
            # Doorbells that were due before there was a peer are left out.
            for due_ns in due_times(guest, mean_ns, clock() if waited else begin_ns(guest), poisson=poisson):
                if in_one_go >= burst:  # it is late, and still takes its own interrupts
                    yield NOW
                    in_one_go = 0
                while clock() < due_ns:
                    yield due_ns
                    in_one_go = 0
                if generation != (generation := guest.generation) and targets.look():
                    if not any(targets.rows):
                        break
                    turns, bell = order.turns(), order.bell(group)
                if bell is not None:
                    bell(due_ns)
                else:
                    for peer, vector in islice(turns, group):
                        ring(peer, vector, due_ns)
                in_one_go += group
            else:
                due_ns = 0
                yield from wait_until(guest, inf)
            due_ns = 0
    finally:
        miss(guest, due_ns, mean_ns, group)


class _Order:
    """The order of the doorbells of a storm.

    Without a skew there are rounds. The position of a doorbell in them follows from the doorbell and the seed alone:
    peers that join later do not change the order of the others.
    """

    def __init__(self, guest: Guest, targets: Targets, skew: float) -> None:
        if not skew >= 0:
            raise GuestError(f"expected a skew of at least 0, got {skew}: the first peers are those rung most")
        self.targets = targets
        self._guest = guest
        self._skew, self._draw = skew, guest.random.random
        self._salt = guest.random.randrange(1 << 32)

    def turns(self) -> Iterator[Doorbell]:
        """The doorbells of the present targets in their order, without an end."""
        rows = self.targets.rows
        pairs = [pair for row in rows for pair in row]
        if len(pairs) == 1 and not self._skew:
            return repeat(*pairs)
        if not self._skew:
            # A hash of numbers is the same in every process.
            return cycle(sorted(pairs, key=lambda pair: hash((self._salt, *pair))))
        weights = ((place + 1) ** -self._skew / len(row) for place, row in enumerate(rows) for _ in row)
        sums, last, draw = list(accumulate(weights)), len(pairs) - 1, self._draw
        return iter(lambda: pairs[bisect(sums, draw() * sums[-1], 0, last)], None)

    def bell(self, group: int) -> Callable[..., None] | None:
        """The function that rings the only target, once each time; None where that is not all of a group."""
        pairs = [pair for row in self.targets.rows for pair in row]
        return self._guest.bell(*pairs[0]) if group == len(pairs) == 1 and not self._skew else None

    def bursts(self, size: int) -> list[list[Doorbell]]:
        """The doorbells that a storm without a rate rings again and again, in bursts of ``size``."""
        if self._skew:
            count = max(1, DRAWN_AT_ONCE // size) * size
        else:
            # Whole rounds, so that every edge is rung equally often.
            doorbells = sum(len(row) for row in self.targets.rows)
            count = max(1, size // doorbells) * doorbells
        drawn = list(islice(self.turns(), count))
        return [drawn[at : at + size] for at in range(0, count, size)]


def _storm_at_will(guest: Guest, order: _Order, burst: int) -> Program:
    clock, targets = guest.clock, order.targets
    look_ns = inf if guest.load.is_steady else 0.0  # when the load may have become 0
    while True:
        yield from targets.wait()
        bursts = [guest.burst(doorbells) for doorbells in order.bursts(burst)]
        came = False
        while not came:
            for batch in bursts:
                if look_ns < inf and clock() >= look_ns:
                    look_ns = yield from rest(guest)
                batch.ring()
                while (yield NOW) is not None:
                    pass
                if targets.generation != guest.generation and (came := targets.look()):
                    break
        for batch in bursts:
            guest.release(batch)


def trace(guest: Guest, *, file: Trace) -> Program:
    """Ring the doorbells of a file at the times in the file, then end.

    The times count from the start of the run. The load does not change them. Doorbells that were due before this
    machine joined are left out. Statistics: ``absent``, the number of doorbells for machines that had not joined yet,
    which are not rung.
    """
    clock, ring, peers, begin = guest.clock, guest.ring, file.peers, begin_ns(guest)
    in_one_go = 0
    guest.statistics["absent"] = 0
    left = iter(file.doorbells)
    try:
        for after_ns, place, vector in left:
            due_ns = guest.start_ns + after_ns
            if due_ns < begin:
                continue
            if in_one_go >= TRACE_BURST:
                yield NOW
                in_one_go = 0
            while clock() < due_ns:
                yield due_ns
                in_one_go = 0
            in_one_go += 1
            if place < len(peers) and peers[place] >= 0:
                ring(peers[place], vector, due_ns)
            else:
                guest.statistics["absent"] += 1
    except GeneratorExit:
        rung = len(file.doorbells) - length_hint(left) - 1
        due = bisect_left(file.doorbells, guest.end_ns - guest.start_ns, rung, key=itemgetter(0)) - rung
        if due:
            guest.miss(due, due_ns)
        raise
