"""The exit codes of `ivsim` other than 0. The docstrings below are the table in docs/results.md."""

from __future__ import annotations

from nodes.errors import HostError, IvshmemError, UsageError
from sim.kernel.shortage import is_shortage
from sim.kernel.signals import ENDING

FAILED = 1
"""The run failed, or its counts do not balance."""
WRONG_USE = 2
"""The command line or the topology is wrong; nothing was started."""
HOST_TOO_SMALL = 3
"""This host lacks descriptors, memory, processes, file systems or rights for what was asked."""
STOPPED_ABOVE = 98
"""A latency was above its limit, and ended the run (`--stop-above`); the result says what it was."""
MISSED = 99
"""An expectation of the topology, or a threshold of ``compare``, was not met; ``explore`` found a broken invariant."""
INTERRUPTED = 130
"""SIGINT (Ctrl-C) ended the command; 143: SIGTERM, 129: SIGHUP. A run keeps what was measured."""
BROKEN_PIPE = 141
"""The reader of standard output closed it."""


def of_error(error: IvshmemError | OSError) -> int:
    """The code of an error, also of one of the kernel: wrong use, a host that is too small, or a failure."""
    if isinstance(error, UsageError):
        return WRONG_USE
    too_small = is_shortage(error) if isinstance(error, OSError) else isinstance(error, HostError)
    return HOST_TOO_SMALL if too_small else FAILED


def of_signal(name: str) -> int:
    """128 plus the signal's number, as in a shell; the code of SIGINT for a name that is not an ending signal."""
    return next((128 + number for number in ENDING if number.name == name), INTERRUPTED)


def of_run(
    status: str, reason: str, *, balanced: bool, aborted: bool, missed: bool, stopped_above: bool = False
) -> int:
    """The code of a run with that status.

    An expectation ``aborted`` it, or was ``missed`` at its end; or it was ``stopped_above`` a limit.
    """
    if status == "interrupted":
        return of_signal(reason)
    if balanced and stopped_above:
        return STOPPED_ABOVE
    if not balanced or not (aborted or status in ("finished", "degraded")):
        return FAILED
    return MISSED if aborted or missed else 0
