"""The exit codes of `ivsim`: 0, and these. What Ctrl-C, a signal or an expectation has ended has kept its results."""

from __future__ import annotations

from nodes.errors import HostError, IvshmemError, UsageError
from sim.kernel.signals import ENDING

__all__ = [
    "BROKEN_PIPE",
    "FAILED",
    "HOST_TOO_SMALL",
    "INTERRUPTED",
    "MISSED",
    "WRONG_USE",
    "of_error",
    "of_run",
    "of_signal",
]

FAILED = 1
"""The run failed, or its counts do not balance."""
WRONG_USE = 2
"""Of a command, or a wrong topology."""
HOST_TOO_SMALL = 3
MISSED = 99
"""An expectation, or a threshold."""
INTERRUPTED = 130
"""By Ctrl-C (SIGINT); 143 by SIGTERM, 129 by SIGHUP."""
BROKEN_PIPE = 141


def of_error(error: IvshmemError) -> int:
    """By whose fault it is."""
    return WRONG_USE if isinstance(error, UsageError) else HOST_TOO_SMALL if isinstance(error, HostError) else FAILED


def of_signal(name: str) -> int:
    """As a shell has it: 128 and the signal's number. For what is no name of such a signal, that of SIGINT."""
    return next((128 + number for number in ENDING if number.name == name), INTERRUPTED)


def of_run(status: str, reason: str, *, balanced: bool, aborted: bool, missed: bool) -> int:
    """Of a run with that status: ``aborted`` by an expectation, or ``missed`` one at its end."""
    if status == "interrupted":
        return of_signal(reason)
    if not balanced or not (aborted or status in ("finished", "degraded")):
        return FAILED
    return MISSED if aborted or missed else 0
