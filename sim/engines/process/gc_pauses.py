"""Stores the long garbage collections of a worker, in a run that ends at an outlier."""

from __future__ import annotations

import gc
import time

from sim.recording import header

BACK_TO_BACK_NS = 100_000


def record_collections(words: memoryview[int], shortest_ns: int) -> None:
    """From now on, store begin and end of every collection that takes ``shortest_ns`` or more; the latest few stay.

    One that goes on is stored too, with the end 0. Those that follow one another at once are one.
    """
    clock, count, at = time.monotonic_ns, 0, header.COLLECTIONS_AT
    begun_ns = ended_ns = 0

    def collected(phase: str, _info: dict[str, int]) -> None:
        nonlocal count, at, begun_ns, ended_ns
        now_ns = clock()
        if phase == "start":
            begun_ns = now_ns
            if now_ns - ended_ns < BACK_TO_BACK_NS:
                return  # the entry of the one before goes on
            at = header.COLLECTIONS_AT + 2 * (count % header.COLLECTIONS_KEPT)
            words[at + 1] = 0
            words[at] = now_ns
            return
        if now_ns - words[at] < shortest_ns:
            words[at] = 0
            return
        if begun_ns == words[at]:
            count += 1
            words[header.COLLECTIONS] = count
        words[at + 1] = ended_ns = now_ns

    gc.callbacks.append(collected)
