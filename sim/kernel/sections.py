"""The memory of ivshmem v2 in this process: each section mapped with the rights that the peer has.

A store into a section that is mapped read-only cannot happen: Python refuses it, and a process that gets around Python
dies of SIGSEGV.
"""

from __future__ import annotations

import mmap
import os
from functools import partial

from nodes.device.v2.sections import ENTRY_BYTES, PAGE_BYTES, SectionLayout, Sections
from nodes.errors import RemoteProtocolError


def map_sections(descriptor: int, layout: SectionLayout, peer: int) -> Sections:
    """Map the memory that a server sent; the descriptor stays the caller's.

    Everything is mapped once read-only. The State Table (for the device), the read/write section and the own output
    section are mapped once more, writable.

    Raises:
        RemoteProtocolError: it cannot be mapped, or is smaller than the layout.
    """
    try:
        whole = memoryview(mmap.mmap(descriptor, layout.size_bytes, access=mmap.ACCESS_READ))
        return Sections(layout, peer, whole, partial(_map, descriptor))
    except (OSError, ValueError) as error:  # ValueError: it has shrunk meanwhile
        raise RemoteProtocolError(f"the server's shared memory cannot be mapped: {error}") from error


def _map(descriptor: int, start: int, stop: int) -> memoryview:
    if start == stop:
        return memoryview(bytearray())
    return memoryview(mmap.mmap(descriptor, stop - start, access=mmap.ACCESS_WRITE, offset=start))


class StateTable:
    """The State Table as its server writes it: a peer that has left has State 0.

    Args:
        descriptor: the memory; it stays the caller's.
        max_peers: how many entries there are.
    """

    def __init__(self, descriptor: int, max_peers: int) -> None:
        size_bytes = -(-max_peers * ENTRY_BYTES // PAGE_BYTES) * PAGE_BYTES
        self._mapping = mmap.mmap(descriptor, min(size_bytes, os.fstat(descriptor).st_size))
        self._states = memoryview(self._mapping).cast("I")

    def clear(self, peer: int) -> None:
        self._states[peer] = 0

    def close(self) -> None:
        self._states.release()
        self._mapping.close()
