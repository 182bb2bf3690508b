"""A worker as its parent holds it: born from the fork server, watched, ended; it may go on in another process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from typing import NamedTuple

from sim.engines.process import main
from sim.engines.process.configuration import WorkerConfiguration
from sim.engines.process.control import Control, Order
from sim.engines.process.fork_server import without_main
from sim.recording import Recording, State, header
from topologies import Machine

__all__ = ["Moving", "Row", "WorkerHandle", "describe_exit"]


class Row(NamedTuple):
    """One device of one life of a machine: what has a recording, and a row of its own in the results."""

    row: int
    name: str
    machine: int
    domain: int


@dataclass
class Moving:
    """A migration under way: to which domain, whether the connection is handed over, what is to go wrong."""

    domain: int
    hand_over: bool
    fault: str
    peer: int | None = None
    """Its ID there, once it has joined."""


class _Successor:
    """The process that a machine moves into: the coordinator's own child once the one before it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)
        self._code: int | None = None

    def exit_code(self) -> int | None:
        """As of a ``multiprocessing.Process``; None while it lives."""
        self._wait(os.WNOHANG)
        return self._code

    def kill(self) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def close(self) -> None:
        """Wait for its end, if it is ours to wait for, and let go of it."""
        if self.descriptor >= 0:
            self._wait(0)
            os.close(self.descriptor)
            self.descriptor = -1

    def _wait(self, options: int) -> None:
        if self._code is None:
            with contextlib.suppress(ChildProcessError):  # it is still its parent's, who waits for it
                ended = os.waitid(os.P_PIDFD, self.descriptor, os.WEXITED | options)
                if ended is not None:
                    self._code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


class WorkerHandle:
    """One life of a machine: its process, its control socket, its recordings. Owns all three."""

    def __init__(self, machine: Machine, plan: WorkerConfiguration, rows: list[Row], books: list[Recording]) -> None:
        self.machine = machine
        self.plan = plan
        self.name = plan.name
        self.rows = rows
        self.books = books
        self.peers: list[int | None] = [None] * len(rows)
        """Its ID in each of its domains, once it has joined there."""
        self.greetings: list[int | None] = [None] * len(rows)
        """How many eventfds it was told of when it joined."""
        self.control, self._theirs = Control.pair()
        self.process: ForkServerProcess | None = None
        self.ready = False
        self.stopped = False
        self.stalled = False
        self.ending: str | None = None
        """What the timeline has done to end it: it is then no accident."""
        self.garbled = False
        """Whether its server has said something malformed to it: it may end because of that."""
        self.failure: str | None = None
        self.exit: str | None = None

        self.moving: Moving | None = None
        """The migration that it is in."""
        self.identities: list[tuple[int, int, int]] = []
        """Every (row, domain, peer) that a server has known it as, migrations included."""
        self.moves: list[tuple[int, int, int, int]] = []
        """Every (row, domain, peer, ns) of those that a migration has given it, and since when."""
        self.unplugged = False
        self._coming: _Successor | None = None
        self._ahead: deque[_Successor] = deque()
        """Those that it has moved on to while the end of the one before is not known yet, the latest last."""
        self._successor: _Successor | None = None

    @property
    def state(self) -> int:
        return self.books[0].words[header.STATE]

    @property
    def lives(self) -> bool:
        return self.process is not None and self.exit is None

    @property
    def pid(self) -> int:
        latest = self._ahead[-1] if self._ahead else self._successor
        if latest is not None:
            return latest.pid
        assert self.process is not None
        assert self.process.pid is not None
        return self.process.pid

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(
            target=main.main, args=(self.plan, self._theirs), name=f"ivsim {self.name}", daemon=True
        )
        with without_main():
            self.process.start()
        self._theirs.close()

    def tell(self, order: Order) -> bool:
        """Send an order; False when it does not arrive."""
        return self.lives and self.control.send(order)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal, if it still lives."""
        if self.lives:
            # As `Process.kill` does; should it have ended this moment, its number is not given to others so soon.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def expect_successor(self, pid: int) -> None:
        """It is about to go on in this process; raises ``ProcessLookupError`` when that has ended already."""
        self._coming = _Successor(pid)

    def arrive(self) -> None:
        """It goes on in the process that was to be its next one."""
        if self._coming is not None:
            self._ahead.append(self._coming)
            self._coming = None

    def lose_successor(self) -> None:
        """It does not go on in the process that was to be its next one; whatever that still waits for, it ends."""
        if self._coming is not None:
            self._coming.kill()
            self._coming.close()
            self._coming = None

    @property
    def sentinel(self) -> int:
        """Readable when the process that it is in has ended."""
        if self._successor is not None:
            return self._successor.descriptor
        assert self.process is not None
        return self.process.sentinel

    @property
    def is_accident(self) -> bool:
        """Whether its end, if it comes, is none that the timeline has brought about."""
        return self.ending is None and not self.garbled

    @property
    def has_ended(self) -> bool:
        """Whether the process that it is in has ended."""
        return self._exit_code() is not None

    def succeed(self) -> bool:
        """Whether its process has ended only because the machine has left it; it is in the next one then."""
        if not self._ahead and self._exit_code() == 0:
            self.arrive()  # the new one has not said a word yet, but the old one has let go
        if not self._ahead:
            return False
        if self._successor is not None:
            self._successor.close()
        self._successor = self._ahead.popleft()
        return True

    def collect_exit(self) -> str:
        """How it has ended, in words; "" when it ended as it should."""
        code = self._exit_code()
        assert code is not None
        self.exit = "" if code == 0 and self.state == State.STOPPED else describe_exit(code)
        return self.exit

    def kill(self) -> None:
        for successor in (self._coming, *self._ahead, self._successor):
            if successor is not None:
                successor.kill()
        if self.lives and self.process is not None:
            self.process.kill()

    def close(self) -> None:
        """End the process if it has not ended, and let go of everything."""
        self.kill()
        self.control.close()
        self._theirs.close()
        if self.process is not None:
            self.process.join()
            self.process.close()
        for successor in (self._coming, *self._ahead, self._successor):
            if successor is not None:
                successor.close()
        for book in self.books:
            book.close()

    def _exit_code(self) -> int | None:
        if self._successor is not None:
            return self._successor.exit_code()
        assert self.process is not None
        self.process.join(0)
        return self.process.exitcode


def describe_exit(code: int) -> str:
    """An exit code in words: "SIGKILL", "exit 1"."""
    if code >= 0:
        return f"exit {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
