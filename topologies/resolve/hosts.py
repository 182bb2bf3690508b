"""Checks what a topology asks of several hosts: machines of one host share memory, those of two share nothing."""

from __future__ import annotations

from topologies.domain import ANY_HOST
from topologies.hosts import has_hosts, site_of, sites_of_condition, sites_of_entry
from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.metrics import find_metric
from topologies.model import Topology
from topologies.schedule import TimelineEntry

__all__ = ["check_hosts"]


def check_hosts(topology: Topology, report: Report) -> None:
    """Report what cannot be over several hosts, or on a host that is not the one that runs the topology."""
    if not has_hosts(topology):
        return
    if without := [domain.name for domain in topology.domains if not domain.host]:
        hint = f"host = {show(ANY_HOST)} leaves the choice to the run"
        report.add(("domains", without[0], "host"), "a host, as other domains have one", "none", hint)
        return
    _check_machines(topology, report)
    for place, entry in enumerate(topology.timeline):
        if len(sites_of_entry(topology, entry)) > 1:
            _check_entry(topology, entry, place, report)
    for place, expectation in enumerate(topology.expectations):
        condition = expectation.that
        if len(sites_of_condition(topology, condition)) < 2:
            continue
        hint = "`of` names machines of one host"
        if expectation.abort:
            expected = "no abort, for machines of several hosts: no host knows the metrics of all while they run"
            report.add(("expect", place, "abort"), expected, "true", hint)
        elif not find_metric(condition.metric).adds_up:
            expected = "a metric that adds up over hosts, such as rung or refused"
            got = f"{condition.metric}, which is known within a host only"
            report.add(("expect", place, "that"), expected, got, hint)


def _check_machines(topology: Topology, report: Report) -> None:
    """Report the first machine of each group that no host can have."""
    domains = {domain.name: domain for domain in topology.domains}
    reported: set[str] = set()
    for machine in topology.machines:
        if machine.group in reported:
            continue
        if len({site_of(domains[name]) for name in machine.domains}) > 1:
            got = f"{machine.name} in " + " and ".join(
                f"{name}, on {domains[name].host if domains[name].host != ANY_HOST else 'any host'}"
                for name in machine.domains
            )
            hint = "give these domains the name of one host"
            report.add(("machines", machine.group, "domains"), "domains on one host: its memory is shared", got, hint)
            reported.add(machine.group)
        elif machine.kind == "external" or machine.guest is not None:
            got = f"{machine.name}, of kind external" if machine.guest is None else f"{machine.name}, with a guest"
            report.add(("machines", machine.group), "machines whose program the run has, in a domain with a host", got)
            reported.add(machine.group)


def _check_entry(topology: Topology, entry: TimelineEntry, place: int, report: Report) -> None:
    """Report an entry on several hosts, unless each can carry out its part at its time."""
    if (to_domain := getattr(entry.action, "to_domain", None)) is not None:
        report.add(("timeline", place, "to_domain"), "a domain on the host of its machines", show(to_domain))
    elif entry.when is not None:
        expected = "a condition and machines of one host: no host knows the metrics of another while it runs"
        report.add(("timeline", place, "when"), expected, f"{entry.when}, and machines of several hosts")
    elif entry.pick is not None:
        expected = "machines of one host, to pick from: no host knows which machines are present on another"
        report.add(("timeline", place, "pick"), expected, f"{entry.pick} of machines of several hosts")
