"""A loop that is woken up by the signals that end a program."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterable, Iterator

from sim.kernel.loop import Loop
from sim.kernel.signals import restore_handlers, signals_taken, signals_too_late


@contextlib.contextmanager
def ended_by_signal(loop: Loop, numbers: Iterable[signal.Signals] = ()) -> Iterator[Callable[[], bool]]:
    """Wake up the loop when one of these signals comes; the function then returns True.

    Without ``numbers`` it takes the signals that end a program, and the end of the block is the end of the program: a
    further signal does not interrupt the clean-up. With ``numbers``, the handlers from before are restored.
    """
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    read_end, write_end = socket.socketpair()
    with read_end, write_end:
        write_end.setblocking(False)
        previous = {number: signal.signal(number, lambda *_: None) for number in numbers or signals_taken()}
        previous_fd = signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
        loop.add(read_end, end)
        try:
            yield lambda: ended
        finally:
            loop.remove(read_end)
            signal.set_wakeup_fd(previous_fd)
            if numbers:
                restore_handlers(previous)
            else:
                signals_too_late()
