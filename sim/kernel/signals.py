"""The signals that end a program: noted, ignored, or held back from helper processes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | None
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _is_main_thread() -> bool:
    # Not sooner: a process that is forked with this module loaded repairs its locks, and writes pages for it.
    import threading

    return threading.current_thread() is threading.main_thread()


def signals_taken() -> list[signal.Signals]:
    """The signals that end this program: all but SIGHUP when it is ignored, which is what nohup(1) asks for."""
    return [number for number in ENDING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def interrupts_raise() -> None:
    """From now on, SIGINT raises ``KeyboardInterrupt`` where it ends the process; where it is ignored, it stays so."""
    if _is_main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def signals_noted() -> Iterator[Callable[[], str]]:
    """Note the first signal that ends a program; the function returns its name, "" before. A second one interrupts.

    Outside the main thread, where no handler can be set, nothing is noted.
    """
    noted: list[str] = []

    def note(number: int, _frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(signal.Signals(number).name)

    if not _is_main_thread():
        yield lambda: ""
        return
    previous = {number: signal.signal(number, note) for number in signals_taken()}
    try:
        yield lambda: noted[0] if noted else ""
    finally:
        restore_handlers(previous)


def restore_handlers(previous: Mapping[signal.Signals, Handler]) -> None:
    """Set these handlers again.

    A signal that comes between Python's note of it and the change of its handler to SIG_DFL or SIG_IGN would be printed
    with a traceback ("ignored due to race condition"), so all are blocked meanwhile and delivered afterwards.
    """
    with signals_held():
        for number, handler in previous.items():
            signal.signal(number, handler)


def signals_too_late() -> None:
    """Ignore the signals that end a program, which ends by itself: they change nothing about how."""
    with signals_held():
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Block the signals that end a program while a helper process is started, which then never gets them.

    A terminal or a supervisor sends them to the whole group. What is blocked when a program is started stays blocked in
    it. A signal that comes meanwhile is delivered here afterwards. To ignore the signals instead would lose it: a
    library's thread that does not block it takes it and, as it is ignored then, drops it.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
