"""The phases, timeline entries and expectations of a run."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import Meta

from topologies.actions import Action
from topologies.language.validated import Name, Validated

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}

UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}

Seconds = Annotated[float, Meta(ge=0, le=604_800)]
Load = Annotated[float, Meta(ge=0, le=1000)]


class Condition(Validated, frozen=True, kw_only=True):
    """A metric compared to a number: ``delivery.p99_us < 500``.

    ``of`` is what has the metric: "" for the whole run, a group, a machine, a vector ``b:2``,
    or an edge ``a -> b`` or ``a -> b:2``.
    """

    metric: str
    comparison: Literal["<", "<=", "==", "!=", ">=", ">"]
    bound: float
    of: str = ""

    def holds(self, value: float) -> bool:
        """Whether ``value`` of the metric meets the condition."""
        return COMPARISONS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.bound:g}" + (f" of {self.of}" if self.of else "")


class Expectation(Validated, frozen=True, kw_only=True):
    """A condition that the run must meet at its end; with ``abort``, the run ends as soon as it is broken.

    ``console`` is the regular expression that the metric ``console_lines`` counts the lines of.

    Where there is nothing to judge (no doorbell was rung, no machine was ready, none migrated), it is not met, except
    with ``allow_empty``.
    """

    that: Condition
    console: str = ""
    abort: bool = False
    allow_empty: bool = False


class Invariant(Validated, frozen=True, kw_only=True):
    """A function that `ivsim explore` calls: ``package.module:function`` or ``/path/to/file.py:function``.

    It gets the `sim.explore.RunState`. It is a safety invariant: the function returns True after every event. With
    ``within_ms`` it is a liveness invariant: a result that is not True changes within that time.
    """

    that: str
    within_ms: Annotated[float, Meta(gt=0, le=604_800_000)] | None = None

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.that.rpartition(":")[2]


class Phase(Validated, frozen=True, kw_only=True):
    """A part of the run. ``load`` are the factors of the programs' rates at its beginning and at its end."""

    name: Name
    duration_s: Annotated[float, Meta(gt=0, le=604_800)]
    load: tuple[Load, Load] = (1.0, 1.0)
    measured: bool = True


class TimelineEntry(Validated, frozen=True, kw_only=True):
    """An action, when it is done and to which machines.

    ``at_s`` counts from the start of the programs, warm-up included; with ``when``, the entry waits from then on until
    the condition holds; with ``console``, until a line on the console of a guest contains the regular expression.
    ``machines`` are indices, and empty for an action on a server; each machine's turn comes
    ``every_s`` after the one before. The whole is done ``repeat`` times, ``period_s`` apart. ``pick`` draws that many
    machines each time, by the seed, from those that are present (for ``join``: absent). ``line`` is the entry's line in
    the file. ``place`` is its place there, by which its draws are made, where that is not its place in the timeline.
    """

    action: Action
    at_s: Seconds = 0.0
    when: Condition | None = None
    console: str = ""
    machines: tuple[int, ...] = ()
    pick: Annotated[int, Meta(ge=1)] | None = None
    every_s: Seconds = 0.0
    repeat: Annotated[int, Meta(ge=1, le=100_000)] = 1
    period_s: Seconds = 0.0
    line: int = 0
    place: int | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits for something, and not only for its time."""
        return self.when is not None or bool(self.console)
