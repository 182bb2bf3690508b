"""A topology whose domains are on several hosts: which machines go together, and what each host runs of it.

A host runs a part: an ordinary topology, with the machines of some domains. A machine of it has the name that it has in
the whole, and so draws the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from topologies.actions import End
from topologies.domain import ANY_HOST, Domain
from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.metrics import find_metric, parse_owner
from topologies.model import Machine, Machines, Topology, Trace
from topologies.schedule import Condition, TimelineEntry


def has_hosts(topology: Topology) -> bool:
    """Whether its domains name hosts, so that this host alone does not run it."""
    return topology.run.engine != "virtual" and any(domain.host for domain in topology.domains)


def site_of(domain: Domain) -> tuple[str, str]:
    """The key that domains on the same host share: the name of the host; a domain on any host has a key of its own."""
    return ("domain", domain.name) if domain.host == ANY_HOST else ("host", domain.host)


def _sites(topology: Topology, names: Collection[str]) -> set[tuple[str, str]]:
    return {site_of(domain) for domain in topology.domains if domain.name in names}


def domains_of_condition(topology: Topology, condition: Condition) -> set[str]:
    """The domains of the machines that a condition is about."""
    source, target, _ = parse_owner(condition.of)
    names = {target} if source is None else {source, target}
    return {
        domain
        for machine in topology.machines
        if not condition.of or names & {machine.name, machine.group}
        for domain in machine.domains
    }


def _domains_of_entry(topology: Topology, entry: TimelineEntry) -> set[str]:
    names = {domain for index in entry.machines for domain in topology.machines[index].domains}
    names |= {name for key in ("domain", "to_domain") if (name := getattr(entry.action, key, None)) is not None}
    return names | (domains_of_condition(topology, entry.when) if entry.when is not None else set())


def part_of(topology: Topology, domains: Collection[str]) -> Topology:
    """The topology with these domains only: their machines, and what the timeline and the expectations say of those.

    Raises:
        UsageError: a domain is not known, has no machine, or has one that is in another domain, too.
    """
    known = {domain.name for domain in topology.domains}
    if missing := [name for name in domains if name not in known]:
        hint = did_you_mean(missing[0], known)
        raise UsageError(f"expected domains of the topology ({', '.join(sorted(known))}), got {missing[0]}{hint}")
    machines = [machine for machine in topology.machines if set(machine.domains) & set(domains)]
    if outside := [machine for machine in machines if not set(machine.domains) <= set(domains)]:
        raise UsageError(f"{outside[0].name} is in the domains {', '.join(outside[0].domains)}: expected all or none")
    if not machines:
        raise UsageError(f"no machine is in {', '.join(domains)}")
    index_of = {machine.index: index for index, machine in enumerate(machines)}
    counts = {group.name: sum(machine.group == group.name for machine in machines) for group in topology.groups}
    return msgspec.structs.replace(
        topology,
        groups=tuple(
            msgspec.structs.replace(group, count=counts[group.name]) for group in topology.groups if counts[group.name]
        ),
        machines=tuple(_renumbered(machine, index_of) for machine in machines),
        domains=tuple(
            msgspec.structs.replace(domain, host="") for domain in topology.domains if domain.name in domains
        ),
        timeline=tuple(
            entry
            for place, whole in enumerate(topology.timeline)
            for entry in _entries(topology, msgspec.structs.replace(whole, place=place), set(domains), index_of)
        ),
        expectations=tuple(
            expectation
            for expectation in topology.expectations
            if domains_of_condition(topology, expectation.that) <= set(domains)
        ),
    )


def _renumbered(machine: Machine, index_of: Mapping[int, int]) -> Machine:
    """The machine with the indices that the machines of the part have; those that it names are in the part."""

    def renumbered(value: Any) -> Any:
        match value:
            case Machines():
                return Machines(index_of[index] for index in value)
            case Trace(machines=machines):
                return msgspec.structs.replace(value, machines=renumbered(machines))
        return value

    parameters = {name: renumbered(value) for name, value in machine.parameters.items()}
    return msgspec.structs.replace(machine, index=index_of[machine.index], parameters=parameters)


def _entries(
    topology: Topology, entry: TimelineEntry, domains: set[str], index_of: Mapping[int, int]
) -> Iterator[TimelineEntry]:
    """What an entry does to the machines of a part."""
    named = _domains_of_entry(topology, entry)
    if isinstance(entry.action, End) and not named:
        yield entry
    elif named and named <= domains:
        yield msgspec.structs.replace(entry, machines=tuple(index_of[index] for index in entry.machines))
    elif not entry.waits and entry.pick is None:
        # Each machine's turn comes when it comes in the whole.
        for turn, index in enumerate(entry.machines):
            if index in index_of:
                at_s = entry.at_s + turn * entry.every_s
                yield msgspec.structs.replace(entry, machines=(index_of[index],), at_s=at_s, every_s=0.0)


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
        if len(_sites(topology, _domains_of_entry(topology, entry))) > 1:
            _check_entry(topology, entry, place, report)
    for place, expectation in enumerate(topology.expectations):
        condition = expectation.that
        if len(_sites(topology, domains_of_condition(topology, condition))) < 2:
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
