"""A small event loop: descriptors that become readable or writable, moments in time, signals that wake it up."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from sim.kernel.signals import restore_handlers, signals_taken, signals_too_late

EVENTS_MAX = 256


class MonotonicClock:
    """CLOCK_MONOTONIC, which all processes of a host share, and the CPU clock of the calling thread."""

    now_ns = staticmethod(time.monotonic_ns)
    cpu_ns = staticmethod(time.thread_time_ns)


class HasDescriptor(Protocol):
    """Anything with a descriptor, such as a socket or a channel."""

    def fileno(self) -> int: ...


class _Watched(NamedTuple):
    readable: Callable[[], None]
    writable: Callable[[], None] | None


class Loop:
    """Calls back, one thing at a time. It closes no descriptor: the owner removes one, then closes it."""

    def __init__(self) -> None:
        self.clock = MonotonicClock()
        self._epoll = select.epoll()
        self._watched: dict[int, _Watched] = {}
        self._moments: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(
        self, file: HasDescriptor | int, readable: Callable[[], None], *, writable: Callable[[], None] | None = None
    ) -> None:
        """Call ``readable`` whenever ``file`` is, or has ended; ``writable``, if given, whenever it is that.

        Adding a file again replaces what it was added with.
        """
        descriptor = _number(file)
        events = select.EPOLLIN | (select.EPOLLOUT if writable else 0)
        if descriptor in self._watched:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._watched[descriptor] = _Watched(readable, writable)

    def remove(self, file: HasDescriptor | int) -> None:
        """Forget ``file``; one that is not watched is no error."""
        descriptor = _number(file)
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def at(self, moment_ns: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, at a time of CLOCK_MONOTONIC."""
        heapq.heappush(self._moments, (moment_ns, next(self._order), callback))

    def after(self, delay_ns: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, after that time; with 0 in this step or the next one."""
        self.at(self.clock.now_ns() + delay_ns, callback)

    def step(self, deadline_ns: int | None = None) -> None:
        """Wait for a descriptor or a moment, at most until ``deadline_ns``, and call back."""
        if self._moments and (deadline_ns is None or self._moments[0][0] < deadline_ns):
            deadline_ns = self._moments[0][0]
        timeout_s = -1.0 if deadline_ns is None else max(0, deadline_ns - self.clock.now_ns()) / 1e9
        happened = [(self._watched[at], at, events) for at, events in self._epoll.poll(timeout_s, EVENTS_MAX)]
        for watched, descriptor, events in happened:
            # An earlier callback may have removed this file, or its number may belong to another one now.
            if watched.writable is not None and events & select.EPOLLOUT and self._is_current(descriptor, watched):
                watched.writable()
            if events & ~select.EPOLLOUT and self._is_current(descriptor, watched):
                watched.readable()
        now_ns = self.clock.now_ns()
        due = []
        while self._moments and self._moments[0][0] <= now_ns:
            due.append(heapq.heappop(self._moments)[2])
        # Moments that these callbacks add wait for the next step, so that descriptors get their turn.
        for callback in due:
            callback()

    def fileno(self) -> int:
        """A descriptor that is readable when `step` would call back for a file: another loop can wait for it."""
        return self._epoll.fileno()

    @property
    def next_ns(self) -> int | None:
        """The earliest moment at which `step` has something to call; None when there is none."""
        return self._moments[0][0] if self._moments else None

    def close(self) -> None:
        self._epoll.close()
        self._watched.clear()
        self._moments.clear()

    def _is_current(self, descriptor: int, watched: _Watched) -> bool:
        return self._watched.get(descriptor) is watched


def _number(file: HasDescriptor | int) -> int:
    return file if isinstance(file, int) else file.fileno()


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
