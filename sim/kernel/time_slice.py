"""A short time slice for a thread that wakes many others: the only module that calls ``sched_setattr``.

A process that is woken by a message may get the CPU of the thread that still sends: it reads one message, sleeps again,
and is woken by the next one. Since Linux 6.12 a thread can ask for a shorter time slice (sched_setattr(2),
``sched_runtime``): its turn comes and ends sooner, its share of the CPU stays the same. Earlier kernels ignore it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time

from sim.kernel.loop import Loop

SHORT_NS = 100_000
"""The least that the kernel grants."""

# The system calls: the C library has functions for them since glibc 2.41.
_SET, _GET = {"x86_64": (314, 315)}.get(os.uname().machine, (274, 275))  # the others have the generic table
# struct sched_attr in its first version: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
_POLICY, _RUNTIME = 1, 5
_FAIR = (os.SCHED_OTHER, os.SCHED_BATCH)

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_long, ctypes.c_long)


def _attributes(thread: int) -> list[int] | None:
    """How a thread is scheduled; None where the kernel does not tell."""
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    return list(_ATTRIBUTES.unpack(buffer)) if _syscall(_GET, thread, buffer, _ATTRIBUTES.size, 0) == 0 else None


def _set(thread: int, attributes: list[int]) -> bool:
    return bool(_syscall(_SET, thread, _ATTRIBUTES.pack(*attributes), 0, 0) == 0)


def time_slice_ns() -> int:
    """The time slice of this thread; 0 where the kernel does not tell."""
    attributes = _attributes(0)
    return 0 if attributes is None else attributes[_RUNTIME]


class ShortTimeSlice:
    """A time slice of ``SHORT_NS`` for the thread that runs a loop, at most until the end of a turn of that loop.

    A thread with a real-time policy keeps its own. A wish costs some 7 us.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._before: list[int] | None = None
        self._thread = 0
        self._wishes = 0

    def begin(self) -> None:
        """Ask for it until the end of this turn of the loop. To ask again renews it, before many more are woken."""
        self._wishes += 1
        if self._wishes == 1:
            self._loop.at(time.monotonic_ns(), self.end)
            self._thread = threading.get_native_id()
            before = _attributes(self._thread)
            self._before = before if before is not None and before[_POLICY] in _FAIR else None
        if self._before is not None:
            short = self._before.copy()
            short[_RUNTIME] = SHORT_NS + self._wishes % 2  # the kernel ignores a wish that changes nothing
            _set(self._thread, short)

    def end(self) -> None:
        self._wishes = 0
        if self._before is not None:
            _set(self._thread, self._before)
            self._before = None
