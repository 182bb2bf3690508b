"""Where each section of a recording begins.

All fields are native 64-bit words. An edge or a ring is valid below the number of them in the header, which is stored
after its words. A drain is valid when its delivered_ns is not 0, which is stored after its first word; the number of
drains in the header is a lower bound.

    header    words[0:HEADER_WORDS], named in ``header``
    vectors   3 words for each own vector: doorbells and interrupts beyond those of its drains (drains that found their
              section full, interrupts without a drain), and drains that interrupted nothing
    edges     3 words for each (peer, vector) that the device was ever connected to:
              domain << 32 | peer << 16 | vector, doorbells rung, doorbells refused
    rings     3 words for each sampled doorbell: key as of edges, intended_ns (0: no schedule), rung_ns
    drains    3 words for each drained eventfd counter: count << 16 | vector, delivered_ns, handled_ns
              (handled_ns is 0 until the program has handled it, and for what stayed pending or was dropped)

Times are CLOCK_MONOTONIC nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.recording.header import HEADER_WORDS

VECTOR_WORDS = DRAIN_WORDS = 3


@dataclass(frozen=True)
class RecordingLayout:
    """The number of entries of each section, and from it the word at which the section begins."""

    vectors: int
    edges: int
    rings: int
    drains: int

    @property
    def vectors_at(self) -> int:
        return HEADER_WORDS

    @property
    def edges_at(self) -> int:
        return self.vectors_at + VECTOR_WORDS * self.vectors

    @property
    def rings_at(self) -> int:
        return self.edges_at + 3 * self.edges

    @property
    def drains_at(self) -> int:
        return self.rings_at + 3 * self.rings

    @property
    def words(self) -> int:
        return self.drains_at + 3 * self.drains
