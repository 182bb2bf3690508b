"""Many recordings in few files, for machines that run in one process.

A file and a mapping for each of 65,536 machines would exceed what a process may map (vm.max_map_count). A pack puts
small recordings one after another into files of ``PACKED`` each. Where each one begins follows from the headers.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from sim.recording.file import Recording, map_new
from sim.recording.header import WORD_BYTES
from sim.recording.layout import RecordingLayout

PACKED = 256
LARGE_BYTES = 1 << 18
"""A recording of this size has a file of its own."""


class _Packed(Recording):
    """A recording in a mapping that belongs to its pack."""

    __slots__ = ()

    def close(self) -> None:
        self._release()


class RecordingPack:
    """Creates recordings; ``path_of(row)`` names the file whose first recording is that of ``row``."""

    def __init__(self, path_of: Callable[[int], Path | None]) -> None:
        self._path_of = path_of
        self._files: list[tuple[Path, mmap.mmap]] = []
        self._used_bytes = self._room_bytes = 0

    def create(
        self, row: int, layout: RecordingLayout, *, sample_every: int, of: int, incarnation: int, domain: int
    ) -> Recording:
        """As `Recording.create`, for a recording that follows the one that was created before it.

        Raises:
            HostError: the disk has no room for it.
        """
        size_bytes = layout.words * WORD_BYTES
        if self._used_bytes + size_bytes > self._room_bytes:
            self._add_file(row, size_bytes)
        path, mapping = self._files[-1]
        at, self._used_bytes = self._used_bytes, self._used_bytes + size_bytes
        recording = _Packed(mapping, layout, path, at)
        recording.write_header(machine=row, sample_every=sample_every, of=of, incarnation=incarnation, domain=domain)
        return recording

    def close(self) -> None:
        """Unmap all files and give back the room that is not used. The recordings are to be closed before."""
        self._cut()
        for _, mapping in self._files:
            with contextlib.suppress(BufferError):  # a view of it is still looked at
                mapping.close()
        self._files.clear()
        self._used_bytes = self._room_bytes = 0

    def _add_file(self, row: int, size_bytes: int) -> None:
        self._cut()
        path = self._path_of(row)
        assert path is not None, "a recording without a file needs no pack"
        self._room_bytes = size_bytes if size_bytes >= LARGE_BYTES else PACKED * size_bytes
        self._files.append((path, map_new(path, self._room_bytes)))
        self._used_bytes = 0

    def _cut(self) -> None:
        """The last file ends where its last recording does."""
        if self._files and self._used_bytes < self._room_bytes:
            with contextlib.suppress(OSError):  # the run directory is gone
                os.truncate(self._files[-1][0], self._used_bytes)
