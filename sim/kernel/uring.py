"""Many doorbells in one system call: the only module that calls io_uring (io_uring_setup(2), io_uring_enter(2)).

A machine that rings the same lines together again and again registers them with the kernel once. Each ring of such a
batch then only moves the tail of the submission queue and enters the kernel once for up to ``ENTRIES`` doorbells.

* The lines are registered as fixed files and the eight bytes that each write takes as a fixed buffer: the kernel looks
  nothing up for a doorbell.
* Completions are skipped (IOSQE_CQE_SKIP_SUCCESS): only a doorbell that is refused has one.
* Each write has RWF_NOWAIT. Without it a write to a full counter waits in the kernel and lands after the reader has
  drained, whatever O_NONBLOCK says; with it, it is refused.

A registered file is a reference to the eventfd itself: a batch is closed and made again when one of its lines changes.
A child process must not touch the queues of its parent, whose memory it shares: after a fork the batches of the child
register anew, in a ring of its own.

Where the kernel does not have this, or does not allow it (kernel.io_uring_disabled, seccomp, a limit), doorbells are
rung one by one.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import mmap
import os
import struct
import weakref
from collections.abc import Callable, Sequence
from functools import cache

from nodes.bursts import Batch, LoopBatch, one_by_one
from nodes.peer_table import Line
from sim.kernel.eventfd import COUNTER_MAX, EventFd, signal

LEAST = 16
"""Fewer doorbells at once are faster rung one by one."""
ENTRIES = 64
FILES = 2048
"""Lines that a machine can have in batches at a time; further batches are rung one by one."""

SETUP, ENTER, REGISTER = 425, 426, 427  # the same on every architecture but alpha and mips
SETUP_SUBMIT_ALL = 1 << 7  # a doorbell that is refused does not hold up those after it
REGISTER_BUFFERS, REGISTER_FILES_UPDATE, REGISTER_FILES = 0, 6, 13
FILES_TABLE = struct.Struct("II24x")  # struct io_uring_rsrc_register
SPARSE = 1
SQ_RING_AT, SQES_AT = 0, 0x10000000
WRITE_FIXED = 5
FIXED_FILE, SKIP_SUCCESS = 1 << 0, 1 << 6
RWF_NOWAIT = 8
NO_OFFSET = (1 << 64) - 1
NO_FILE = -1
PARAMETERS_BYTES, CQ_ENTRIES_AT, FLAGS_AT, SQ_OFFSETS_AT, CQ_OFFSETS_AT = 120, 4, 8, 40, 80
SQE = struct.Struct("<BBHiQQIIQHHi16x")
CQE = struct.Struct("<QiI")
WORD_BYTES = 4
WORD = (1 << 32) - 1


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def places_twice(count: int) -> memoryview[int]:
    """The places 0 to ``count``, twice: each part of that length is a cycle that begins elsewhere."""
    return memoryview(struct.pack(f"{2 * count}I", *range(count), *range(count))).cast("I")


class _Ring:
    """One io_uring: its queues, and the table of registered files.

    Attributes:
        submit: ``submit(image, start, stop)`` rings the doorbells ``start`` to ``stop`` of an image in order and
            returns the places of those that are refused.
        submit_from: ``submit_from(image, cycle, first)`` does so for all doorbells of an image, beginning with
            ``first``; ``cycle`` is `places_twice` of their number.

    Raises:
        OSError: the kernel does not have it, or does not allow it.
    """

    submit: Callable[[bytes, int, int], Sequence[int]]
    submit_from: Callable[[bytes, memoryview[int], int], Sequence[int]]

    def __init__(self) -> None:
        self._free: list[int] = []  # places that were used before
        self._unused = 0  # the first place that never was
        self._one = mmap.mmap(-1, mmap.PAGESIZE)
        self._one[:8] = (1).to_bytes(8, "little")  # an eventfd takes eight bytes
        view = ctypes.c_char.from_buffer(self._one)
        self._address = ctypes.addressof(view)
        del view
        parameters = bytearray(PARAMETERS_BYTES)
        struct.pack_into("I", parameters, FLAGS_AT, SETUP_SUBMIT_ALL)
        memory = (ctypes.c_char * PARAMETERS_BYTES).from_buffer(parameters)
        self.descriptor = _checked(_syscall(SETUP, ENTRIES, memory), "io_uring_setup")
        try:
            self._map(parameters)
            buffer = (ctypes.c_uint64 * 2)(self._address, mmap.PAGESIZE)
            self._register(REGISTER_BUFFERS, buffer, 1)
            self._register(REGISTER_FILES, FILES_TABLE.pack(FILES, SPARSE), FILES_TABLE.size)
        except BaseException:
            os.close(self.descriptor)
            raise

    def _register(self, what: int, argument: object, count: int) -> None:
        _checked(_syscall(REGISTER, self.descriptor, what, argument, count), "io_uring_register")

    def _map(self, parameters: bytearray) -> None:
        _, tail_at, _, _, _, _, array_at, _ = struct.unpack_from("8I", parameters, SQ_OFFSETS_AT)
        completed_head_at, completed_tail_at, _, _, _, entries_at, _, _ = struct.unpack_from(
            "8I", parameters, CQ_OFFSETS_AT
        )
        (completed,) = struct.unpack_from("I", parameters, CQ_ENTRIES_AT)
        size_bytes = max(array_at + WORD_BYTES * ENTRIES, entries_at + CQE.size * completed)
        flags, protection = mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ | mmap.PROT_WRITE
        self._queues = mmap.mmap(self.descriptor, size_bytes, flags, protection, offset=SQ_RING_AT)
        self._entries = mmap.mmap(self.descriptor, SQE.size * ENTRIES, flags, protection, offset=SQES_AT)
        self._words = memoryview(self._queues).cast("I")
        self._array = self._words[array_at // WORD_BYTES :][:ENTRIES]
        heads_and_tails = tail_at // WORD_BYTES, completed_head_at // WORD_BYTES, completed_tail_at // WORD_BYTES
        enter = self._make_enter(*heads_and_tails, entries_at, completed)
        self.submit, self.submit_from = self._make_submits(heads_and_tails[0], enter)

    def _make_submits(
        self, tail_at: int, enter: Callable[[int, int], Sequence[int]]
    ) -> tuple[Callable[[bytes, int, int], Sequence[int]], Callable[[bytes, memoryview[int], int], Sequence[int]]]:
        words, array, entries = self._words, self._array, self._entries
        mask = ENTRIES - 1
        twice = places_twice(ENTRIES)
        turn = 0  # place p of the queue submits the entry (p - turn) mod ENTRIES
        array[:] = twice[:ENTRIES]
        loaded = b""

        def submit(image: bytes, start: int, stop: int) -> Sequence[int]:
            nonlocal loaded, turn
            if image is not loaded:
                entries[: len(image)] = image
                loaded = image
            tail = words[tail_at]
            by = tail - start & mask
            if by != turn:
                array[:] = twice[ENTRIES - by : 2 * ENTRIES - by]
                turn = by
            return enter(tail, stop - start)

        def submit_from(image: bytes, cycle: memoryview[int], first: int) -> Sequence[int]:
            nonlocal loaded, turn
            if image is not loaded:
                entries[: len(image)] = image
                loaded = image
            tail, count = words[tail_at], len(cycle) // 2
            turn = -1  # no turn of ``submit``
            place, order = tail & mask, cycle[first : first + count]
            if (over := place + count - ENTRIES) <= 0:
                array[place : place + count] = order
            else:
                array[place:], array[:over] = order[: count - over], order[count - over :]
            return enter(tail, count)

        return submit, submit_from

    def _make_enter(
        self, tail_at: int, completed_head_at: int, completed_tail_at: int, entries_at: int, completed: int
    ) -> Callable[[int, int], Sequence[int]]:
        """``enter(tail, count)`` rings the next entries of the submission queue; returns the places of the refused."""
        words, queues, syscall, descriptor = self._words, self._queues, _syscall, self.descriptor
        number, ring, zero = ctypes.c_long(ENTER), ctypes.c_long(descriptor), ctypes.c_long(0)
        counts = [ctypes.c_long(count) for count in range(ENTRIES + 1)]

        def enter(tail: int, count: int) -> Sequence[int]:
            words[tail_at] = tail + count & WORD
            done = syscall(number, ring, counts[count], zero, zero, zero, zero)
            while done != count:  # the kernel is short of memory for a moment
                if done < 0 and ctypes.get_errno() not in (errno.EAGAIN, errno.EBUSY, errno.EINTR):
                    _checked(done, "io_uring_enter")
                count -= max(done, 0)
                done = syscall(number, ring, counts[count], zero, zero, zero, zero)
            return () if words[completed_head_at] == words[completed_tail_at] else take_refused()

        def take_refused() -> list[int]:
            refused = []
            while (head := words[completed_head_at]) != words[completed_tail_at]:
                place, result, _ = CQE.unpack_from(queues, entries_at + CQE.size * (head % completed))
                words[completed_head_at] = head + 1 & WORD
                if result != -errno.EAGAIN:
                    raise OSError(-result, f"a doorbell by io_uring: {os.strerror(-result)}")
                refused.append(place)
            return refused

        return enter

    def image(self, places: Sequence[int]) -> bytes:
        """The submission queue entries that ring the lines at these places of the table; at most ``ENTRIES``."""
        flags = FIXED_FILE | SKIP_SUCCESS
        return b"".join(
            SQE.pack(WRITE_FIXED, flags, 0, place, NO_OFFSET, self._address, 8, RWF_NOWAIT, at, 0, 0, 0)
            for at, place in enumerate(places)
        )

    def add(self, lines: Sequence[Line]) -> list[int]:
        """Register lines; returns their places in the table.

        Raises:
            OSError: there is no room for them, or the kernel takes none.
        """
        again = min(len(self._free), len(lines))
        if self._unused + len(lines) - again > FILES:
            raise OSError(errno.ENOSPC, "no room for further lines")
        places = [self._free.pop() for _ in range(again)]
        first, self._unused = self._unused, self._unused + len(lines) - again
        places += range(first, self._unused)
        try:
            self._update(places, lines)
        except OSError:
            self.remove(places)
            raise
        return places

    def remove(self, places: Sequence[int]) -> None:
        self._update(places, [NO_FILE] * len(places))
        self._free.extend(reversed(places))

    def _update(self, places: Sequence[int], lines: Sequence[Line]) -> None:
        """Put lines at places of the table: one call for those that are next to each other."""
        begin = 0
        for end in range(1, len(places) + 1):
            if end == len(places) or places[end] != places[end - 1] + 1:
                those = array.array("i", lines[begin:end])
                update = (ctypes.c_uint64 * 2)(places[begin], those.buffer_info()[0])  # struct io_uring_files_update
                _checked(_syscall(REGISTER, self.descriptor, REGISTER_FILES_UPDATE, update, end - begin), "a line")
                begin = end

    def close(self) -> None:
        """Give up the ring. ``submit`` must not be called again."""
        self._array.release()
        self._words.release()
        self._queues.close()
        self._entries.close()
        os.close(self.descriptor)


class _UringBatch:
    """Lines that are registered with a ring when they are first rung; few of them at once are rung one by one.

    Attributes:
        ring: as of `nodes.bursts.Batch`, and so is ``ring_from``. They change: look them up for each ring.
    """

    ring: Callable[[int, int], Sequence[int]]
    ring_from: Callable[[int], Sequence[int]] | None

    def __init__(self, maker: BatchMaker, lines: Sequence[Line]) -> None:
        self._maker, self._lines = maker, tuple(lines)
        self._few = LoopBatch(self._lines, one_by_one(signal)).ring
        self._ring: _Ring | None = None
        self._places: list[int] = []
        self.forget_ring()

    def forget_ring(self) -> None:
        """The ring, if there was one, is of no use any more: register at the next ring of this batch."""
        self._ring, self.ring, self.ring_from = None, self._register_and_ring, None

    def _register_and_ring(self, start: int, stop: int) -> Sequence[int]:
        self._ring = ring = self._maker.ring_of_process()
        self.ring = self._few
        if ring is not None:
            with contextlib.suppress(OSError):  # a limit of this process or of the host: as without a ring
                self._places = ring.add(self._lines)
                self.ring = self._make_ring(ring)
        return self.ring(start, stop)

    def _make_ring(self, ring: _Ring) -> Callable[[int, int], Sequence[int]]:
        images = [ring.image(self._places[first : first + ENTRIES]) for first in range(0, len(self._places), ENTRIES)]
        few, submit, image = self._few, ring.submit, images[0]

        def ring_some(start: int, stop: int) -> Sequence[int]:
            return submit(image, start, stop) if stop - start >= LEAST else few(start, stop)

        def ring_pieces(start: int, stop: int) -> Sequence[int]:
            refused: list[int] = []
            while start < stop:
                number, within = divmod(start, ENTRIES)
                first = start - within
                end = min(stop, first + ENTRIES)
                if end - start < LEAST:
                    refused.extend(few(start, end))
                else:
                    refused.extend(first + place for place in submit(images[number], within, end - first))
                start = end
            return refused

        if len(images) > 1:
            return ring_pieces
        submit_from, cycle = ring.submit_from, places_twice(len(self._places))
        self.ring_from = lambda first: submit_from(image, cycle, first)
        return ring_some

    def close(self) -> None:
        ring, places, self._places = self._ring, self._places, []
        self._ring, self.ring, self.ring_from = None, self._few, None
        if ring is not None:
            ring.remove(places)
        self._maker.forget(self)


class BatchMaker:
    """Makes the batches of one machine: called with lines that are rung together, in this order."""

    def __init__(self) -> None:
        self._ring: _Ring | None = None
        self._is_refused = False
        self._batches: dict[_UringBatch, None] = {}  # until they are closed
        _makers.add(weakref.ref(self, _makers.discard))

    def __call__(self, lines: Sequence[Line]) -> Batch:
        if len(lines) < LEAST:
            return LoopBatch(lines, one_by_one(signal))
        batch = _UringBatch(self, lines)
        self._batches[batch] = None
        return batch

    def forget(self, batch: _UringBatch) -> None:
        self._batches.pop(batch, None)

    def ring_of_process(self) -> _Ring | None:
        """The ring, which the first batch makes; None where the kernel has none for this process."""
        if self._ring is None and not self._is_refused:
            try:
                check_rings()
                self._ring = _Ring()
            except OSError:
                self._is_refused = True
        return self._ring

    def begin_anew(self) -> None:
        """In a new process: leave the ring to the parent; the next ring of a batch makes another one."""
        self._give_up_ring(is_refused=False)

    def close(self) -> None:
        """Give up the ring; doorbells are rung one by one from now on."""
        self._give_up_ring(is_refused=True)

    def _give_up_ring(self, *, is_refused: bool) -> None:
        ring, self._ring, self._is_refused = self._ring, None, is_refused
        for batch in list(self._batches):
            batch.forget_ring()
        if ring is not None:
            ring.close()


_makers: set[weakref.ref[BatchMaker]] = set()


@cache
def check_rings() -> None:
    """See once that a ring rings, and refuses a full counter. A process that is forked later knows it from this one.

    Raises:
        OSError: it does not, or there is none.
    """
    ring = _Ring()
    full, empty = EventFd.create(), EventFd.create()
    try:
        full.add(COUNTER_MAX)
        places = ring.add([full.descriptor, empty.descriptor])
        refused = ring.submit(ring.image(places), 0, len(places))
        ring.remove(places)
        if list(refused) != [0] or empty.take() != 1:
            raise OSError(errno.ENOSYS, "io_uring does not refuse a doorbell at a full counter")
    finally:
        ring.close()
        full.close()
        empty.close()


def _begin_anew() -> None:
    for reference in list(_makers):
        if (maker := reference()) is not None:
            maker.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)
