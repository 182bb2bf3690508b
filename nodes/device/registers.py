"""Registers as a table, from which decoding, datasheet and tests derive.

A :class:`RegisterMap` declares every 32-bit word of its window exactly once; making a map with a gap or an overlap is
an error. A :class:`RegisterFile` holds the values of the words. A :class:`Window` splits a guest's access into words,
as QEMU's memory core does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from msgspec import Struct

from nodes.errors import GuestError, UsageError

WORD_BYTES = 4
WORD_MASK = 0xFFFF_FFFF
SIZES = (1, 2, 4, 8)


class Access(Enum):
    """The effect of reading and of writing a word."""

    RW = "read-write"
    RO = "read-only"
    WO = "write-only, reads 0"
    RC = "read-write, a read clears"
    RESERVED = "reads 0, writes ignored"


class Unfit(Enum):
    """The treatment of an access that a window does not take whole."""

    SPLIT = "split into naturally aligned pieces, lowest address first"
    ONES = "reads all ones, writes dropped"
    ZERO = "reads 0, writes dropped"


class AccessRules(Struct, frozen=True):
    """How a window takes accesses of 1, 2, 4 and 8 bytes.

    ``misaligned`` and ``wide`` say what happens to an access whose offset is no multiple of its size, or that is
    wider than ``widest_bytes``: as a whole, or in naturally aligned pieces. ``narrow`` says what happens to an access,
    or of a piece, below ``narrowest_bytes``; it is not split further. A written offset is ANDed with
    ``write_offset_mask``, a read one is not (ivshmem.c, ivshmem_io_write).
    """

    widest_bytes: int = 4
    narrowest_bytes: int = 1
    misaligned: Unfit = Unfit.SPLIT
    wide: Unfit = Unfit.SPLIT
    narrow: Unfit = Unfit.ZERO
    write_offset_mask: int = ~0

    def unfit(self, offset: int, size_bytes: int) -> Unfit | None:
        """How the access is refused as a whole; None when it is taken piece by piece."""
        if offset % size_bytes and self.misaligned is not Unfit.SPLIT:
            return self.misaligned
        if size_bytes > self.widest_bytes and self.wide is not Unfit.SPLIT:
            return self.wide
        return None

    def describe(self) -> str:
        """One line for a datasheet."""
        parts = [f"{self.narrowest_bytes} to {self.widest_bytes} bytes"]
        parts.append(f"misaligned: {self.misaligned.value}")
        parts.append(f"wider: {self.wide.value}")
        if self.narrowest_bytes > 1:
            parts.append(f"narrower: {self.narrow.value}")
        if self.write_offset_mask != ~0:
            parts.append(f"written offsets are ANDed with {self.write_offset_mask:#x}")
        return "; ".join(parts)


class Register(Struct, frozen=True):
    """One register of 32 bits, or ``words`` equal ones (reserved space)."""

    offset: int
    name: str
    access: Access
    text: str
    reset: int = 0
    words: int = 1

    @property
    def end(self) -> int:
        return self.offset + self.words * WORD_BYTES


class RegisterMap(Struct, frozen=True):
    """A window of registers; every word of it is declared once.

    Raises:
        UsageError: a word is declared twice, or not at all.
    """

    name: str
    size_bytes: int
    registers: tuple[Register, ...]

    def __post_init__(self) -> None:
        at = 0
        for register in sorted(self.registers, key=lambda register: register.offset):
            if register.offset != at:
                problem = "overlaps its neighbour" if register.offset < at else "leaves a gap before it"
                raise UsageError(f"{self.name}: {register.name} at {register.offset:#x} {problem}")
            at = register.end
        if at != self.size_bytes:
            raise UsageError(f"{self.name}: registers end at {at:#x}, the window at {self.size_bytes:#x}")

    def offset_of(self, name: str) -> int:
        """The offset of the register of that name.

        Raises:
            UsageError: the map has none.
        """
        for register in self.registers:
            if register.name == name:
                return register.offset
        raise UsageError(f"{self.name} has no register {name}")


def pieces(offset: int, size_bytes: int, widest_bytes: int) -> Iterator[tuple[int, int]]:
    """Naturally aligned (offset, size) pieces of one access, lowest address first.

    Each piece is the largest power of two that its alignment, the rest and ``widest_bytes`` allow
    (QEMU 7.2, softmmu/physmem.c, memory_access_size).
    """
    end = offset + size_bytes
    while offset < end:
        size = min(offset & -offset or widest_bytes, widest_bytes, 1 << ((end - offset).bit_length() - 1))
        yield offset, size
        offset += size


class RegisterFile:
    """The values of the words of a :class:`RegisterMap`.

    Args:
        registers: the map.
        reads: by the name of a read-only register, a function that returns its value.
        written: by the name of a writable register, a function that is called with each value written.
        cleared: by the name of a register that a read clears, a function that is called after each such read.
    """

    __slots__ = ("_by_offset", "_cleared", "_reads", "_written", "map", "values")

    def __init__(
        self,
        registers: RegisterMap,
        *,
        reads: Mapping[str, Callable[[], int]] | None = None,
        written: Mapping[str, Callable[[int], object]] | None = None,
        cleared: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        self.map = registers
        self._reads = dict(reads or {})
        self._written = dict(written or {})
        self._cleared = dict(cleared or {})
        self._by_offset = {r.offset: r for r in registers.registers if r.access is not Access.RESERVED}
        self.values = {r.name: r.reset for r in self._by_offset.values()}

    def reset(self, *names: str) -> None:
        """Give the named registers their reset values."""
        for register in self._by_offset.values():
            if register.name in names:
                self.values[register.name] = register.reset

    def read_word(self, offset: int) -> int:
        """The word at exactly ``offset``; an offset that begins no register reads 0."""
        register = self._by_offset.get(offset)
        if register is None or register.access is Access.WO:
            return 0
        name = register.name
        if register.access is Access.RO:
            source = self._reads.get(name)
            return (source() if source else self.values[name]) & WORD_MASK
        value = self.values[name]
        if register.access is Access.RC:
            self.values[name] = 0
            if name in self._cleared:
                self._cleared[name]()
        return value

    def write_word(self, offset: int, value: int) -> None:
        """Write the word at exactly ``offset``; read-only and undeclared ones ignore it."""
        register = self._by_offset.get(offset)
        if register is None or register.access is Access.RO:
            return
        value &= WORD_MASK
        if register.access is not Access.WO:
            self.values[register.name] = value
        if register.name in self._written:
            self._written[register.name](value)


class Window:
    """The words of one BAR, and the rules for accesses to them.

    ``read(offset, size_bytes)`` and ``write(offset, size_bytes, value)`` are called for each piece of an access.
    """

    __slots__ = ("_read", "_write", "rules", "size_bytes")

    def __init__(
        self,
        size_bytes: int,
        rules: AccessRules,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], object],
    ) -> None:
        self.size_bytes = size_bytes
        self.rules = rules
        self._read = read
        self._write = write

    def _pieces(self, offset: int, size_bytes: int) -> Iterator[tuple[int, int]]:
        """The (offset, size) pieces of an access that lie in the window."""
        return (piece for piece in pieces(offset, size_bytes, self.rules.widest_bytes) if sum(piece) <= self.size_bytes)

    def read(self, offset: int, size_bytes: int) -> int:
        """Read ``size_bytes`` at ``offset``, little-endian; bytes outside the window read 0."""
        check_access(offset, size_bytes)
        unfit = self.rules.unfit(offset, size_bytes)
        if unfit is not None:
            return _refused(unfit, size_bytes)
        value = 0
        for at, size in self._pieces(offset, size_bytes):
            narrow = size < self.rules.narrowest_bytes
            piece = _refused(self.rules.narrow, size) if narrow else self._read(at, size) & ((1 << 8 * size) - 1)
            value |= piece << 8 * (at - offset)
        return value

    def write(self, offset: int, size_bytes: int, value: int) -> None:
        """Write ``size_bytes`` at ``offset``, little-endian; bytes outside the window are dropped."""
        check_access(offset, size_bytes)
        if self.rules.unfit(offset, size_bytes) is not None:
            return
        for at, size in self._pieces(offset, size_bytes):
            if size >= self.rules.narrowest_bytes:
                part = value >> 8 * (at - offset) & ((1 << 8 * size) - 1)
                self._write(at, size, part)


def _refused(unfit: Unfit, size_bytes: int) -> int:
    """The value that a refused access reads."""
    return (1 << 8 * size_bytes) - 1 if unfit is Unfit.ONES else 0


def check_access(offset: int, size_bytes: int) -> None:
    """Check that a bus can carry the access.

    Raises:
        GuestError: a size that is not 1, 2, 4 or 8 bytes, or a negative offset.
    """
    if size_bytes not in SIZES:
        raise GuestError(f"an access of {size_bytes} bytes: the bus carries 1, 2, 4 or 8")
    if offset < 0:
        raise GuestError(f"an access at offset {offset}: offsets begin at 0")
