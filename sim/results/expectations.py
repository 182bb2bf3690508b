"""Whether a run showed what was expected of it: a verdict for each expectation, from the tables of the finished run.

An expectation whose metric is not known is not met, and the verdict says why. Counts are those of the whole run,
latencies leave the warm-up out. Memory (the most of each machine), CPU time and ``guest.statistics`` are sums. All
incarnations of a machine are one machine.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nodes.errors import UsageError
from sim.results import Run
from sim.results.analysis.balance import COUNTED
from sim.results.analysis.latency.latencies import Samples
from sim.results.arrays import Integers, Mask
from sim.results.counts import Counts, Scope, Scopes, UnknownMetricError, counted_value
from sim.results.store import files
from sim.results.store.manifest import MachineRow
from sim.results.summary import ExpectationVerdict, GroupFigures, MigrationOutcome, value_at
from topologies import Expectation, Topology
from topologies.language.values import MisfitError
from topologies.metrics import LATENCIES, Metric, find_metric
from topologies.ringing_check import open_loops, unreachable
from topologies.schedule import UNITS_NS

BROKEN = "aborted"
"""The event of an expectation that ended the run: ``expected`` (the condition as text) and ``got``."""
STATISTICS = "statistics"
JOINED, LEFT, DIED = "machine_joined", "machine_left", "machine_died"

MEBIBYTE = 1 << 20


def evaluate(topology: Topology, run: Run) -> list[ExpectationVerdict]:
    """A verdict for each expectation of ``topology``, in order."""
    if not topology.expectations:
        return []
    finished = _Finished(topology, run)
    return [finished.verdict(expectation) for expectation in topology.expectations]


def measure(topology: Topology, run: Run, expectation: Expectation) -> tuple[float, str]:
    """As `_Finished.measure`."""
    return _Finished(topology, run).measure(expectation)


def make_verdict(expectation: Expectation, got: float | None, why: str, *, met: bool = False) -> ExpectationVerdict:
    """The verdict on an expectation whose metric is ``got``."""
    condition = expectation.that
    expected = f"{condition.comparison} {condition.bound:.15g}"
    return ExpectationVerdict(condition.metric, condition.of, expected, got, met, why)


def silent_loads(topology: Topology, run: Run) -> list[str]:
    """A sentence for each group whose program rings at given times and rang nothing in the whole run."""
    if not run.figures.elapsed_s:
        return []
    reasons = {sender.machines[0]: sender.reason for sender in unreachable(topology)}
    found = []
    for group, machines in open_loops(topology).items():
        if not run.figures.groups[group].sent:
            reason = next((reasons[machine.name] for machine in machines if machine.name in reasons), "")
            found.append(f"{group} rang nothing, although its load is an open loop" + (f": {reason}" if reason else ""))
    return found


def _metric(name: str) -> Metric:
    try:
        return find_metric(name)
    except MisfitError as error:
        hint = f"; {error.hint}" if error.hint else ""
        raise UsageError(f"there is no metric {name!r}: expected {error.expected}{hint}") from None


class _Finished:
    """The metrics of a finished run, whose tables have a row for each device of each incarnation of a machine."""

    def __init__(self, topology: Topology, run: Run) -> None:
        self._topology, self._run = topology, run
        self._scopes = Scopes((machine.name, machine.group) for machine in topology.machines)
        # Metrics that are computed; all others are read from the summary.
        self._computed: dict[str, Callable[[Scope], float]] = {
            **{name: functools.partial(self._count, name) for name in (*COUNTED, "coalescing", "lost")},
            "console_lines": lambda scope: self._console_lines("", scope),
            "died": lambda scope: float(len(self._deaths(scope))),
            "up": self._up,
            "doorbells_per_s": self._doorbells_per_s,
            "ready_s": self._ready_s,
            "uss_mib": lambda scope: self._most(("uss_bytes",), "machine", scope) / MEBIBYTE,
            "rss_mib": lambda scope: self._most(("rss_bytes",), "machine", scope) / MEBIBYTE,
            "migrated": functools.partial(self._migrations, "moved"),
            "migrations_refused": functools.partial(self._migrations, "refused"),
            "migrations_failed": functools.partial(self._migrations, "failed"),
            "downtime_ms": self._downtime_ms,
            "cpu_s": lambda scope: self._most(("cpu_user_s", "cpu_system_s"), "incarnation", scope),
        }

    @functools.cached_property
    def _machine_of(self) -> Integers:
        """The machine of each row of the tables; the last entry, for row -1, is -1."""
        rows = self._run.origin.machines
        return np.array([row.index if row.of is None else row.of for row in rows] + [-1], np.int64)

    def _machines(self, rows: npt.NDArray[np.integer[Any]]) -> Integers:
        """The machines of rows, -1 for rows of no machine."""
        numbers = rows.astype(np.int64)
        most = int(numbers.max(initial=-1))
        if most >= len(self._machine_of) - 1:
            raise UsageError(f"a table names machine {most}, the manifest has {len(self._machine_of) - 1}")
        return self._machine_of[np.maximum(numbers, -1)]

    @functools.cached_property
    def _by_name(self) -> dict[str, int]:
        """The machine of each name in events and deaths, those of further incarnations and devices included."""
        names = {row.name: int(self._machine_of[row.index]) for row in self._run.origin.machines}
        return names | {machine.name: machine.index for machine in self._topology.machines}

    def verdict(self, expectation: Expectation) -> ExpectationVerdict:
        """The verdict; an expectation that was broken during the run stays unmet."""
        condition = expectation.that
        got, met, why = None, False, ""
        try:
            broken_by = self._broken().get(str(condition)) if expectation.abort else None
            if broken_by is not None:
                return make_verdict(expectation, broken_by, "it ended the run")
            value, why = self.measure(expectation)
            # To 15 digits, as people write numbers: 0.7500000000000001 is 0.75.
            got = float(f"{value:.15g}")
            if not math.isfinite(got):
                got, why = None, "it is no finite number"
            elif not why:
                met = condition.holds(got)
                why = f"lines with {expectation.console!r}" if expectation.console else ""
        except (UnknownMetricError, UsageError) as error:
            why = str(error)
        return make_verdict(expectation, got, why, met=met)

    def measure(self, expectation: Expectation) -> tuple[float, str]:
        """The value of the metric that an expectation names, and why a value of 0 says nothing ("": it says something).

        Raises:
            UnknownMetricError: it is not known.
            UsageError: what has the metric is not in the topology, or a table is missing.
        """
        metric, scope = _metric(expectation.that.metric), self._scopes[expectation.that.of]
        pattern = expectation.console
        value = self._console_lines(pattern, scope) if pattern else self._value(metric, scope)
        return value, "" if value or expectation.allow_empty else self._nothing(metric, scope)

    def _console_lines(self, pattern: str, scope: Scope) -> float:
        """How many lines contain ``pattern``, on the consoles of all incarnations of the machines."""
        contains = re.compile(pattern).search
        count = 0
        for name, machine in self._by_name.items():
            if scope.whole or machine in scope.machines:
                with contextlib.suppress(OSError):
                    text = files.console(self._run.path, name).read_text(errors="replace")
                    count += sum(contains(line) is not None for line in text.splitlines())
        return float(count)

    def _nothing(self, metric: Metric, scope: Scope) -> str:
        """Why a value of 0 says nothing; "" when it does."""
        match metric.needs:
            case "rung" if not self._count("rung", scope):
                return "nothing to judge: no doorbell was rung"
            case "sent" if not (self._count("rung", scope) if scope.whole else self._group(scope).sent):
                return "nothing to judge: no doorbell was rung"
            case "machines" if not self._present(scope, ever=True):
                return "nothing to judge: no machine was ready"
            case "migrations" if not any(self._of_migrations(scope)):
                return "nothing to judge: no machine was to migrate"
        return ""

    def _value(self, metric: Metric, scope: Scope) -> float:
        if metric.name in self._computed:
            return self._computed[metric.name](scope)
        family, _, level = metric.name.partition(".")
        if family == STATISTICS:
            return self._statistic(level, scope)
        if family not in LATENCIES:
            return self._summarized(metric, scope)
        point, _, unit = level.rpartition("_")
        found = self._latency(family, scope).get(point)
        if found is None:
            raise UnknownMetricError(f"too few samples for it{self._explained(scope)}")
        return found / UNITS_NS[unit]

    def _summarized(self, metric: Metric, scope: Scope) -> float:
        """A value at its place in the summary, of the whole run or of one group."""
        found = value_at(self._run.figures if scope.whole else self._group(scope), metric.source)
        if found is None:
            raise UnknownMetricError(f"it was not measured{self._explained(scope)}")
        return found

    def _group(self, scope: Scope) -> GroupFigures:
        for group in self._topology.groups if not scope.is_edge and scope.vector is None else ():
            if scope.machines == {machine.index for machine in self._topology.members(group.name)}:
                return self._run.figures.groups[group.name]
        raise UnknownMetricError("it is known of the whole run and of groups only")

    # Doorbells

    def _count(self, metric: str, scope: Scope) -> float:
        if not scope.whole:
            return self._counts.value(metric, scope)
        return counted_value(metric, functools.partial(getattr, self._run.figures))

    @functools.cached_property
    def _counts(self) -> Counts:
        def columns(table: Any, names: Sequence[str]) -> dict[str, Integers]:
            found = {name: table[name].cast("int64").fill_null(-1).to_numpy() for name in names}
            rows = {name: self._machines(found[name]) for name in names if name in ("machine", "source", "target")}
            return found | rows

        edges = columns(self._run.edges(), ("source", "target", "vector", "rung", "refused"))
        return Counts(columns(self._run.vectors(), ("machine", "vector", *COUNTED)), edges)

    def _doorbells_per_s(self, scope: Scope) -> float:
        elapsed_s = self._run.figures.elapsed_s
        if not elapsed_s:
            raise UnknownMetricError("the run never started")
        return self._count("rung", scope) / elapsed_s

    # Latencies

    def _latency(self, name: str, scope: Scope) -> dict[str, float | None]:
        """The percentiles and the mean in nanoseconds, None for too few samples."""

        def its(samples: Samples) -> Mask:
            there = np.ones(len(samples), np.bool_)
            if not scope.whole:
                there &= np.isin(self._machines(samples.target), list(scope.machines))
            if scope.sources is not None:
                there &= np.isin(self._machines(samples.source), list(scope.sources))
            if scope.vector is not None:
                there &= samples.vector == scope.vector
            return there

        found = self._run.percentiles_where(name, its)
        if not found["samples"]:
            raise UnknownMetricError(f"there is no sample of it{self._explained(scope)}")
        return found

    # Machines

    def _deaths(self, scope: Scope) -> list[str]:
        """How the machines died, in words, once for each incarnation; an action of the timeline is no death."""
        planned = {str(event.get("machine")) for event in self._run.events() if event.get("kind") == LEFT}
        deaths = dict(self._run.figures.deaths)
        deaths |= {
            str(event.get("machine")): str(event.get("how"))
            for event in self._run.events()
            if event.get("kind") == DIED
        }
        devices = {row.name for row in self._run.origin.machines if row.domain != self._first_domain(row)}
        return [
            f"{name} died ({how})"
            for name, how in deaths.items()
            if name not in planned and name not in devices and self._by_name.get(name) in scope.machines
        ]

    def _first_domain(self, row: MachineRow) -> int:
        return row.domain if row.of is None else self._run.origin.machines[row.of].domain

    def _explained(self, scope: Scope) -> str:
        """The deaths in the scope, for the end of a sentence."""
        deaths = self._deaths(scope)
        shown = ", ".join(deaths[:3]) + (f" and {len(deaths) - 3} more" if len(deaths) > 3 else "")
        return f": {shown}" if shown else ""

    def _up(self, scope: Scope) -> float:
        """Machines that were present when the run was told to stop."""
        return float(len(self._present(scope)))

    def _present(self, scope: Scope, *, ever: bool = False) -> set[int]:
        """The machines that were present at the end, or at any time."""
        up: set[int] = set()
        for event in self._run.events():
            machine = self._by_name.get(str(event.get("machine")), -1)
            match event.get("kind"):
                case "ready":
                    up |= {machine.index for machine in self._topology.machines if machine.present}
                case kind if kind == JOINED:
                    up.add(machine)
                case kind if kind in (LEFT, DIED) and not ever:
                    up.discard(machine)
        return up & scope.machines

    def _ready_s(self, scope: Scope) -> float:
        ready_s = self._run.figures.ready_s
        if not scope.whole:
            raise UnknownMetricError("it is known of the whole run only")
        if ready_s is None:
            raise UnknownMetricError(f"not all machines were ready{self._explained(scope)}")
        return ready_s

    def _most(self, columns: Sequence[str], each: str, scope: Scope) -> float:
        """The sum of the highest samples of each machine, or of each incarnation."""
        if scope.is_edge:
            raise UnknownMetricError("it is known of machines, not of an edge")
        table = self._run.resources()
        rows = table["machine"].to_numpy()
        machines = self._machines(rows)
        looks = sum(table[name].cast("float64").to_numpy(zero_copy_only=False) for name in columns)
        its = np.isin(machines, list(scope.machines)) & ~np.isnan(looks)
        if not its.any():
            raise UnknownMetricError(f"it was not sampled{self._explained(scope)}")
        keys, place = np.unique((rows if each == "incarnation" else machines)[its], return_inverse=True)
        most = np.zeros(len(keys))
        np.maximum.at(most, place, looks[its])
        return float(most.sum())

    # Migrations

    def _of_migrations(self, scope: Scope) -> Iterator[MigrationOutcome]:
        for migration in self._run.figures.migrations:
            if (
                self._by_name.get(migration.machine, self._by_name.get(migration.machine.rpartition(".")[0]))
                in scope.machines
            ):
                yield migration

    def _migrations(self, verdict: str, scope: Scope) -> float:
        return float(sum(migration.verdict == verdict for migration in self._of_migrations(scope)))

    def _downtime_ms(self, scope: Scope) -> float:
        """The longest pause of a migration, also of one that failed."""
        its = [migration.downtime_ms for migration in self._of_migrations(scope) if migration.downtime_ms is not None]
        if not its:
            raise UnknownMetricError(f"no machine migrated{self._explained(scope)}")
        return max(its)

    # Statistics of programs

    def _statistic(self, name: str, scope: Scope) -> float:
        """The sum over the machines. Unknown if a machine died without statistics and others of its group have some."""
        if scope.is_edge:
            raise UnknownMetricError("it is known of machines, not of an edge")
        said = self._said(name)
        speaking = {self._topology.machines[self._by_name[incarnation]].group for incarnation in said}
        for death in self._deaths(scope):
            dead = death.partition(" ")[0]
            if dead not in said and self._topology.machines[self._by_name[dead]].group in speaking:
                raise UnknownMetricError(f"{death} and left none")
        there = [number for incarnation, number in said.items() if self._by_name[incarnation] in scope.machines]
        if not there:
            died = self._explained(scope)
            raise UnknownMetricError(f"no program has it in its statistics{died}", is_absent=not died)
        return sum(there)

    def _said(self, name: str) -> dict[str, float]:
        """The last value of each incarnation of a machine."""
        statistics = self._run.figures.statistics
        return {
            incarnation: float(values[name])
            for incarnation, values in statistics.items()
            if name in values and incarnation in self._by_name
        }

    def _broken(self) -> dict[str, float]:
        return {
            str(event.get("expected")): float(event["got"])
            for event in self._run.events()
            if event.get("kind") == BROKEN and isinstance(event.get("got"), int | float)
        }
