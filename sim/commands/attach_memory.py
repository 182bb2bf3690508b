"""The shared memory as the commands of `ivsim attach` read, write and show it."""

from __future__ import annotations

from collections.abc import Iterator

from nodes.errors import UsageError
from sim.kernel.memory import check_mapped
from sim.wire.attachment import Attachment


def part_of(memory: memoryview, offset: int, length: int) -> memoryview:
    """A part of the memory that may be touched."""
    check_mapped(memory)
    if length == 0 or offset + length > len(memory):
        raise UsageError(
            f"expected 1 byte or more within the memory's {len(memory)} ({len(memory):#x}), "
            f"got {length} at offset {offset:#x}"
        )
    return memory[offset : offset + length]


def writable_part(attachment: Attachment, offset: int, length: int) -> memoryview:
    """A part of the memory that may be written; a peer of ivshmem v2 may not write everywhere.

    Raises:
        ForbiddenStoreError: it is another's section, or the State Table.
    """
    part = part_of(attachment.memory, offset, length)
    return part if attachment.sections is None else attachment.sections.writable(offset, length)


def dump(data: bytes, offset: int) -> Iterator[str]:
    """16 bytes a line, as `hexdump -C` shows them; repeated lines are one asterisk."""
    previous, starred = None, False
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        if row == previous and at + 16 < len(data):
            if not starred:
                yield "*"
            starred = True
            continue
        previous, starred = row, False
        halves = "  ".join(row[half : half + 8].hex(" ") for half in (0, 8))
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{offset + at:08x}  {halves:48}  |{text}|"
