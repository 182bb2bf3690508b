"""The path of an access from a processor, or from qtest, to a device, and how it changes a misaligned access.

An aligned access is the same on every path. The paths are those of QEMU's accelerators, of KVM and other hypervisors,
which pass the access on as the guest made it, and of qtest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum

from nodes.errors import GuestError

WORD_BYTES = 4
CONFIG_BYTES = 256
Read = Callable[[int, int], int]
"""``read(offset, size_bytes)``"""
Write = Callable[[int, int, int], object]
"""``write(offset, size_bytes, value)``"""


class AccessPath(Enum):
    """The accesses that reach the window of a BAR for one misaligned load or store."""

    WHOLE = "the access as it was made"
    BYTES = "of a store each byte; of a load the two aligned ones around it, of which it takes its bytes"
    EVEN = "pieces of the largest size that divides the address and what is left of the access"

    def load(self, read: Read, offset: int, size_bytes: int) -> int:
        """The value of a load of 1, 2, 4 or 8 bytes at ``offset``; ``read`` reads what reaches the window."""
        if self is AccessPath.WHOLE or not offset % size_bytes:
            return read(offset, size_bytes)
        if self is AccessPath.BYTES:
            aligned = offset - offset % size_bytes
            both = read(aligned, size_bytes) | read(aligned + size_bytes, size_bytes) << 8 * size_bytes
            return both >> 8 * (offset - aligned) & (1 << 8 * size_bytes) - 1
        return sum(read(at, size) << 8 * (at - offset) for at, size in _even_pieces(offset, size_bytes))

    def store(self, write: Write, offset: int, size_bytes: int, value: int) -> None:
        """Make a store of 1, 2, 4 or 8 bytes at ``offset``; ``write`` writes what reaches the window."""
        if self is AccessPath.WHOLE or not offset % size_bytes:
            write(offset, size_bytes, value)
            return
        bytewise = ((offset + at, 1) for at in range(size_bytes))
        for at, size in bytewise if self is AccessPath.BYTES else _even_pieces(offset, size_bytes):
            write(at, size, value >> 8 * (at - offset) & (1 << 8 * size) - 1)


def _even_pieces(offset: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """The (offset, size) pieces (QEMU 10.0, accel/tcg/cputlb.c, int_st_mmio_leN: ctz32(size | addr | 8))."""
    end = offset + size_bytes
    while offset < end:
        bits = offset | end - offset | 8
        size = bits & -bits
        yield offset, size
        offset += size


class MisalignedConfig(Enum):
    """The treatment of a misaligned access to configuration space, at the data ports 0xcfc to 0xcff."""

    ZERO = "reads 0, is dropped"
    ONES = "reads all ones, is dropped"
    PIECES = "takes the bytes from there; those beyond the ports read all ones and are dropped"
    INSIDE = "takes the bytes from there; one that goes beyond the ports reads all ones and is dropped"
    ACROSS = "takes the bytes from there, also those of the next word"

    def load(self, read: Read, offset: int, size_bytes: int) -> int:
        """The value of a read of 1, 2 or 4 bytes at ``offset``.

        Raises:
            GuestError: another size, or an offset outside the 256 bytes.
        """
        taken = self._taken(offset, size_bytes)
        value = read(offset, size_bytes) if taken == size_bytes else 0
        if taken == size_bytes or self is MisalignedConfig.ZERO:
            return value
        ones = (1 << 8 * size_bytes) - (1 << 8 * taken)
        return sum(read(offset + at, 1) << 8 * at for at in range(taken)) | ones

    def store(self, write: Write, offset: int, size_bytes: int, value: int) -> None:
        """Make a write of 1, 2 or 4 bytes at ``offset``.

        Raises:
            GuestError: another size, or an offset outside the 256 bytes.
        """
        taken = self._taken(offset, size_bytes)
        if taken == size_bytes:
            write(offset, size_bytes, value)
            return
        for at in range(taken):
            write(offset + at, 1, value >> 8 * at & 0xFF)

    def _taken(self, offset: int, size_bytes: int) -> int:
        """How many bytes of the access the device takes."""
        if size_bytes not in (1, 2, 4):
            raise GuestError(f"a configuration access of {size_bytes} bytes: 1, 2 or 4 are possible")
        if not 0 <= offset < CONFIG_BYTES:
            raise GuestError(f"a configuration access at {offset:#x}, {size_bytes} bytes: outside the 256")
        inside = WORD_BYTES - offset % WORD_BYTES
        if not offset % size_bytes or self is MisalignedConfig.ACROSS:
            return size_bytes
        if self in (MisalignedConfig.ZERO, MisalignedConfig.ONES):
            return 0
        if size_bytes <= inside:
            return size_bytes
        return inside if self is MisalignedConfig.PIECES else 0
