"""Whether a run over several hosts showed what was expected of it.

An expectation of machines of one host is that of its part. Any other one is of a metric that adds up, and is judged by
the sum over the hosts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from nodes.errors import UsageError
from sim.results.counts import UnknownMetricError
from sim.results.expectations import make_verdict, measure
from sim.results.run import Run
from sim.results.summary import ExpectationVerdict
from topologies import Expectation, Topology
from topologies.hosts import domains_of_condition

Parts = Mapping[str, tuple[Topology, Run | None]]
"""The part of each host, and its run; None if that is missing."""


def evaluate_joint(topology: Topology, parts: Parts) -> list[ExpectationVerdict]:
    """A verdict for each expectation of the whole topology, in order."""
    own = {host: iter(_verdicts(part, run)) for host, (part, run) in parts.items()}
    verdicts = []
    for expectation in topology.expectations:
        domains = domains_of_condition(topology, expectation.that)
        home = [host for host, (part, _) in parts.items() if domains <= {domain.name for domain in part.domains}]
        verdicts.append(next(own[home[0]]) if home else _judge_sum(expectation, domains, parts))
    return verdicts


def _verdicts(part: Topology, run: Run | None) -> list[ExpectationVerdict]:
    why = "the part of its host is missing"
    if run is not None:
        why = f"the part of its host was not judged: it is {run.status}"  # its coordinator died, for instance
        with contextlib.suppress(UsageError):
            if len(run.figures.expectations) == len(part.expectations):
                return run.figures.expectations
    return [make_verdict(expectation, None, why) for expectation in part.expectations]


def _judge_sum(expectation: Expectation, domains: set[str], parts: Parts) -> ExpectationVerdict:
    values, unknown, empty = [], [], []
    for host, (part, run) in parts.items():
        if not domains & {domain.name for domain in part.domains}:
            continue
        if run is None:
            return make_verdict(expectation, None, f"the part of {host} is missing")
        try:
            value, why = measure(part, run, expectation)
        except UnknownMetricError as error:
            unknown.append(f"{host}: {error}")
            if not error.is_absent:
                return make_verdict(expectation, None, unknown[-1])
        except UsageError as error:
            return make_verdict(expectation, None, f"{host}: {error}")
        else:
            values.append(value)
            empty.append(why)
    if not values:
        return make_verdict(expectation, None, "; ".join(unknown))
    total = float(f"{sum(values):.15g}")
    if not total and not expectation.allow_empty and all(empty):
        return make_verdict(expectation, total, empty[0])
    return make_verdict(expectation, total, "", met=expectation.that.holds(total))
