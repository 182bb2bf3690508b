"""A process goes on in a fresh one: forked while it pauses, made ready there, and let go here only then.

That is how a machine moves whose program is a generator. A generator cannot be pickled; it cannot be replayed,
for it reads memory that others write; and to begin it anew is a reboot. fork() copies it as it stands, with all that
it has cached. What may not be copied is what the device holds towards the outside, and that the successor makes
anew: see :func:`fork_successor` for the order in which.

Until the commit the machine is its source's, and nothing has happened; from then on it is its successor's. Its
program runs in one of them only, because it is resumed by nobody in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import socket
from collections.abc import Iterator

from nodes.errors import HostError

__all__ = ["Source", "Successor", "adopting_orphans", "fork_successor", "remap"]

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 1, 36, 37
MAP_FIXED = 0x10
READY, COMMIT = b"r", b"c"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class Source:
    """The side that goes. Either ``commit`` or ``cancel`` ends it."""

    def __init__(self, gate: socket.socket, pid: int) -> None:
        self._gate, self.pid = gate, pid

    def fileno(self) -> int:
        """Readable when the successor is ready, or has died."""
        return self._gate.fileno()

    def await_ready(self, timeout_s: float) -> bool:
        """Whether the successor could take over; if not, ``cancel``, and go on as if nothing had been."""
        self._gate.settimeout(timeout_s)
        with contextlib.suppress(TimeoutError, ConnectionError):
            return self._gate.recv(1) == READY
        return False

    def commit(self) -> bool:
        """Let the successor go on; the caller then exits soon. False: it has died, and the machine is still here."""
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
    """The side that comes: the child, which returns from :func:`fork_successor` with everything its source had."""

    def __init__(self, gate: socket.socket, source: int) -> None:
        self._gate, self._source = gate, source

    def stand_ready(self) -> bool:
        """Say that all is prepared, wait for the commit. False: it will not come, and this process is to exit."""
        with self._gate, contextlib.suppress(ConnectionError):
            self._gate.send(READY, socket.MSG_NOSIGNAL)
            return self._gate.recv(1) == COMMIT
        return False

    def tie_to(self, adopter: int) -> bool:
        """Once the source has ended: die with ``adopter``, the process that adopts orphans. False: it has gone already.

        The order matters: what ends with its parent would end with the source.
        """
        while os.getppid() == self._source:
            with _pidfd(self._source) as ended:
                select.select([ended], [], [])
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        return os.getppid() == adopter


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended: there is nothing left to wait for, and that is readable
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fork_successor() -> Source | Successor:
    """Fork, in a process without threads, between two events of its program.

    What the successor does before it stands ready, in this order:

    1. close its copy of the epoll descriptor, and never unregister: the set behind it is the source's too;
    2. close its copies of the old connection and eventfds (the source's stay open, nobody sees a leave), or keep
       them all, for a hand-over in which no peer notices anything;
    3. make a device, connect it, load the state that the source saved, ``remap`` the memory under the guest's feet;
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


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Be the parent of descendants whose own has ended: their exit can then be waited for (``os.P_PIDFD``)."""
    before = ctypes.c_int()
    _libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def remap(mapping: mmap.mmap, descriptor: int) -> None:
    """Put other shared memory where ``mapping`` is: every view of it that a program has cached shows the new one.

    Raises:
        HostError: the memory behind ``descriptor`` is of another size, or the kernel does not map it.
    """
    size_bytes = len(mapping)
    if (there := os.fstat(descriptor).st_size) < size_bytes:
        raise HostError(f"memory of {there} bytes cannot take the place of {size_bytes} bytes")
    view = ctypes.c_char.from_buffer(mapping)
    address = ctypes.addressof(view)
    del view
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if _libc.mmap(address, size_bytes, protection, mmap.MAP_SHARED | MAP_FIXED, descriptor, 0) != address:
        raise HostError(f"the memory cannot be mapped in the guest's place: {os.strerror(ctypes.get_errno())}")
