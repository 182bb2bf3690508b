"""What happens in a run beside its programs, and what is expected of it: phases, the timeline, expectations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import Meta

from topologies.language.validated import Name, Validated

__all__ = [
    "ACTIONS",
    "COMPARISONS",
    "FAULTS",
    "GARBLES",
    "LIVE_FIGURES",
    "SERVER_ACTIONS",
    "Action",
    "Condition",
    "Expectation",
    "Phase",
]

Do = Literal[
    "join",
    "leave",
    "kill",
    "stall",
    "resume",
    "slow",
    "mask",
    "unmask",
    "reset",
    "unplug",
    "fill",
    "deafen",
    "garble",
    "migrate",
    "stop_server",
    "start_server",
]

ACTIONS: dict[str, tuple[str, frozenset[str]]] = {
    "join": ("A machine that is not there connects, and its program begins.", frozenset()),
    "leave": ("The program ends, the machine disconnects, its process ends.", frozenset()),
    "kill": ("SIGKILL.", frozenset()),
    "stall": ("SIGSTOP: the whole machine stands still.", frozenset()),
    "resume": ("SIGCONT; counters that were filled hold again what they held before.", frozenset()),
    "slow": ("From now on each interrupt is taken so much later; 0 makes it fast again.", frozenset({"delay_us"})),
    "mask": ("The driver masks vectors: doorbells leave them pending.", frozenset({"vectors"})),
    "unmask": ("The driver unmasks vectors: what is pending fires.", frozenset({"vectors"})),
    "reset": ("The device is reset, the driver probes it again, the program begins anew.", frozenset()),
    "unplug": ("The device is unplugged: the machine lives on without it.", frozenset()),
    "fill": ("The machine stands still and its counters are full: whoever rings is refused.", frozenset({"vectors"})),
    "deafen": ("The machine no longer reads what the server says.", frozenset()),
    "garble": ("The server says something malformed to the machine.", frozenset({"message"})),
    "migrate": ("The machine moves to a fresh process.", frozenset({"to_domain", "fault", "hand_over"})),
    "stop_server": ("The server closes all connections and is gone.", frozenset({"domain"})),
    "start_server": ("A new server listens where the old one did; nobody is connected to it.", frozenset({"domain"})),
}
"""What each action does, in a line, and which keys it takes beside those that every one takes."""

SERVER_ACTIONS = frozenset({"stop_server", "start_server"})

GARBLES = ("bad_peer", "left_itself", "left_stranger", "memory_again", "half_message")
"""The malformed messages that ``garble`` can say."""

FAULTS = ("target_dies", "source_dies", "server_gone", "late_memory", "cancel")
"""What can be made to go wrong in a migration."""

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}

LIVE_FIGURES = ("rung", "delivered", "interrupts", "refused", "pending", "coalescing", "up", "died", "elapsed_s")
"""The figures that are known while the run lasts: conditions may use these, and expectations that abort it."""

Seconds = Annotated[float, Meta(ge=0, le=604_800)]
Load = Annotated[float, Meta(ge=0, le=1000)]


class Condition(Validated, frozen=True, kw_only=True):
    """A figure compared to a number: ``delivery.p99_us < 500``.

    ``of`` is whose figure it is: "" for the whole run, a group, a machine, or an edge ``a -> b`` or ``a -> b:2``.
    """

    figure: str
    comparison: Literal["<", "<=", "==", "!=", ">=", ">"]
    bound: float
    of: str = ""

    def holds(self, value: float) -> bool:
        """Whether ``value`` of the figure is as the condition wants it."""
        return COMPARISONS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.figure} {self.comparison} {self.bound:g}" + (f" of {self.of}" if self.of else "")


class Expectation(Validated, frozen=True, kw_only=True):
    """A condition that the run must meet at its end; with ``abort``, one that ends it when it is broken before."""

    that: Condition
    abort: bool = False


class Phase(Validated, frozen=True, kw_only=True):
    """A part of the run. ``load`` is what the programs' rates are multiplied by at its beginning and at its end."""

    name: Name
    duration_s: Annotated[float, Meta(gt=0, le=604_800)]
    load: tuple[Load, Load] = (1.0, 1.0)
    measured: bool = True


class Action(Validated, frozen=True, kw_only=True):
    """Something that happens to machines, or to a server, at a time or when a condition first holds.

    ``at_s`` counts from the start of the programs, warm-up included; ``when`` is asked from then on. With several
    ``machines`` (indices) the next one's turn comes ``every_s`` later. The whole is done ``repeat`` times,
    ``period_s`` apart. ``pick`` chooses so many each time, by the seed, of those that are there (to join: that are
    not). ``line`` is the action's place in the file.
    """

    do: Do
    at_s: Seconds = 0.0
    when: Condition | None = None
    machines: tuple[int, ...] = ()
    pick: Annotated[int, Meta(ge=1)] | None = None
    every_s: Seconds = 0.0
    repeat: Annotated[int, Meta(ge=1, le=100_000)] = 1
    period_s: Seconds = 0.0
    vectors: tuple[int, ...] = ()
    delay_us: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    message: str = GARBLES[0]
    domain: str = ""
    to_domain: str = ""
    hand_over: bool = False
    fault: str = ""
    line: int = 0
