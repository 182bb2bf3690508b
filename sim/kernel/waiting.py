"""Waits for one descriptor of any number: select() takes none above 1023, and epoll only whole milliseconds.

`Patience` is a limit of time for an event that may not come.
"""

from __future__ import annotations

import ctypes
import select
import time
from collections.abc import Callable

SECOND_NS = 1_000_000_000

_ppoll = ctypes.CDLL(None, use_errno=True).ppoll
_ppoll.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p]


class _PollDescriptor(ctypes.Structure):
    """struct pollfd, poll(2)."""

    _fields_ = (("descriptor", ctypes.c_int), ("events", ctypes.c_short), ("happened", ctypes.c_short))


class _Time(ctypes.Structure):
    """struct timespec, ppoll(2)."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


# One of each, as no two threads of a process wait so; making them takes longer than the call.
_descriptor, _time = _PollDescriptor(events=select.POLLIN), _Time()
_at_descriptor, _at_time = ctypes.addressof(_descriptor), ctypes.addressof(_time)


def readable_within_ns(descriptor: int, timeout_ns: int) -> bool:
    """Wait up to ``timeout_ns``, to the resolution of the kernel's timers; a signal may end the wait sooner (ppoll(2)).

    For the one thread of a process that waits in this way.
    """
    _descriptor.descriptor = descriptor
    _time.seconds, _time.nanoseconds = divmod(timeout_ns, SECOND_NS)
    return bool(_ppoll(_at_descriptor, 1, _at_time, None))


def readable_within(descriptor: int, timeout_s: float | None) -> bool:
    """Wait up to ``timeout_s``, or without a bound, to whole milliseconds."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0, round(timeout_s * 1000))))


class Patience:
    """A time to wait, of which a stop of this process (SIGSTOP) takes at most ``look_s``.

    Args:
        patience_s: how long.
        look_s: `is_over` is asked more often than this while the process runs.
    """

    def __init__(self, patience_s: float, look_s: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._left_s, self._look_s, self._clock = patience_s, look_s, clock
        self._last_s = clock()

    def is_over(self) -> bool:
        """Whether the time is over; what passes between two calls counts up to ``look_s``."""
        now_s = self._clock()
        self._left_s -= min(now_s - self._last_s, self._look_s)
        self._last_s = now_s
        return self._left_s <= 0
