"""The signals by which somebody ends a program, and who listens to them: the coordinator, nobody else."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["ENDING", "signals_ignored"]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore them for as long as it takes to start a helper process, which then ignores them for ever.

    A terminal or a supervisor sends them to the whole group; what is ignored when a program is started stays
    ignored. Only the main thread can do this; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # One that comes meanwhile waits until somebody takes it: blocked signals stay pending, ignored ones do not.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
