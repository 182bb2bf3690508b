"""The socket and the memory of each domain, with which another program joins a run in progress."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from nodes.wire.v2.protocol import V2
from sim.wire.qemu_options import qemu_options
from topologies import Topology


class Access(msgspec.Struct, frozen=True):
    """How to join one domain: a QEMU with ivshmem-doorbell by ``socket``, one with ivshmem-plain by ``memory``.

    ``memory`` is the segment's name in /dev/shm, as shm_open(3) takes it without the slash; None for a memfd, which has
    none: it comes with the socket.
    """

    domain: str
    socket: str
    memory: str | None
    memory_bytes: int

    def __str__(self) -> str:
        memory = "a memfd" if self.memory is None else f"/dev/shm/{self.memory}"
        return f"domain {self.domain}: socket {self.socket}, memory {memory}, {self.memory_bytes} bytes"


def server_path(first: Path, number: int, domain: str) -> Path:
    """Return the path of a domain's socket; that of the first domain, number 0, is ``first`` itself."""
    return first if number == 0 else first.with_name(f"{first.name}.{domain}")


def external_path(first: Path, machine: str) -> Path:
    """Return the path of the socket on which an external machine is awaited."""
    return first.with_name(f"{first.name}-{machine}")


def name_memories(topology: Topology) -> Topology:
    """Return the topology with a name, made of this process's ID, for each shared memory that has none."""
    domains = []
    for domain in topology.domains:
        memory = domain.memory
        if memory.kind == "shared_memory" and not memory.name:
            memory = msgspec.structs.replace(memory, name=f"ivsim-{os.getpid()}-{secrets.token_hex(4)}")
        domains.append(msgspec.structs.replace(domain, memory=memory))
    return msgspec.structs.replace(topology, domains=tuple(domains))


def access_to(topology: Topology, first: Path) -> list[Access]:
    """Return the access to each domain of a topology whose memories have names.

    Args:
        topology: What is run.
        first: The socket of the first domain.
    """
    accesses = []
    for number, domain in enumerate(topology.domains):
        path = os.path.abspath(server_path(first, number, domain.name))
        accesses.append(Access(domain.name, path, domain.memory.name or None, domain.memory.size_bytes))
    return accesses


def qemu_lines(topology: Topology, accesses: Iterable[Access]) -> list[str]:
    """Return the options with which a QEMU joins, for each domain whose server speaks its protocol."""
    lines = []
    for domain, access in zip(topology.domains, accesses, strict=True):
        vectors = max((machine.vectors for machine in topology.machines if domain.name in machine.domains), default=1)
        options = qemu_options(Path(access.socket), vectors, domain.spoken)
        if vectors and options:
            program = "the QEMU fork" if domain.spoken is V2 else "QEMU"
            name = f" in {domain.name}" if len(topology.domains) > 1 else ""
            lines.append(f"for {program}{name}: {options}")
    return lines


def external_lines(topology: Topology, accesses: Sequence[Access]) -> list[str]:
    """Return the options for the QEMU of each external machine."""
    first = Path(accesses[0].socket)
    return [
        f"{machine.name} is awaited: start its QEMU with "
        f"{qemu_options(external_path(first, machine.name), machine.vectors)}"
        for machine in topology.machines
        if machine.kind == "external"
    ]


def shown(accesses: Iterable[Access], most: int = 4) -> list[str]:
    """Return a line for each, but no more than ``most`` and how many more there are."""
    lines = [str(access) for access in accesses]
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more domains (manifest.json)"]
