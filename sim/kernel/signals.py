"""The signals by which somebody ends a program, and who listens to them: the coordinator, nobody else."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["ENDING", "signals_held"]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold them back for as long as it takes to start a helper process, which then never sees them.

    A terminal or a supervisor sends them to the whole group; what is blocked when a program is started stays blocked in
    it. Here, one that comes meanwhile is delivered afterwards. Ignoring them instead would lose it: a thread of some
    library that does not block it takes it, and by what is then in force, it is nothing.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
