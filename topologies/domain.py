"""A shared memory with its server: the domain of a topology, of either version of ivshmem."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nodes.errors import UsageError
from nodes.wire import protocol as wire
from nodes.wire.v2.protocol import ALL_DIALECTS, V2, DomainNumbers
from topologies.language.sizes import MEMORY_SIZE_MAX_BYTES, MEMORY_SIZE_MIN_BYTES
from topologies.language.validated import NAME_PATTERN, Name, Validated

MAX_PEERS = 65536
"""A peer's ID has 16 bits."""

MAIN_DOMAIN = "main"

ANY_HOST = "any"
"""The host of a domain that may be on any."""

SizeBytes = Annotated[int, Meta(ge=MEMORY_SIZE_MIN_BYTES, le=MEMORY_SIZE_MAX_BYTES)]
MemoryKind = Annotated[
    Literal["shared_memory", "memfd"],
    Meta(description="`shared_memory`: other programs can open it by name; `memfd`: sealed against shrinking."),
]
Dialect = Annotated[
    Literal["v0", "legacy", "v0-shm-last"], Meta(description="The wire format of the server: today's, or an older one.")
]
Version = Annotated[
    Literal[1, 2], Meta(description="The version of ivshmem; the keys below it are those of version 2 only.")
]
MaxPeers = Annotated[
    int, Meta(ge=2, le=MAX_PEERS, description="Version 2: how many peers there can be at once, with fixed IDs.")
]
Protocol = Annotated[
    int,
    Meta(
        ge=0,
        le=0xFFFF,
        description="Version 2: what the peers speak, in the class code: 1 is Ethernet, 0x8003 a virtio console.",
    ),
]


HostName = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=r"^[^#\x00-\x1f\x7f]*\Z",
        description="The host of the domain and its machines: the name of a worker (`ivsim worker --name`), or `any`.",
    ),
]


class Memory(Validated, frozen=True, kw_only=True):
    """The region behind BAR2 of every machine; ``size_bytes`` is a power of two, at least one page.

    ``name`` is that of the segment in /dev/shm, for ``shared_memory`` only; "" leaves the choice to the run.
    """

    size_bytes: SizeBytes = 4 << 20
    kind: MemoryKind = "shared_memory"
    name: Annotated[str, Meta(pattern=rf"{NAME_PATTERN}|^\Z")] = ""

    def __post_init__(self) -> None:
        Validated.__post_init__(self)
        if self.size_bytes & (self.size_bytes - 1):
            raise UsageError(f"Memory.size_bytes: expected a power of two, got {self.size_bytes}")
        if self.name and self.kind != "shared_memory":
            raise UsageError(f"Memory.name: expected none for the kind {self.kind}, got {self.name!r}")


class Domain(Validated, frozen=True, kw_only=True):
    """A shared memory with a server of its own; most topologies have one, named ``main``.

    ``host`` is "" in a topology whose domains are all on the host that runs it.
    """

    name: Name = MAIN_DOMAIN
    memory: Memory = Memory()
    dialect: Dialect = "v0"
    version: Version = 1
    max_peers: MaxPeers = 2
    output_size_bytes: Annotated[int, Meta(ge=0, le=MEMORY_SIZE_MAX_BYTES)] = 0
    protocol: Protocol = 0
    host: HostName = ""

    @property
    def spoken(self) -> wire.Dialect:
        """The dialect of the wire that its server speaks."""
        return ALL_DIALECTS[self.dialect if self.version == 1 else V2.name]

    def numbers(self, vectors: int) -> DomainNumbers | None:
        """What a server of version 2 tells its clients, each with so many vectors; None for version 1."""
        if self.version == 1:
            return None
        return DomainNumbers(self.max_peers, vectors, self.protocol, self.output_size_bytes)
