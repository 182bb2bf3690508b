"""What one machine records: counters and samples as plain stores into a shared file that the parent made.

A recording is one file in the run directory, mapped by the worker that writes it and by the coordinator that
looks at its counters. It is preallocated, so a store needs no system call, a full disk is an error before the
run and not a SIGBUS in it, and a SIGKILL of anybody loses nothing that was stored.

All fields are native 64-bit words. An entry's words are stored before the counter that makes it valid.

    header    words[0:HEADER_WORDS], named by the constants below
    vectors   2 words for each own vector: doorbells delivered, interrupts (wake-ups that delivered them)
    edges     3 words for each (peer, vector) that this machine was ever connected to:
              domain << 32 | peer << 16 | vector, doorbells rung, doorbells refused
    rings     3 words for each sampled doorbell rung:     key as of edges, intended_ns, rung_ns
    drains    3 words for each eventfd counter drained:   count << 16 | vector, delivered_ns, handled_ns
              (handled_ns is 0 while the program still handles it, and for what was left pending or lost)

Times are CLOCK_MONOTONIC nanoseconds. This module imports nothing heavy: workers load it.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from nodes.errors import HostError, UsageError

__all__ = ["Layout", "Recording", "State"]

MAGIC = int.from_bytes(b"IVSIMREC", "little")
VERSION = 1
HEADER_WORDS = 64
WORD_BYTES = 8
NO_PEER = (1 << 64) - 1

# Header words: what the file is ...
MAGIC_AT, VERSION_AT, MACHINE, VECTORS, EDGES, RINGS, DRAINS, SAMPLE_EVERY = range(8)
# ... what the machine is doing ...
STATE, PEER, PING, PING_NS, READY_NS, STARTED_NS, STOPPED_NS = range(8, 15)
# ... how far each section is filled, and what it had no room for ...
EDGES_USED, RINGS_USED, RINGS_REFUSED, DRAINS_USED, DRAINS_REFUSED = range(16, 21)
# ... and what belongs to no edge: doorbells rung at a peer or vector that was never connected (all refused),
# doorbells drained while MSI-X could not deliver them: left pending in the PBA, or dropped by the device.
RUNG_NOWHERE, PENDED, DROPPED = range(24, 27)
# ... and whose recording it is, for devices that no topology counts: the machine, the how-manieth of its lives, and the
# number of the domain that the device is in.
OF_MACHINE, LIFE, DOMAIN = range(28, 31)
# ... and the doorbells that a program which rings in time owed at its end, and how long the oldest of them had waited.
UNRUNG, UNRUNG_OLDEST_NS = range(32, 34)
# Where the time goes of a drain that there was no room for.
SCRATCH = HEADER_WORDS - 1


class State:
    """The life of a worker, as it stands in the header; numbers only grow."""

    STARTING = 0
    CONNECTED = 1
    READY = 2
    RUNNING = 3
    STOPPED = 4
    FAILED = 5
    NAMES = ("starting", "connected", "ready", "running", "stopped", "failed")


@dataclass(frozen=True)
class Layout:
    """Where each section of a recording begins, in words; the one place that knows."""

    vectors: int
    edges: int
    rings: int
    drains: int

    @property
    def vectors_at(self) -> int:
        return HEADER_WORDS

    @property
    def edges_at(self) -> int:
        return self.vectors_at + 2 * self.vectors

    @property
    def rings_at(self) -> int:
        return self.edges_at + 3 * self.edges

    @property
    def drains_at(self) -> int:
        return self.rings_at + 3 * self.rings

    @property
    def words(self) -> int:
        return self.drains_at + 3 * self.drains


class Recording:
    """One mapped recording; ``words`` is its memory as a writable ``memoryview`` of 64-bit words.

    Created by the parent with :meth:`create`, opened by workers and readers with :meth:`open`. A context
    manager: leaving it unmaps, the file stays.
    """

    def __init__(self, mapping: mmap.mmap, layout: Layout, path: str | os.PathLike[str]) -> None:
        self._mapping = mapping
        self._bytes = memoryview(mapping)
        self.words = self._bytes.cast("Q")
        self.layout = layout
        self.path = path

    @classmethod
    def create(
        cls,
        path: Path,
        layout: Layout,
        *,
        machine: int,
        sample_every: int,
        of: int | None = None,
        life: int = 1,
        domain: int = 0,
    ) -> Recording:
        """Make the file, reserve its blocks, write its header.

        ``machine`` is the number of the recording; ``of`` the machine whose device in that ``domain`` it is, when that
        is another: a further device, or a further ``life``.

        Raises ``HostError`` when the disk has no room for it.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, layout.words * WORD_BYTES)
            mapping = mmap.mmap(fd, layout.words * WORD_BYTES)
        except OSError as error:
            path.unlink()
            need = layout.words * WORD_BYTES / 2**20
            raise HostError(f"{path}: {need:.1f} MiB for samples cannot be reserved: {error.strerror}") from error
        finally:
            os.close(fd)
        recording = cls(mapping, layout, path)
        words = recording.words
        words[VERSION_AT], words[MACHINE], words[SAMPLE_EVERY] = VERSION, machine, sample_every
        words[VECTORS], words[EDGES] = layout.vectors, layout.edges
        words[RINGS], words[DRAINS] = layout.rings, layout.drains
        words[PEER] = NO_PEER
        words[OF_MACHINE], words[LIFE], words[DOMAIN] = machine if of is None else of, life, domain
        words[MAGIC_AT] = MAGIC
        return recording

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Recording:
        """Map an existing recording. Raises ``UsageError`` when the file is not one, or is cut short."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes < HEADER_WORDS * WORD_BYTES:
                raise UsageError(f"{path}: not a recording: {size_bytes} bytes, a header alone is 512")
            mapping = mmap.mmap(fd, size_bytes - size_bytes % WORD_BYTES)
        finally:
            os.close(fd)
        with memoryview(mapping) as view, view.cast("Q") as head:
            magic, version = head[MAGIC_AT], head[VERSION_AT]
            layout = Layout(head[VECTORS], head[EDGES], head[RINGS], head[DRAINS])
        if magic != MAGIC or version != VERSION or layout.words * WORD_BYTES > size_bytes:
            mapping.close()
            raise UsageError(
                f"{path}: not a recording of version {VERSION}: magic {magic:#x}, version {version}, "
                f"{size_bytes} bytes where its header asks for {layout.words * WORD_BYTES}"
            )
        return cls(mapping, layout, path)

    def close(self) -> None:
        self.words.release()
        self._bytes.release()
        self._mapping.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
