"""Limits under which the libraries of a command cannot even be loaded (setrlimit(2)), checked before they are.

Batch systems set them (``ulimit -v``). Under such a limit numpy and Arrow end the process, or raise errors that name no
limit; so the figures are compared first, by commands that load these libraries.
"""

from __future__ import annotations

import os
import resource
from collections.abc import MutableMapping
from typing import NamedTuple

from nodes.errors import HostError

__all__ = ["RESULTS", "TELEMETRY", "be_frugal", "check"]

MIB = 1 << 20
STACK_BYTES = 128 << 10


class Need(NamedTuple):
    """The bytes that a process maps with its libraries loaded; measured with CPython 3.11 and Arrow 26."""

    what: str
    address_space_bytes: int
    data_bytes: int


RESULTS = Need("Python, numpy and Arrow", 640 * MIB, 208 * MIB)
"""For commands that write or read results."""
TELEMETRY = Need("Python, numpy and ZeroMQ", 288 * MIB, 128 * MIB)
"""For commands that watch a run, or draw a topology."""

FRUGAL = {
    # Arrow's own allocator reserves 1 GiB of address space at once; threads have a stack and an arena each.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def check(need: Need) -> None:
    """Compare the limits of this process with a need.

    Raises:
        HostError: A limit is below it, with both figures.
    """
    for kind, option, what, needed in (
        (resource.RLIMIT_AS, "-v", "address space", need.address_space_bytes),
        (resource.RLIMIT_DATA, "-d", "data", need.data_bytes),
        (resource.RLIMIT_STACK, "-s", "stack", STACK_BYTES),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < needed:
            raise HostError(
                f"this command needs {needed / MIB:g} MiB of {what} ({need.what}); this host allows "
                f"{limit / MIB:g} MiB (ulimit {option}). Raise the limit"
            )


def be_frugal(environment: MutableMapping[str, str] = os.environ) -> None:
    """Where address space or data is limited, have the libraries map less of it; what is set already stays."""
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        if resource.getrlimit(kind)[0] != resource.RLIM_INFINITY:
            for name, value in FRUGAL.items():
                environment.setdefault(name, value)
