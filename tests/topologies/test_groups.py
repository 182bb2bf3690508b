"""Groups: defaults, overrides, names, domains, scheduling, roles."""

from __future__ import annotations

from typing import Any

import pytest

from topologies import Domain, Memory, Problem, Scheduling, Topology, TopologyError, loads
from topologies.model import machine_name

MACHINE = '[machines.a]\nprogram = "idle"\n'


def refused(text: str) -> tuple[Problem, ...]:
    with pytest.raises(TopologyError) as caught:
        loads(text, "bad.toml")
    return caught.value.problems


def only(text: str) -> Problem:
    (problem,) = refused(text)
    return problem


def settings(topology: Topology, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(machine, name) for name in names) for machine in topology.machines]


DEFAULTS = """
[defaults]
program = "storm"
vectors = 3
profile = "qemu-doorbell-kvm"
nice = 5
parameters = { to = "all", rate_hz = 5.0 }
[machines.a]
[machines.b]
vectors = 4
parameters = { rate_hz = 7.0 }
[machines.c]
program = "storm"
nice = 0
[machines.d]
program = "echo"
parameters = { to = "a" }
"""


def test_a_group_says_what_is_different_from_the_defaults() -> None:
    topology = loads(DEFAULTS)
    assert settings(topology, "vectors", "program") == [(3, "storm"), (4, "storm"), (3, "storm"), (3, "echo")]
    assert {machine.profile for machine in topology.machines} == {"qemu-doorbell-kvm"}
    assert [machine.scheduling.nice for machine in topology.machines] == [5, 5, 0, 5]
    rates = [machine.parameters.get("rate_hz") for machine in topology.machines]
    assert rates == [5.0, 7.0, 5.0, None], "parameters are merged, but not into another program's"
    assert [machine.parameters["to"] for machine in topology.machines] == [(0, 1, 2, 3)] * 3 + [(0,)]


def test_a_fault_of_the_defaults_is_said_once_and_where_it_stands() -> None:
    problems = refused(
        "[defaults]\nprogram = 'strom'\nvectors = 3000\n[machines.a]\n[machines.b]\n[machines.c]\nvectors = 1\n"
    )
    assert [(problem.line, problem.key) for problem in problems] == [(2, "defaults.program"), (3, "defaults.vectors")]
    problems = refused("[defaults]\nprogram = 'storm'\nparameters.burst = 0\n[machines.a]\n[machines.b]\n")
    assert [(problem.line, problem.key) for problem in problems] == [(3, "defaults.parameters.burst")]


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[defaults]\ncount = 3\n" + MACHINE, 2, "defaults.count"),
        ("[defaults]\nname = 'x{n}'\n" + MACHINE, 2, "defaults.name"),
        ("[defaults]\nvectors = 2\n[machines.a]\n", 3, "machines.a.program"),
        ("[defaults]\nprogram = 3\n[machines.a]\n", 2, "defaults.program"),
        ("defaults = 3\n" + MACHINE, 1, "defaults"),
    ],
)
def test_keys_that_cannot_have_a_default_are_refused(text: str, line: int, key: str) -> None:
    problem = only(text)
    assert (problem.line, problem.key) == (line, key)


OVERRIDES = """
[machines.a]
count = 12
program = "storm"
parameters = { rate_hz = 5.0, burst = 3 }
[machines.a.override.0]
vectors = 7
[machines.a.override.a-11]
parameters = { rate_hz = 9.0 }
cpus = [1, 0]
[machines.a.override.5]
program = "idle"
absent = true
"""


def test_one_machine_of_a_group_can_be_different() -> None:
    topology = loads(OVERRIDES)
    assert [machine.vectors for machine in topology.machines] == [7] + [1] * 11
    assert topology.eventfds == 18
    assert topology.groups[0].vectors == 1
    assert [m.parameters.get("rate_hz") for m in topology.machines] == [5.0] * 5 + [None] + [5.0] * 5 + [9.0]
    assert [m.parameters.get("burst") for m in topology.machines] == [3] * 5 + [None] + [3] * 6
    assert [m.name for m in topology.machines if not m.present] == ["a-05"]
    assert topology.machines[11].scheduling.cpus == (0, 1)
    assert topology.machines[3].parameters["to"] == (0, 1, 2, *range(4, 12))


def test_a_group_of_which_every_machine_is_different() -> None:
    text = "[machines.a]\ncount = 2\n"
    text += "".join(f"[machines.a.override.{place}]\nprogram = 'idle'\nvectors = {place + 2}\n" for place in (0, 1))
    topology = loads(text)
    assert [machine.vectors for machine in topology.machines] == [2, 3]
    assert (topology.groups[0].program, topology.groups[0].vectors, topology.groups[0].role) == ("idle", 2, "peer")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("12]\nvectors = 2", "machines.a.override.12"),
        ("a-12]\nvectors = 2", "machines.a.override.a-12"),
        ("b]\nvectors = 2", "machines.a.override.b"),
        ("-1]\nvectors = 2", "machines.a.override.-1"),
        ("5]\ncount = 2", "machines.a.override.5.count"),
        ("5]\nvectors = 4096", "machines.a.override.5.vectors"),
        ("5]\nparameters.burst = 0", "machines.a.override.5.parameters.burst"),
        ("5]\nprogram = 'idle'\nparameters.burst = 1", "machines.a.override.5.parameters.burst"),
        ("5]\nvectors = 2\n[machines.a.override.a-05]", "machines.a.override.a-05"),
    ],
)
def test_an_override_that_is_none(override: str, key: str) -> None:
    text = (
        f"[machines.b]\nprogram = 'idle'\n[machines.a]\ncount = 12\nprogram = 'storm'\n[machines.a.override.{override}"
    )
    assert only(text).key == key


def test_a_bad_count_does_not_make_its_overrides_wrong() -> None:
    assert (
        only("[machines.a]\ncount = 0\nprogram = 'idle'\n[machines.a.override.3]\nnice = 1\n").key == "machines.a.count"
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("node-{n}", ["node-0", "node-1", "node-2"]),
        ("node-{n:03}", ["node-000", "node-001", "node-002"]),
        ("{group}.{n}", ["a.0", "a.1", "a.2"]),
        ("{n}", ["0", "1", "2"]),
    ],
)
def test_names_follow_a_pattern(pattern: str, names: list[str]) -> None:
    text = f'[machines.a]\nname = "{pattern}"\ncount = 3\nprogram = "storm"\nparameters.to = "{names[1]}"\n'
    topology = loads(text)
    assert [machine.name for machine in topology.machines] == names
    assert [machine.parameters["to"] for machine in topology.machines] == [(1,)] * 3
    assert topology.groups[0].pattern == pattern
    assert [machine_name("a", place, 3, pattern) for place in range(3)] == names


@pytest.mark.parametrize(
    "name",
    [
        *('"{n.real}"', '"{0}"', '"{n!r}"', '"{n:3}"', '"{m}"', '"a b {n}"', '"a/{n}"', '"same"', '"-{n}"', '".{n}"'),
        *(
            '""',
            "3",
            '"{n}{"',
            f'"{"x" * 63}{{n}}-"',
            '"{n:09}{n:09}{n:09}{n:09}{n:09}{n:09}{n:09}{n:09}"',
            '"a{n}\\n"',
        ),
    ],
)
def test_patterns_that_make_no_names(name: str) -> None:
    problem = only(f"[machines.a]\ncount = 3\nprogram = 'idle'\nname = {name}\n")
    assert (problem.line, problem.key) == (4, "machines.a.name")


def test_two_machines_of_one_name_are_refused_whatever_named_them() -> None:
    problem = only(
        "[machines.a]\ncount = 2\nprogram = 'idle'\n[machines.b]\ncount = 2\nprogram = 'idle'\nname = 'a-{n}'"
    )
    assert (problem.line, problem.key) == (7, "machines.b.name")
    assert only(MACHINE + "name = 'others'").key == "machines.a.name"


# Domains

DOMAINS = """
[domains.left]
size = "1M"
[domains.right]
kind = "memfd"
dialect = "legacy"
[machines.l]
count = 2
domains = ["left"]
program = "storm"
[machines.both]
domains = ["right", "left"]
program = "storm"
vectors = 3
[machines.r]
domains = ["right"]
program = "storm"
"""


def test_domains_have_memories_and_servers_of_their_own() -> None:
    topology = loads(DOMAINS)
    assert topology.domains == (
        Domain(name="left", memory=Memory(size_bytes=1 << 20)),
        Domain(name="right", memory=Memory(kind="memfd"), dialect="legacy"),
    )
    assert settings(topology, "domains") == [(("left",),)] * 2 + [(("right", "left"),), (("right",),)]
    assert topology.eventfds == 2 + 2 * 3 + 1
    assert topology.memory.size_bytes == 1 << 20
    # "others" are the machines that can be reached.
    assert [machine.parameters["to"] for machine in topology.machines] == [(1, 2), (0, 2), (0, 1, 3), (2,)]


def test_without_domains_there_is_one() -> None:
    topology = loads(MACHINE + "[memory]\nsize = '64K'")
    assert topology.domains == (Domain(name="main", memory=Memory(size_bytes=65536)),)
    assert topology.machines[0].domains == ("main",)
    assert loads("[domains.only]\n" + MACHINE).machines[0].domains == ("only",)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[memory]\n[domains.x]\n" + MACHINE, 1, "memory"),
        ("[domains]\n" + MACHINE, 1, "domains"),
        ("[domains.x]\nsize = 5000\n" + MACHINE, 2, "domains.x.size"),
        ("[domains.x]\ndialect = 'v1'\n" + MACHINE, 2, "domains.x.dialect"),
        ("[domains.x]\n[domains.y]\n" + MACHINE, 3, "machines.a.domains"),
        (MACHINE + "domains = ['left']", 3, "machines.a.domains[0]"),
        (MACHINE + "domains = ['main', 'main']", 3, "machines.a.domains[1]"),
        (MACHINE + "domains = []", 3, "machines.a.domains"),
        (MACHINE + "domains = 'main'", 3, "machines.a.domains"),
        (DOMAINS + "parameters.to = 'l'", 18, "machines.r.parameters.to"),
        (DOMAINS.replace('"storm"', '"poll"') + "parameters.offset = 4194297", 18, "machines.r.parameters.offset"),
        (
            DOMAINS.replace('"storm"\nvectors', '"poll"\nparameters.offset = 1048569\nvectors'),
            14,
            "machines.both.parameters.offset",
        ),
    ],
)
def test_domains_that_do_not_fit(text: str, line: int, key: str) -> None:
    problem = only(text)
    assert (problem.line, problem.key) == (line, key)


# Where processes run


@pytest.mark.parametrize(
    ("keys", "scheduling"),
    [
        ("", Scheduling()),
        ("cpus = [3, 1, 3]", Scheduling(cpus=(1, 3))),
        ("cpus = '0-2,6,1'", Scheduling(cpus=(0, 1, 2, 6))),
        ("policy = 'fifo'\npriority = 99", Scheduling(policy="fifo", priority=99)),
        ("policy = 'rr'\npriority = 1", Scheduling(policy="rr", priority=1)),
        ("policy = 'batch'\nnice = -20", Scheduling(policy="batch", nice=-20)),
        ("policy = 'idle'", Scheduling(policy="idle")),
    ],
)
def test_scheduling(keys: str, scheduling: Scheduling) -> None:
    assert loads(MACHINE + keys).machines[0].scheduling == scheduling


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ("cpus = '2-1'", "cpus"),
        ("cpus = '0-8192'", "cpus"),
        ("cpus = '0-'", "cpus"),
        ("cpus = '0 1'", "cpus"),
        ("cpus = [8192]", "cpus"),
        ("cpus = 1", "cpus"),
        ("policy = 'FIFO'", "policy"),
        ("policy = 'rr'", "priority"),
        ("priority = 5", "priority"),
        ("policy = 'rr'\npriority = 100", "priority"),
        ("nice = 20", "nice"),
        ("policy = 'rr'\npriority = 9\nnice = 1", "nice"),
        ("policy = 'idle'\nnice = 1", "nice"),
        ("blockers = 'a'", "blockers"),
        ("blockers = ['']", "blockers"),
        ("absent = 1", "absent"),
    ],
)
def test_settings_that_do_not_fit(keys: str, key: str) -> None:
    problem = only(MACHINE + keys)
    line = next((at for at, text in enumerate(keys.split("\n"), 3) if text.startswith(key)), 1)
    assert (problem.line, problem.key) == (line, f"machines.a.{key}")


# Devices


def test_a_device_with_msix_has_a_vector_and_a_plain_one_need_not() -> None:
    problem = only(MACHINE + "vectors = 0")
    assert (problem.line, problem.key) == (3, "machines.a.vectors")
    assert "qemu-plain" in problem.hint
    assert loads(MACHINE + "vectors = 0\nprofile = 'qemu-plain'").machines[0].vectors == 0


def test_a_device_with_a_fixed_table_has_that_many_vectors() -> None:
    assert loads(MACHINE + "profile = 'acrn'").machines[0].vectors == 8
    assert loads(MACHINE + "vectors = 8\nprofile = 'acrn'").machines[0].vectors == 8
    for vectors in (0, 1, 9):
        problem = only(MACHINE + f"vectors = {vectors}\nprofile = 'acrn'")
        assert (problem.key, problem.expected) == ("machines.a.vectors", "8, as every acrn has")


def test_a_master_is_the_first_of_each_of_its_domains() -> None:
    def masters(text: str) -> list[str]:
        return [machine.name for machine in loads(text).machines if machine.role == "master"]

    two = "[domains.l]\n[domains.r]\n"
    left, right = (
        f"[machines.{name}]\nprogram = 'idle'\ndomains = ['{name}']\nrole = 'master'\n" for name in ("l", "r")
    )
    assert masters(two + left + right) == ["l", "r"]
    assert only(two + left + right + "[machines.x]\nprogram = 'idle'\ndomains = ['r']\nrole = 'master'").line == 14
    both = "[machines.x]\nprogram = 'idle'\ndomains = ['l', 'r']\nrole = 'master'\n"
    assert masters(two + both) == ["x"]
    assert [problem.key for problem in refused(two + left + both)] == ["machines.x.role"]
    assert only(MACHINE + "role = 'master'\nabsent = true").key == "machines.a.role"
    # One that is not there yet does not come first.
    assert masters(MACHINE + "absent = true\n[machines.b]\nrole = 'master'\nprogram = 'idle'\n") == ["b"]
    # With an override, one machine of a group can be it.
    group = "[machines.a]\ncount = 3\nprogram = 'idle'\n"
    assert masters(group + "[machines.a.override.0]\nrole = 'master'") == ["a-0"]
    problem = only(group + "[machines.a.override.1]\nrole = 'master'")
    assert problem.key == "machines.a.override.1.role"
    told = "one machine, the first of the file (master must connect to the server before any peers)"
    assert (problem.expected, problem.hint) == (told, "")
    plain = "[machines.p]\nprogram = 'idle'\nprofile = 'qemu-plain'\n"
    assert "devices without a server connect too" in only(plain + MACHINE + "role = 'master'").hint


def test_a_role_that_is_left_to_the_id() -> None:
    assert [each.role for each in loads(MACHINE + "count = 2\nrole = 'auto'").machines] == ["auto", "auto"]
    assert loads(MACHINE + "profile = 'qemu-plain'\nrole = 'auto'").machines[0].role == "auto"
    for profile in ("qemu-1.1", "qemu-1.1-shm"):
        problem = only(MACHINE + f"profile = '{profile}'\nrole = 'auto'")
        assert (problem.key, problem.got) == ("machines.a.role", '"auto"')
        assert problem.expected.startswith('"peer" or "master": ')
    assert only(MACHINE + "profile = 'acrn'\nrole = 'auto'").expected.startswith('"peer" or "master": acrn')
    run = "[run]\nonly_migratable = true\n"
    assert loads(run + MACHINE + "role = 'auto'").run.only_migratable
    assert loads(run + MACHINE + "count = 2\nprofile = 'qemu-plain'\nrole = 'auto'").run.only_migratable
    problem = only(run + MACHINE + "count = 2\nrole = 'auto'")
    assert "'peer mode' in device 'ivshmem'" in problem.got
    absent = "[machines.b]\nprogram = 'idle'\nrole = 'auto'\nabsent = true\n"
    assert only(run + MACHINE + "role = 'master'\n" + absent).key == "machines.b.role"


def test_only_migratable_refuses_as_qemu_does() -> None:
    run = "[run]\nonly_migratable = true\n"
    problem = only(run + MACHINE + "role = 'peer'")
    assert (problem.line, problem.key) == (5, "machines.a.role")
    assert problem.got == (
        "disallowing migration blocker (--only-migratable) for: "
        "Migration is disabled when using feature 'peer mode' in device 'ivshmem'"
    )
    assert loads(run + MACHINE + "role = 'master'").run.only_migratable
    problem = only(run + MACHINE + "role = 'master'\nblockers = ['vfio', 'other']")
    assert problem.got == "disallowing migration blocker (--only-migratable) for: vfio"
    assert only(run + MACHINE + "profile = 'acrn'").key == "machines.a.profile"
    assert loads(MACHINE + "blockers = ['vfio']").machines[0].blockers == ("vfio",)
    # By a group's device: that of 2012 is a master unless it is told otherwise.
    assert len(loads(run + MACHINE + "count = 4\nprofile = 'qemu-1.1'").machines) == 4


def test_a_device_without_msix_has_as_many_vectors_as_its_server_gives_it() -> None:
    """The limit of 32 is that of the MSI-X table of 2012 (row 9); with msi=off there is none."""
    assert loads(MACHINE + "vectors = 40\nprofile = 'qemu-1.1-intx'").machines[0].vectors == 40
    assert only(MACHINE + "vectors = 40\nprofile = 'qemu-1.1'").expected == "at most 32, as qemu-1.1 has"


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ('[machines.a]\nkind = "qemu"\nprofile = "qemu-plain"\n', "machines.a.profile", '"qemu-doorbell"'),
        ('[run]\nengine = "virtual"\n[machines.a]\nkind = "qemu"\n', "machines.a.kind", '"simulated"'),
        ('[machines.a]\nkind = "external"\n', "machines.a.program", "no program"),
        (
            "".join(f"[domains.d{number}]\n" for number in range(29))
            + f'[machines.a]\nkind = "qemu"\ndomains = {[f"d{number}" for number in range(29)]}\n',
            "machines.a.domains",
            "at most 28 domains",
        ),
    ],
    ids=["profile", "engine", "program", "domains"],
)
def test_what_a_real_qemu_cannot_be_or_do_is_a_problem(text: str, key: str, expected: str) -> None:
    text = text.replace("[machines.a]\n", '[machines.a]\nprogram = "idle"\n')
    problem = only(text)
    assert problem.key == key
    assert expected in problem.expected


MIGRATES = '[[timeline]]\nat_s = 1.0\ndo = "migrate"\nmachines = "a"\n'


@pytest.mark.parametrize(
    ("keys", "got"),
    [
        ('kind = "external"\n', '"a", of kind external'),
        ('kind = "qemu"\nguest = { disk = "none.img" }\n', '"a", whose guest has a disk'),
    ],
)
def test_the_run_migrates_machines_that_it_starts_and_that_have_no_disk(keys: str, got: str) -> None:
    problem = only(f"[machines.a]\n{keys}{MIGRATES}")
    assert (problem.key, problem.got) == ("timeline[0].machines", got)
    for runs in ('program = "idle"', 'guest = { kernel = "none" }'):
        assert loads(f'[machines.a]\nkind = "qemu"\n{runs}\n{MIGRATES}').timeline


def test_domains_that_are_no_array_are_one_problem() -> None:
    problem = only('[domains.a]\n[domains.b]\n[machines.m]\nprogram = "idle"\ndomains = "a"\n')
    assert (problem.key, problem.got, problem.hint) == ("machines.m.domains", '"a"', 'did you mean ["a"]?')


def test_each_plain_device_may_be_a_master() -> None:
    """They have no server, and so no ID 0 that only one can have."""
    text = "[machines.m]\ncount = 2\nvectors = 0\nprogram = 'idle'\nprofile = '{}'\nrole = 'master'\n"
    assert len(loads(text.format("qemu-plain")).machines) == 2
    with pytest.raises(TopologyError, match="master must connect to the server before any peers"):
        loads(text.format("qemu-doorbell").replace("vectors = 0\n", ""))
