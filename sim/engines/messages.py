"""The messages of every engine: orders from the coordinator to a machine, and reports from a machine.

An engine carries them as it likes: the process engine as frames on a control socket, an engine of one thread as
calls. Times are nanoseconds of the engine's clock.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Expect(msgspec.Struct, tag=True, frozen=True):
    """Order, once a server has admitted the machine: for each device, how many eventfds the greeting contains."""

    eventfds: tuple[int, ...]


class PeerIds(msgspec.Struct, tag=True, frozen=True):
    """Order: these machines (by index) now have these IDs, in the first domain that both are in.

    ``anew``: IDs that were told before are no longer valid. ``foreign`` are peers in its first domain that are no
    machines of the topology: by ID, whether it is there.
    """

    peers: dict[int, int]
    anew: bool = False
    foreign: dict[int, bool] = {}


class Start(msgspec.Struct, tag=True, frozen=True):
    """Order: begin the program at ``start_ns``; at ``stop_ns`` do what Stop says without waiting for it.

    ``joined_ns`` is when a machine joined that was absent at ``start_ns``, 0 for the others.
    """

    start_ns: int
    stop_ns: int
    joined_ns: int = 0


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Order: end the program, leave pending doorbells in their counters, report Stopped, end."""


class Leave(msgspec.Struct, tag=True, frozen=True):
    """Order: end the program, disconnect, report Stopped, end.

    A machine with a guest of its own loses its devices, and reports Departed or Remained.
    """


class Act(msgspec.Struct, tag=True, frozen=True):
    """Order: carry out an action of the timeline that needs nothing of the coordinator.

    ``do`` and ``arguments`` are the name and the own keys of a `topologies.actions.WorkerAction`. The message is not
    that struct, because the language behind it would cost each worker memory.
    """

    do: str
    arguments: dict[str, Any]


class Ping(msgspec.Struct, tag=True, frozen=True):
    """Order: store the counts and this number in the recordings, as a sign of life."""

    number: int


class Migrate(msgspec.Struct, tag=True, frozen=True):
    """Order: continue elsewhere, with a device in the domain of that number.

    ``hand_over``: the connection goes along, and with it the ID. ``fault`` is what is to go wrong
    (`topologies.actions.Fault`).
    """

    domain: int
    hand_over: bool
    fault: str = ""


class Placed(msgspec.Struct, tag=True, frozen=True):
    """Report of the engine: the machine now runs where ``LiveMachine.pid`` says, at its start and after a migration."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Report: the machine is connected to all that it expects, and waits for Start."""


class Stopped(msgspec.Struct, tag=True, frozen=True):
    """Report: the machine rings and drains no more and its counts are final; ``statistics`` are its program's own."""

    statistics: dict[str, int | float] = {}


class Departed(msgspec.Struct, tag=True, frozen=True):
    """Report: the machine has left as ordered, its counts are final, and it runs on without a device until Stop."""


class Remained(msgspec.Struct, tag=True, frozen=True):
    """Report: the machine has not left as ordered, and is what it was before."""

    reason: str


class Stayed(msgspec.Struct, tag=True, frozen=True):
    """Report: a migration has failed and the machine continues where it was, after a pause of ``paused_ns``."""

    reason: str
    paused_ns: int


class Moved(msgspec.Struct, tag=True, frozen=True):
    """Report: a migration is complete; ``downtime_ns`` from the pause of the program to its continuation.

    ``peer`` is its ID now; None for that under which it has joined meanwhile.
    """

    peer: int | None
    downtime_ns: int
    state_bytes: int
    memory_bytes: int
    pending_vectors: int


class Warned(msgspec.Struct, tag=True, frozen=True):
    """Report: what a real device would print on stderr, or what the machine's engine has noticed."""

    text: str


class Printed(msgspec.Struct, tag=True, frozen=True):
    """Report of the engine: a line on the guest's console contains this regular expression, for the first time."""

    pattern: str


class Failed(msgspec.Struct, tag=True, frozen=True):
    """Report: the machine cannot continue.

    ``at_fault`` is the part at fault: "program", "modelled device", "QEMU", "server", "host" or "simulator".
    """

    at_fault: str
    summary: str
    traceback: str = ""


class Ended(msgspec.Struct, tag=True, frozen=True):
    """Report of the engine, always the last one: the machine is gone.

    ``how`` is "" when it ended as ordered with final counts, otherwise a signal's name, "exit 1", or "ended by the run"
    after a failure that its engine saw. ``started`` is False when it never began to run; ``how`` then says why.
    """

    how: str
    started: bool = True


Order = Expect | PeerIds | Start | Stop | Leave | Act | Ping | Migrate
Report = Placed | Ready | Stopped | Departed | Remained | Stayed | Moved | Warned | Printed | Failed | Ended
