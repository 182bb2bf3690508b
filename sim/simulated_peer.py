"""A simulated machine in this process that runs a program: a device, a driver and a guest, without a worker process.

For tests of other peers. A run (`sim.run`) has machines with processes, CPUs and recordings of their own.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

from nodes.errors import UsageError
from nodes.guest import OTHERS, Guest, Program
from nodes.spelling import did_you_mean
from sim.kernel.loop import Loop
from sim.wire.attachment import GREETING_NS, Attachment


class SimulatedPeer:
    """A machine of `sim.server.Server.machine`.

    Attributes:
        id: its ID.
        statistics: the numbers that its program stores.
        failure: the exception that ended the program, or None.

    Raises:
        UsageError: there is no such program, or it has no such parameter.
    """

    def __init__(self, program: str | Callable[..., Program], parameters: Mapping[str, object]) -> None:
        self._function = _function(program)
        self._parameters = _checked(self._function, parameters)
        self.id = -1
        self.statistics: dict[str, int | float] = {}
        self.failure: Exception | None = None
        self._finished = threading.Event()
        self._running = threading.Event()
        self._attachment: Attachment | None = None

    def attach(self, loop: Loop, path: Path, vectors: int) -> None:
        """Connect to a server; the loop runs the machine from now on."""
        self._attachment = Attachment(loop, path, vectors=vectors, program=self._run, in_background=True)

    def knows(self, peers: Collection[int]) -> bool:
        """Whether the machine knows exactly these peers, with all their vectors; one that has left knows all."""
        known = self._attachment.peers if self._attachment is not None else {}
        return not known or (known.keys() == set(peers) and len(set(known.values())) == 1)

    def wait_until_running(self) -> None:
        """Wait until the program runs.

        Raises:
            UsageError: the server has not greeted the machine.
        """
        if not self._running.wait(GREETING_NS / 1e9):
            assert self._attachment is not None
            raise UsageError(self._attachment.silence)

    @property
    def finished(self) -> bool:
        """Whether the program has returned, failed, or was stopped."""
        return self._finished.is_set()

    def wait_until_finished(self, timeout: float | None = None) -> bool:
        """Wait until the program has ended, at most so many seconds; returns whether it has."""
        return self._finished.wait(timeout)

    def _run(self, guest: Guest) -> Program:
        guest.start_ns = guest.clock()
        self.id, self.statistics = guest.peer, guest.statistics
        others = _Others(guest)
        arguments = {name: others if value is OTHERS else value for name, value in self._parameters.items()}
        self._running.set()
        try:
            yield from self._function(guest, **arguments)
        except Exception as error:  # told by `failure`: the other machines of the server go on
            self.failure = error
        finally:
            self._finished.set()

    def close(self) -> None:
        """Stop the program and leave the server; only in the thread of the loop."""
        if self._attachment is not None:
            self._attachment.close()

    def __repr__(self) -> str:
        return f"<SimulatedPeer {self.id}: {self._function.__name__}>"


class _Others(Sequence[int]):
    """The IDs of the other peers, in ascending order, as they are at the moment of each access."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._generation = -1
        self._peers: list[int] = []

    def _now(self) -> list[int]:
        if self._generation != self._guest.generation:
            self._generation = self._guest.generation
            self._peers = sorted(self._guest.peers.keys() - {self._guest.peer})
        return self._peers

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self._now()[index]

    def __len__(self) -> int:
        return len(self._now())

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._now()))


def _function(program: str | Callable[..., Program]) -> Callable[..., Program]:
    if not isinstance(program, str):
        return program
    from nodes import programs

    if program not in programs.__all__:
        known = f"{', '.join(programs.__all__)}{did_you_mean(program, programs.__all__)}"
        raise UsageError(f"there is no program {program!r}: expected one of {known}")
    function: Callable[..., Program] = getattr(programs, program)
    return function


def _checked(function: Callable[..., Program], parameters: Mapping[str, object]) -> dict[str, object]:
    """All parameters of a program with their values."""
    _guest, *known = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in known]
    if unknown := parameters.keys() - set(names):
        wrong = sorted(unknown)
        expected = f"{', '.join(names) or 'none'}{did_you_mean(wrong[0], names)}"
        raise UsageError(f"{function.__name__} has no parameter {', '.join(wrong)}: expected one of {expected}")
    values = {parameter.name: parameters.get(parameter.name, parameter.default) for parameter in known}
    if missing := [name for name, value in values.items() if value is inspect.Parameter.empty]:
        raise UsageError(f"{function.__name__} needs a value for {', '.join(missing)}")
    return {name: OTHERS if value == OTHERS else value for name, value in values.items()}
