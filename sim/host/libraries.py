"""The libraries of a command: the limits under which they cannot be loaded, and what they need not load.

Batch systems set limits (``ulimit -v``, setrlimit(2)). Under such a limit numpy and Arrow end the process, or raise
errors that name no limit; so the figures are compared first, by commands that load these libraries.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, MutableMapping
from typing import NamedTuple

from nodes.errors import HostError

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

_leaves_out_pandas = False

ONE_BLAS_THREAD = ("OPENBLAS_NUM_THREADS", "1")
FRUGAL = {
    # Arrow's own allocator reserves 1 GiB of address space at once; threads have a stack and an arena each.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
    "OMP_NUM_THREADS": "1",
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
    """Have the libraries take less; what is set already stays.

    No command uses BLAS, whose threads wait in a loop for their first task: 50 ms of a CPU beside each command. Where
    address space or data is limited, the libraries map less of it.
    """
    environment.setdefault(*ONE_BLAS_THREAD)
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        if resource.getrlimit(kind)[0] != resource.RLIM_INFINITY:
            for name, value in FRUGAL.items():
                environment.setdefault(name, value)


def take_all_descriptors() -> None:
    """Raise the soft limit on descriptors, often 1,024, to the hard one: a peer has one for each vector of each other.

    The soft limit is low for programs that use select(2), whose sets end at 1,024. This command uses epoll(7).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def leave_out_pandas() -> None:
    """This process is the command, which has no use for pandas: see `keep_pandas_out`."""
    global _leaves_out_pandas  # noqa: PLW0603  (of this process, as its environment is)
    _leaves_out_pandas = True


def keep_pandas_out(convert: Callable[[], object]) -> None:
    """Call Arrow's first conversion, in the command without pandas.

    Arrow tries to import pandas at its first conversion and never again. Where pandas is installed, that takes a
    command 0.3 s and 30 MB. A guest program can import pandas all the same.
    """
    if _leaves_out_pandas and "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas)
        try:
            convert()
        finally:
            sys.meta_path.remove(_NoPandas)


class _NoPandas:
    """A finder of modules that refuses one."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
