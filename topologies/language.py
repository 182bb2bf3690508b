"""What a topology file may say: one struct for each of its tables.

The loader checks a file against these, `topologies.schema` makes the editors' JSON Schema of them. A
new table or key of the language begins here.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from topologies.checked import Name
from topologies.model import (
    Count,
    MemoryKind,
    Profile,
    ProgramName,
    Role,
    RunSettings,
    Seed,
    Title,
    Vectors,
)

__all__ = ["File", "GroupTable", "MemoryTable", "Size", "parse_size", "show_size"]

Size = Annotated[
    Annotated[int, Meta(ge=4096, le=2**40)] | Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,12}[KMG]?\Z")],
    Meta(
        description="Bytes, or a number with K, M or G; a power of two, at least 4096.",
        examples=["4M", 65536],
    ),
]

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class MemoryTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shared memory of all machines: the table ``[memory]``."""

    size: Size = "4M"
    kind: MemoryKind = "shared_memory"


class GroupTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of machines that are alike: a table ``[machines.NAME]``."""

    program: ProgramName
    count: Count = 1
    vectors: Vectors = 1
    role: Annotated[
        Role | None,
        Meta(description="A `master` migrates with its memory, a `peer` cannot; if absent, the device decides."),
    ] = None
    profile: Profile = "qemu-doorbell"
    parameters: Annotated[
        dict[str, Any],
        Meta(description="The program's keyword parameters; machines are named by group or machine name."),
    ] = {}


class File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A topology: which machines share a memory, what they run, for how long."""

    machines: Annotated[dict[Name, GroupTable], Meta(min_length=1, description="The groups of machines, by name.")]
    title: Title = ""
    seed: Seed = 1
    run: RunSettings = RunSettings()
    memory: MemoryTable = MemoryTable()


def parse_size(size: int | str) -> int:
    """A checked `Size` in bytes: ``"4M"`` is 4194304."""
    if isinstance(size, int):
        return size
    unit = _UNITS.get(size[-1])
    return int(size) if unit is None else int(size[:-1]) * unit


def show_size(size_bytes: int) -> str:
    """Bytes as a topology spells them: 4194304 is ``4M``, 5000 is ``5000``."""
    for unit, factor in reversed(_UNITS.items()):
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)
