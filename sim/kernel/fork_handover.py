"""A process continues in a new one: forked while it pauses, prepared there, and released here only then.

A machine whose program is a generator migrates in this way. A generator cannot be pickled. It cannot be replayed,
because it reads memory that others write. To begin it again would be a reboot. fork() copies it in its present state,
with all that it has cached. Connections, eventfds and mappings of the device must not be copied; the successor makes
them anew, in the order that :func:`fork_successor` gives.

Until the commit the machine belongs to the source, unchanged; from then on it belongs to the successor. Its program
runs in one of the two only, because it is not resumed in between.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable

from nodes.errors import HostError
from sim.kernel.memory import map_in_place
from sim.kernel.processes import tie_to

READY, COMMIT = b"r", b"c"
LOOK_S = 1.0


class Source:
    """The process that the machine leaves. Either ``commit`` or ``cancel`` ends this object."""

    def __init__(self, gate: socket.socket, pid: int) -> None:
        self._gate, self.pid = gate, pid
        self.is_over = False
        """Whether the successor has ended before it was ready."""

    def fileno(self) -> int:
        """Readable when the successor is ready, or has died."""
        return self._gate.fileno()

    def await_ready(self, timeout_s: float, progress: Callable[[], int] = lambda: 0) -> bool:
        """Whether the successor can take over; if not, the caller cancels and continues.

        The timeout begins anew whenever ``progress()`` gives another number.
        """
        self._gate.settimeout(min(timeout_s, LOOK_S))
        seen, since_s = progress(), time.monotonic()
        while time.monotonic() - since_s < timeout_s:
            try:
                said = self._gate.recv(1)
                self.is_over = said != READY
                return not self.is_over
            except TimeoutError:
                if (now := progress()) != seen:
                    seen, since_s = now, time.monotonic()
            except ConnectionError:
                self.is_over = True
                return False
        return False

    def commit(self) -> bool:
        """Let the successor continue; the caller then exits soon. False: it has died, and the machine is still here."""
        with contextlib.suppress(ConnectionError):
            self._gate.send(COMMIT, socket.MSG_NOSIGNAL)
            self._gate.close()
            return True
        return False

    def cancel(self) -> None:
        """End the successor, and wait until it has ended."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._gate.close()


class Successor:
    """The new process: the child, which returns from :func:`fork_successor` with a copy of all that its source had."""

    def __init__(self, gate: socket.socket, source: int) -> None:
        self._gate, self._source = gate, source

    def stand_ready(self) -> bool:
        """Report that all is prepared and wait for the commit. False: it will not come, and the caller exits."""
        with self._gate, contextlib.suppress(ConnectionError):
            self._gate.send(READY, socket.MSG_NOSIGNAL)
            return self._gate.recv(1) == COMMIT
        return False

    def tie_to(self, adopter: int) -> bool:
        """Once the source has ended: end with ``adopter``, the process that adopts orphans. False: it has ended."""
        return tie_to(self._source, adopter)


def fork_successor() -> Source | Successor:
    """Fork, in a process without threads, between two events of its program.

    What the successor does before it stands ready, in this order:

    1. close its copy of the epoll descriptor, and never unregister: the set behind it is the source's too;
    2. close its copies of the old connection and eventfds (the source's stay open, so no peer sees a leave), or
       keep them all, for a hand-over that no peer notices;
    3. make a device, connect it, load the state that the source saved, ``remap`` the guest's memory in place;
    4. make epoll, alarm, wake-up pipe and recording anew: timers are not inherited, and a recording has one writer.

    The control socket to the coordinator is inherited, and the source no longer uses it after its commit.
    """
    near, far = socket.socketpair()
    source = os.getpid()
    pid = os.fork()
    if pid == 0:
        near.close()
        return Successor(far, source)
    far.close()
    return Source(near, pid)


def remap(memory: memoryview, descriptor: int) -> None:
    """Replace the mapping behind ``memory``: every view of it that a program has cached shows the new one.

    Raises:
        HostError: ``memory`` is no mapping, the other is of another size, or the kernel does not map it.
    """
    mapping = memory.obj
    if not isinstance(mapping, mmap.mmap):
        raise HostError("this machine's memory is not one that can be moved")
    size_bytes = len(mapping)
    if (there := os.fstat(descriptor).st_size) < size_bytes:
        raise HostError(f"memory of {there} bytes cannot take the place of {size_bytes} bytes")
    try:
        map_in_place(mapping, descriptor)
    except OSError as error:
        raise HostError(f"the memory cannot be mapped in the guest's place: {error.strerror}") from error
