"""Sizes in bytes as users write them, on the command line and in topologies: ``4M``, ``4k``, ``1.5M``, ``0x400000``.

The spellings are those of QEMU's own options (util/cutils.c, qemu_strtosz): a decimal number with an optional
fraction and an optional suffix B, K, M, G, T, P or E in either case, each 1024 times the one before; or a hexadecimal
number of bytes. A fraction needs a suffix above B, and a hexadecimal number takes none.
"""

from __future__ import annotations

import re

MEMORY_SIZE_MIN_BYTES = 1 << 12
MEMORY_SIZE_MAX_BYTES = 1 << 40

SIZE_PATTERN = r"^(0[xX][0-9A-Fa-f]{1,16}|[0-9]{1,19}[BKMGTPEbkmgtpe]?|[0-9]{1,19}\.[0-9]{0,18}[KMGTPEkmgtpe])\Z"
_SIZE = re.compile(SIZE_PATTERN)
_SUFFIXES = "BKMGTPE"


def parse_size(size: int | str) -> int:
    """A size in bytes, a fraction of a byte rounded to the nearest; an integer is taken as it is.

    Raises:
        ValueError: no such size; the text says what is expected.
    """
    if isinstance(size, int):
        return size
    if _SIZE.match(size) is None:
        raise ValueError("expected a size such as 65536, 64K, 4M, 1.5G, 1T or 0x400000")
    if size[:2] in ("0x", "0X"):
        return int(size, 16)
    unit = _SUFFIXES.find(size[-1].upper())
    number = size if unit < 0 else size[:-1]
    multiple = 1 << 10 * max(0, unit)
    if "." not in number:
        return int(number) * multiple
    from fractions import Fraction

    return round(Fraction(number.removesuffix(".")) * multiple)


def power_of_two(size_bytes: int) -> int:
    """The least power of two that holds ``size_bytes``, at least 1."""
    return 1 << max(0, size_bytes - 1).bit_length()


def show_size(size_bytes: int) -> str:
    """Bytes as a topology spells them: 4194304 is ``4M``, 5000 is ``5000``."""
    for unit in range(len(_SUFFIXES) - 1, 0, -1):
        if size_bytes and size_bytes % (1 << 10 * unit) == 0:
            return f"{size_bytes >> 10 * unit}{_SUFFIXES[unit]}"
    return str(size_bytes)
