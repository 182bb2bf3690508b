"""Keeps a worker of a cluster: starts it again when it was killed or lost its scheduler, and ends what it left.

The worker is a child, so that it can be killed without anything being left: its jobs end with it (PR_SET_PDEATHSIG),
and become children of the supervisor. The directory for jobs has the supervisor as its owner; should that be killed,
the worker removes the directory, and if both are, the next run or `ivsim clean` does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nodes.errors import HostError
from sim.host.runtime_directory import runtime_directory
from sim.kernel.processes import children, describe_exit, end_children, end_with_parent, keep_orphans
from sim.kernel.signals import restore_handlers, signals_taken

FAILED = 1
JOB_PATIENCE_S = 15.0
PAUSE_S = 1.0


def keep_worker(serve: Callable[[Path], bool], tell: Callable[[str], object]) -> None:
    """Keep a worker until a signal comes.

    Args:
        serve: is called in a child with a directory for jobs; returns whether a signal ended it.
        tell: gets a line when the worker is started again.

    Raises:
        HostError: the first worker could not be started.
    """
    keep_orphans()
    has_served = False
    with runtime_directory(Path(tempfile.gettempdir())) as scratch, _Signals() as signals:
        while not signals.ended:
            child = _fork(serve, scratch)
            signals.child = child
            signals.repeat()
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            signals.child = 0
            _clean(scratch)
            if code == FAILED and not has_served:
                raise HostError("no worker: the reason is in the line above")
            has_served |= code == 0
            if not signals.ended:
                why = "it has lost its scheduler" if code == 0 else describe_exit(code)
                tell(f"the worker has ended ({why}); starting another one")
                signals.sleep(PAUSE_S)


def _fork(serve: Callable[[Path], bool], scratch: Path) -> int:
    parent = os.getpid()
    if child := os.fork():
        return child
    code = FAILED
    try:
        end_with_parent(signal.SIGTERM)
        for number in signals_taken():
            signal.signal(number, signal.SIG_DFL)
        if os.getppid() == parent:
            serve(scratch)
            code = 0
    except Exception as error:  # this process must not return into the parent's code
        with contextlib.suppress(OSError):
            os.write(2, f"ivsim: {error}\n".encode(errors="replace"))
    finally:
        if os.getppid() != parent:
            shutil.rmtree(scratch, ignore_errors=True)
        os._exit(code)


def _clean(scratch: Path) -> None:
    """Wait for jobs that end by themselves, kill those that do not, and remove their directories."""
    deadline_s = time.monotonic() + JOB_PATIENCE_S
    while children() and time.monotonic() < deadline_s:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)
    end_children()
    for entry in scratch.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)


class _Signals:
    """While this lasts, signals that end a program end the child, and are noted."""

    def __init__(self) -> None:
        self.ended = False
        self.child = 0

    def __enter__(self) -> _Signals:
        self._previous = {number: signal.signal(number, self._arrived) for number in signals_taken()}
        return self

    def __exit__(self, *_: object) -> None:
        restore_handlers(self._previous)

    def _arrived(self, _number: int, _frame: object) -> None:
        self.ended = True
        self.repeat()

    def repeat(self) -> None:
        """End the child, if there is one and a signal has come: it may have come before the child was known."""
        if self.ended and self.child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGTERM)

    def sleep(self, time_s: float) -> None:
        """Sleep; a signal ends it within 50 ms."""
        deadline_s = time.monotonic() + time_s
        while not self.ended and time.monotonic() < deadline_s:
            time.sleep(0.05)
