"""Conditions during a run: whether one holds now, or is broken for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nodes.errors import UsageError
from sim.results.analysis.balance import COUNTED
from sim.results.counts import Counts, Scopes, UnknownMetricError
from topologies import Condition
from topologies.metrics import METRICS


@dataclass(frozen=True)
class Moment:
    """The state of a run at one time.

    Attributes:
        counts: by `sim.results.counts.counts_so_far`.
        up: the indices of the machines that are present.
        died: the index of a machine for each of its incarnations that ended by accident.
        migrations: by metric (``migrated``, ...), the index of a machine for each of its migrations.
        elapsed_s: seconds since the start of the programs.
    """

    scopes: Scopes
    counts: Counts
    up: frozenset[int]
    died: tuple[int, ...]
    migrations: Mapping[str, Sequence[int]]
    elapsed_s: float

    def value(self, condition: Condition) -> float:
        """The metric now. Raises ``UnknownMetricError``, or ``UsageError`` for one of finished runs only."""
        scope = self.scopes[condition.of]
        match condition.metric:
            case "elapsed_s":
                return self.elapsed_s
            case "up":
                return float(len(self.up & scope.machines))
            case "died":
                return float(sum(machine in scope.machines for machine in self.died))
            case metric if metric in self.migrations:
                return float(sum(machine in scope.machines for machine in self.migrations[metric]))
            case metric if metric in COUNTED or metric == "coalescing":
                return self.counts.value(metric, scope)
        raise UsageError(f"{condition.metric} is known at the end of a run only")


def live(condition: Condition, moment: Moment) -> bool:
    """Whether ``condition`` holds now; a metric that is not known yet does not hold."""
    try:
        return condition.holds(moment.value(condition))
    except UnknownMetricError:
        return False


def broken(condition: Condition, moment: Moment) -> bool:
    """Whether ``condition`` is broken for good; ``delivered > 1000`` is not before the end, as the metric grows."""
    try:
        value = moment.value(condition)
    except UnknownMetricError:
        return False
    if condition.holds(value):
        return False
    if not METRICS[condition.metric].grows:
        return True
    return condition.comparison in ("<", "<=") or (condition.comparison == "==" and value > condition.bound)
