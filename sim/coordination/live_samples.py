"""Follows the sampled doorbells of a run in progress: each is matched with the drain that delivers it as it happens.

A ring is stored before its doorbell, and a drain after it. Drains are read first, so a ring that is read has either
been delivered by a drain of this look or by none yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sim.coordination.incarnation import Incarnation
from sim.coordination.machines import LiveMachines
from sim.recording import Recording, header
from sim.recording.layout import DRAIN_WORDS
from sim.recording.reader import VECTOR_MASK, domain_and_peer, drains_so_far

FOLLOWED_MAX = 1 << 16
"""Samples of one machine that are followed after they were delivered: a masked vector handles none."""


@dataclass(slots=True, eq=False)
class LiveSample:
    """One sampled doorbell. Rows are those of recordings; times are nanoseconds, 0 for what has not happened (yet).

    ``place`` is the number of the drain that delivered it, -1 before.
    """

    source: int
    target: int
    domain: int
    peer: int
    vector: int
    intended_ns: int
    rung_ns: int
    delivered_ns: int = 0
    handled_ns: int = 0
    place: int = -1

    @property
    def due_ns(self) -> int:
        """When it was meant to be rung."""
        return self.intended_ns or self.rung_ns

    def ends_ns(self, latency: str) -> tuple[int, int]:
        """When that latency of it begins and ends; 0 for an end that has not come."""
        match latency:
            case "lag":
                return self.due_ns, self.rung_ns
            case "delivery":
                return self.rung_ns, self.delivered_ns
            case "handling":
                return self.delivered_ns, self.handled_ns
            case "raw":
                return self.rung_ns, self.handled_ns
        return self.due_ns, self.handled_ns


@dataclass(slots=True)
class Receiver:
    """The state of one recording: how far it was read, and the samples that are rung at it and not handled yet."""

    incarnation: Incarnation
    place: int
    recording: Recording
    rings: int = 0
    drains: int = 0
    rung: dict[int, list[LiveSample]] = field(default_factory=dict)
    """By vector, in the order in which they were read."""
    delivered: list[LiveSample] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether its recording has no room for further samples or drains: they are not followed."""
        layout = self.recording.layout
        return (layout.rings > 0 and self.rings >= layout.rings) or self.drains >= layout.drains

    @property
    def is_gone(self) -> bool:
        """Whether it will deliver nothing more: it has left or ended, or counts nothing here."""
        its = self.incarnation
        return its.left or its.exit is not None or its.ending is not None or self.recording.words[header.GUEST] == 1


class LiveSamples:
    """The samples of all machines of a run, as they come."""

    def __init__(self, machines: LiveMachines, latency: str) -> None:
        """``latency``: a sample is complete when that latency of it is known."""
        self._machines, self._latency = machines, latency
        self._known = 0
        self.receivers: dict[int, Receiver] = {}
        """By row."""

    def follow(self) -> list[LiveSample]:
        """Read what is new. Returns the samples that are complete since the last call."""
        incarnations = self._machines.incarnations
        for incarnation in incarnations[self._known :]:
            for place, (device, recording) in enumerate(zip(incarnation.rows, incarnation.recordings, strict=True)):
                self.receivers[device.row] = Receiver(incarnation, place, recording)
        self._known = len(incarnations)
        drained = {row: drains_so_far(receiver.recording) for row, receiver in self.receivers.items()}
        done: list[LiveSample] = []
        for row, receiver in self.receivers.items():
            self._read_rings(row, receiver, done)
        for row, receiver in self.receivers.items():
            if receiver.rung and drained[row] > receiver.drains:
                _match(receiver, drained[row])
            receiver.drains = drained[row]
            if receiver.delivered:
                done += self._complete(receiver)
        return done

    def waiting(self) -> Iterator[LiveSample]:
        """The samples that are rung and not handled yet, at machines that can still handle them."""
        for receiver in self.receivers.values():
            if not receiver.rung and not receiver.delivered:
                continue
            if receiver.is_gone:
                receiver.rung.clear()
                receiver.delivered.clear()
                continue
            yield from receiver.delivered
            for samples in receiver.rung.values():
                # A doorbell at an ID that the machine had before a migration stays in the counter of that ID.
                samples[:] = [its for its in samples if its.peer == receiver.incarnation.peers[receiver.place]]
                yield from samples[:1]  # the first one has waited longest

    def _complete(self, receiver: Receiver) -> list[LiveSample]:
        """The complete ones of the samples that are delivered; they are no longer followed."""
        if self._latency == "delivery":
            done, receiver.delivered = receiver.delivered, []
            return done
        done, left = [], list[LiveSample]()
        for sample in receiver.delivered:
            sample.handled_ns = handled_ns(receiver.recording, sample.place)
            (done if sample.handled_ns else left).append(sample)
        receiver.delivered = left[:FOLLOWED_MAX]
        return done

    def _read_rings(self, row: int, receiver: Receiver, done: list[LiveSample]) -> None:
        words, layout = receiver.recording.words, receiver.recording.layout
        used = min(words[header.RINGS_USED], layout.rings)
        for at in range(layout.rings_at + 3 * receiver.rings, layout.rings_at + 3 * used, 3):
            key, intended_ns, rung_ns = words[at : at + 3]
            domain, peer = domain_and_peer(key)
            target = self._machines.row_of.get((domain, peer))
            if target is None or target not in self.receivers:
                continue
            vector = key & VECTOR_MASK
            sample = LiveSample(row, target, domain, peer, vector, intended_ns, rung_ns)
            if self._latency == "lag":
                done.append(sample)
            else:
                self.receivers[target].rung.setdefault(vector, []).append(sample)
        receiver.rings = used


def handled_ns(recording: Recording, place: int) -> int:
    """When the program had handled the drain of that number; 0 if it has not."""
    return recording.words[recording.layout.drains_at + DRAIN_WORDS * place + 2]


def _match(receiver: Receiver, used: int) -> None:
    """Match what was rung at a machine with its new drains, up to the number ``used``."""
    layout = receiver.recording.layout
    first = layout.drains_at + DRAIN_WORDS * receiver.drains
    stored = np.frombuffer(receiver.recording.words, np.uint64)[first : layout.drains_at + DRAIN_WORDS * used]
    drains = stored.reshape(-1, DRAIN_WORDS)[:, :2].astype(np.int64)
    vectors = drains[:, 0] & VECTOR_MASK
    for vector in list(receiver.rung):
        places = np.flatnonzero(vectors == vector)
        if not len(places):
            continue
        taken_ns = drains[places, 1]
        samples = receiver.rung[vector]
        at = np.searchsorted(taken_ns, [sample.rung_ns for sample in samples])
        left = []
        for sample, index in zip(samples, at.tolist(), strict=True):
            if index == len(places):
                left.append(sample)
                continue
            sample.delivered_ns = int(taken_ns[index])
            sample.place = receiver.drains + int(places[index])
            receiver.delivered.append(sample)
        if left:
            receiver.rung[vector] = left
        else:
            del receiver.rung[vector]
