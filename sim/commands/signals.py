"""Signals on a loop: a command that is to end wakes up, and ends where it can."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterable, Iterator

from sim.kernel.loop import Loop
from sim.kernel.signals import ENDING

__all__ = ["ended_by_signal"]


@contextlib.contextmanager
def ended_by_signal(loop: Loop, numbers: Iterable[signal.Signals] = ENDING) -> Iterator[Callable[[], bool]]:
    """Until one of these signals comes (those that end a program): then the loop wakes up, and the function says True.

    Within the block they do nothing else.
    """
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    read_end, write_end = socket.socketpair()
    with read_end, write_end:
        write_end.setblocking(False)
        previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        previous_fd = signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
        loop.add(read_end, end)
        try:
            yield lambda: ended
        finally:
            loop.remove(read_end)
            signal.set_wakeup_fd(previous_fd)
            for number, handler in previous.items():
                signal.signal(number, handler)
