"""A recording as a mapped file: a worker writes it, the coordinator maps it to read the counters.

The file is in the run directory and is preallocated: a store needs no system call, a full disk is an error before the
run instead of a SIGBUS during it, and a SIGKILL loses nothing that was stored.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from nodes.errors import HostError, UsageError
from sim.kernel.closeable import Closeable
from sim.kernel.memory import map_file, map_in_place
from sim.recording import header
from sim.recording.header import HEADER_WORDS, WORD_BYTES, WORD_FORMAT
from sim.recording.layout import DRAIN_WORDS, RecordingLayout


def map_new(path: Path, size_bytes: int) -> mmap.mmap:
    """Make a file, reserve its blocks, and map it.

    Raises:
        HostError: the disk has no room for it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
        return map_file(fd, size_bytes)
    except OSError as error:
        path.unlink()
        need = size_bytes / 2**20
        raise HostError(f"{path}: {need:.1f} MiB for samples cannot be reserved: {error.strerror}") from error
    finally:
        os.close(fd)


class Recording(Closeable):
    """One mapped recording. ``words`` is its memory as a writable ``memoryview`` of 64-bit words.

    The parent creates it with :meth:`create`; workers and readers open it with :meth:`open`. Leaving it unmaps the file
    and keeps it.
    """

    __slots__ = ("__weakref__", "_at_bytes", "_bytes", "_columns", "_mapping", "layout", "path", "words")

    def __init__(
        self, mapping: mmap.mmap, layout: RecordingLayout, path: str | os.PathLike[str], at_bytes: int = 0
    ) -> None:
        self._mapping, self._at_bytes = mapping, at_bytes
        self._bytes = memoryview(mapping)[at_bytes : at_bytes + layout.words * WORD_BYTES]
        self.words = self._bytes.cast(WORD_FORMAT)
        self.layout = layout
        self.path = path
        self._columns: tuple[memoryview[int], ...] = ()

    @classmethod
    def create(
        cls,
        path: Path | None,
        layout: RecordingLayout,
        *,
        machine: int,
        sample_every: int,
        of: int | None = None,
        incarnation: int = 1,
        domain: int = 0,
    ) -> Recording:
        """Make the file, reserve its blocks, write its header.

        Args:
            path: where; None for memory that no file holds.
            machine: the row of the recording.
            sample_every: one doorbell in so many is sampled.
            of: the machine that the device belongs to, if it is a further device or a further incarnation.
            incarnation: the incarnation of the machine, from 1.
            domain: the number of the domain that the device is in.

        Raises:
            HostError: the disk has no room for it.
        """
        size_bytes = layout.words * WORD_BYTES
        mapping = mmap.mmap(-1, size_bytes) if path is None else map_new(path, size_bytes)
        recording = cls(mapping, layout, path or "")
        recording.write_header(
            machine=machine,
            sample_every=sample_every,
            of=machine if of is None else of,
            incarnation=incarnation,
            domain=domain,
        )
        return recording

    def write_header(self, *, machine: int, sample_every: int, of: int, incarnation: int, domain: int) -> None:
        """Write the header of a new recording; the arguments are those of `create`."""
        words, layout = self.words, self.layout
        words[header.VERSION_AT], words[header.MACHINE] = header.VERSION, machine
        words[header.SAMPLE_EVERY] = sample_every
        words[header.VECTORS], words[header.EDGES] = layout.vectors, layout.edges
        words[header.RINGS], words[header.DRAINS] = layout.rings, layout.drains
        words[header.PEER] = header.NO_PEER
        words[header.OF_MACHINE], words[header.INCARNATION], words[header.DOMAIN] = of, incarnation, domain
        words[header.MAGIC_AT] = header.MAGIC

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Recording:
        """Map an existing recording. Raises ``UsageError`` when the file is not one, or is cut short."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes < HEADER_WORDS * WORD_BYTES:
                raise UsageError(f"{path}: not a recording: {size_bytes} bytes, a header alone is 512")
            mapping = map_file(fd, size_bytes - size_bytes % WORD_BYTES)
        finally:
            os.close(fd)
        with memoryview(mapping) as view, view.cast(WORD_FORMAT) as head:
            magic, version = head[header.MAGIC_AT], head[header.VERSION_AT]
            layout = RecordingLayout(head[header.VECTORS], head[header.EDGES], head[header.RINGS], head[header.DRAINS])
        if magic != header.MAGIC or version != header.VERSION or layout.words * WORD_BYTES > size_bytes:
            mapping.close()
            raise UsageError(
                f"{path}: not a recording of version {header.VERSION}: magic {magic:#x}, version {version}, "
                f"{size_bytes} bytes where its header asks for {layout.words * WORD_BYTES}"
            )
        return cls(mapping, layout, path)

    def move_into(self, path: str | os.PathLike[str]) -> None:
        """Continue in an existing file of the same layout: all views of the words show that file from now on.

        For a recording that no file holds; what it holds is left behind.

        Raises:
            UsageError: the file is of another size.
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if (size_bytes := os.fstat(fd).st_size) != len(self._mapping):
                raise UsageError(f"{path}: a recording of {size_bytes} bytes cannot replace {len(self._mapping)}")
            map_in_place(self._mapping, fd)
        finally:
            os.close(fd)
        self.path = path

    def drain_columns(self) -> tuple[memoryview[int], ...]:
        """The words of the drains, by column: key, delivered_ns, handled_ns; valid until the recording closes."""
        if not self._columns:
            at = self.layout.drains_at
            self._columns = tuple(self.words[at + column :: DRAIN_WORDS] for column in range(DRAIN_WORDS))
        return self._columns

    def drains_in_file(self) -> tuple[mmap.mmap, int]:
        """The mapping of the file, and the byte in it where the drains begin; valid until the recording closes."""
        return self._mapping, self._at_bytes + WORD_BYTES * self.layout.drains_at

    def _release(self) -> None:
        for view in (*self._columns, self.words, self._bytes):
            view.release()

    def close(self) -> None:
        self._release()
        self._mapping.close()
