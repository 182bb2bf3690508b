"""Topologies over several hosts: what one host runs of it, and what cannot be over several."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodes.errors import UsageError
from tests.two_halves import TWO_HALVES
from topologies import Machines, TimelineEntry, TopologyError, Trace, load, loads
from topologies.actions import End, Kill, Mask, StopServer
from topologies.hosts import has_hosts, part_of

TIMELINE = """
[[timeline]]
do = "kill"
machines = "west"
at_s = 0.1
[[timeline]]
do = "mask"
machines = "all"
at_s = 0.01
every_s = 0.01
repeat = 2
period_s = 0.1
[[timeline]]
do = "stop_server"
domain = "right"
when = "rung > 10"
of = "east-1"
[[timeline]]
do = "end"
at_s = 0.15
[[timeline]]
do = "mask"
machines = "east"
pick = 1
at_s = 0.02
"""


def test_a_part_has_the_machines_of_its_domains_under_their_names() -> None:
    whole = loads(TWO_HALVES)
    part = part_of(whole, ["right"])
    assert [(machine.index, machine.name) for machine in part.machines] == [(0, "east-0"), (1, "east-1"), (2, "east-2")]
    assert [machine.parameters["to"] for machine in part.machines] == [
        Machines([1, 2]),
        Machines([0, 2]),
        Machines([0, 1]),
    ]
    assert [(group.name, group.count) for group in part.groups] == [("east", 3)]
    assert [(domain.name, domain.host) for domain in part.domains] == [("right", "")]
    assert (part.seed, part.run, part.source_text) == (whole.seed, whole.run, whole.source_text)
    assert has_hosts(whole)
    assert not has_hosts(part)


def test_an_expectation_is_that_of_the_part_that_has_all_its_machines() -> None:
    whole = loads(TWO_HALVES)
    assert [part_of(whole, [name]).expectations for name in ("left", "right")] == [(), whole.expectations[1:]]
    assert part_of(whole, ["left", "right"]).expectations == whole.expectations


def test_a_part_does_of_the_timeline_what_concerns_its_machines_at_the_same_times() -> None:
    whole = loads(TWO_HALVES + TIMELINE)
    left, right = (part_of(whole, [name]).timeline for name in ("left", "right"))

    def told(entries: tuple[TimelineEntry, ...]) -> list[tuple[type, int | None, tuple[int, ...], float]]:
        return [(type(each.action), each.place, each.machines, round(each.at_s, 6)) for each in entries]

    # The turns of "all" are 0.01 s apart, west-0 first.
    assert told(left) == [(Kill, 0, (0, 1), 0.1), (Mask, 1, (0,), 0.01), (Mask, 1, (1,), 0.02), (End, 3, (), 0.15)]
    assert told(right) == [
        *((Mask, 1, (index,), 0.03 + 0.01 * index) for index in range(3)),
        (StopServer, 2, (), 0.0),
        (End, 3, (), 0.15),
        (Mask, 4, (0, 1, 2), 0.02),
    ]
    assert {(each.repeat, each.period_s) for each in right if each.place == 1} == {(2, 0.1)}


def test_a_trace_names_the_machines_of_the_part(tmp_path: Path) -> None:
    (tmp_path / "rings.csv").write_text("time_s,source,target,vector\n0.01,east-0,east-2,0\n0.02,west-0,west-1,0\n")
    text = TWO_HALVES.replace("storm", "trace").replace('to = "others", rate_hz = 400.0', 'file = "rings.csv"')
    (tmp_path / "t.toml").write_text(text)
    whole = load(tmp_path / "t.toml")
    values = [value for machine in part_of(whole, ["right"]).machines for value in machine.parameters.values()]
    (rung,) = [value for value in values if isinstance(value, Trace) and value.doorbells]
    assert [(rung.machines[target], vector) for _, target, vector in rung.doorbells] == [(2, 0)]


def test_a_part_is_no_half_of_a_machine() -> None:
    text = (
        TWO_HALVES.replace('"any"', '"alpha"') + '[machines.bridge]\ndomains = ["left", "right"]\nprogram = "relay"\n'
    )
    whole = loads(text)
    assert len(part_of(whole, ["left", "right"]).machines) == 6
    with pytest.raises(UsageError, match="bridge is in the domains left, right"):
        part_of(whole, ["left"])
    with pytest.raises(UsageError, match="expected domains of the topology"):
        part_of(whole, ["middle"])


@pytest.mark.parametrize(
    ("more", "overrides", "key", "said"),
    [
        ("", {"domains.left": '{host = ""}'}, "domains.left.host", "a host, as other domains have one"),
        (
            '[machines.bridge]\ndomains = ["left", "right"]\nprogram = "relay"\n',
            {},
            "machines.bridge.domains",
            "bridge in left, on any host and right, on any host",
        ),
        ('[machines.q]\nkind = "external"\ndomains = ["left"]\n', {}, "machines.q", "q, of kind external"),
        ('[[expect]]\nthat = "p99_us < 9"\n', {}, "expect[2].that", "a metric that adds up"),
        ('[[expect]]\nthat = "coalescing < 9"\n', {}, "expect[2].that", "a metric that adds up"),
        ('[[expect]]\nthat = "refused == 0"\nabort = true\n', {}, "expect[2].abort", "no abort"),
        (
            '[[timeline]]\ndo = "migrate"\nmachines = "west-0"\nto_domain = "right"\nat_s = 0.1\n',
            {},
            "timeline[0].to_domain",
            "a domain on the host of its machines",
        ),
        (
            '[[timeline]]\ndo = "kill"\nmachines = "west-0"\nwhen = "rung > 3"\nof = "east"\n',
            {},
            "timeline[0].when",
            "a condition and machines of one host",
        ),
        (
            '[[timeline]]\ndo = "end"\nwhen = "rung > 3"\n',
            {},
            "timeline[0].when",
            "a condition and machines of one host",
        ),
        (
            '[[timeline]]\ndo = "kill"\nmachines = "all"\npick = 2\nat_s = 0.1\n',
            {},
            "timeline[0].pick",
            "machines of one host, to pick from",
        ),
    ],
)
def test_what_no_host_alone_can_know_or_do_is_refused(
    more: str, overrides: dict[str, str], key: str, said: str
) -> None:
    with pytest.raises(TopologyError) as caught:
        loads(TWO_HALVES + more, overrides=overrides)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert said in f"{problem.expected} {problem.got}"
    # On one host there is nothing against it.
    if "external" not in more and more:
        loads(TWO_HALVES + more, overrides={"domains.left.host": "alpha", "domains.right.host": "alpha"})


def test_under_virtual_time_all_domains_are_here() -> None:
    assert not has_hosts(loads(TWO_HALVES, overrides={"run.engine": "virtual"}))
