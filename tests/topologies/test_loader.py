"""Valid topologies: defaults, names, indices, peers, sizes, overrides, and those that ship."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from nodes.device.profiles import PROFILES
from nodes.errors import UsageError
from nodes.wire.protocol import DIALECTS
from topologies import (
    Group,
    Machine,
    Memory,
    Problem,
    RunSettings,
    Topology,
    TopologyError,
    load,
    loads,
    shipped,
    starter_text,
)
from topologies.language.sizes import parse_size, show_size
from topologies.ringing_check import unreachable

MINIMAL = '[machines.a]\nprogram = "idle"\n'


def peers(text: str) -> dict[str, tuple[int, ...]]:
    """The peers in the parameter ``to`` of each machine, by its name."""
    return {machine.name: machine.parameters["to"] for machine in loads(text).machines if machine.parameters}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_domain_can_have_every_dialect(dialect: str) -> None:
    assert loads(f'{MINIMAL}[domains.main]\ndialect = "{dialect}"\n').domains[0].dialect == dialect


def test_absent_keys_have_defaults() -> None:
    topology = loads(MINIMAL, "some/where/quiet.toml")
    assert (topology.title, topology.seed) == ("quiet", 1)
    assert topology.run == RunSettings(duration_s=5.0, warmup_s=0.5, sample_every=16, on_death="fail")
    assert topology.memory == Memory(size_bytes=4 << 20, kind="shared_memory")
    assert topology.groups == (Group(name="a", program="idle"),)
    assert topology.machines == (
        Machine(
            index=0,
            name="a",
            group="a",
            vectors=1,
            role="peer",
            profile="qemu-doorbell",
            program="idle",
            parameters={},
        ),
    )
    assert topology.source_text == MINIMAL
    assert topology.eventfds == 1


def test_every_key_is_read() -> None:
    topology = loads(
        """
        title = "All of it"
        seed = 9223372036854775807
        [run]
        duration_s = 2
        warmup_s = 0
        sample_every = 0
        on_death = "degrade"
        [memory]
        size = "64K"
        kind = "memfd"
        [machines.a]
        count = 2
        vectors = 32
        role = "master"
        profile = "qemu-1.1"
        program = "storm"
        parameters = { to = "all", rate_hz = 10, burst = 3, arrivals = "poisson" }
        """
    )
    assert topology.title == "All of it"
    assert topology.seed == 2**63 - 1
    assert topology.run == RunSettings(duration_s=2.0, warmup_s=0.0, sample_every=0, on_death="degrade")
    assert isinstance(topology.run.duration_s, float)
    assert topology.memory == Memory(size_bytes=65536, kind="memfd")
    machine = topology.machines[1]
    assert (machine.vectors, machine.role, machine.profile) == (32, "master", "qemu-1.1")
    given = {"to": (0, 1), "rate_hz": 10.0, "burst": 3, "arrivals": "poisson"}
    assert given.items() <= machine.parameters.items()
    assert isinstance(machine.parameters["rate_hz"], float)
    assert topology.eventfds == 64


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [
        ("4096", 4096),
        ('"4096"', 4096),
        ('"4K"', 4096),
        ('"1M"', 1 << 20),
        ('"1024G"', 1 << 40),
        ("1048576", 1 << 20),
        ("0x400000", 4 << 20),
        ('"0x400000"', 4 << 20),
        ('"4m"', 4 << 20),
        ('"4k"', 4096),
        ('"1T"', 1 << 40),
        ('"0.5M"', 1 << 19),
        ('"4096b"', 4096),
    ],
)
def test_sizes(size: str, size_bytes: int) -> None:
    assert loads(f"[memory]\nsize = {size}\n{MINIMAL}").memory.size_bytes == size_bytes


@pytest.mark.parametrize(
    "size",
    [
        '"2K"',
        "2048",
        "5000",
        '"3M"',
        '"2048G"',
        '"4 M"',
        '"4MB"',
        '"-4M"',
        '"0x4M"',
        '"4096.5"',
        '"1P"',
        '"0"',
        '""',
        '"M"',
        "4096.0",
    ],
)
def test_sizes_that_no_bar_can_have(size: str) -> None:
    with pytest.raises(TopologyError) as caught:
        loads(f"[memory]\nsize = {size}\n{MINIMAL}")
    assert [(problem.line, problem.key) for problem in caught.value.problems] == [(2, "memory.size")]


@pytest.mark.parametrize(
    ("size", "hint"),
    [
        ('"1.5M"', "take 2M"),
        ('"31.25M"', "take 32M"),
        ("5000", "take 8K"),
        ('"2K"', "take 4K"),
        ('"2T"', "take 1T"),
        ('"4MB"', 'did you mean "4M"?'),
        ('"1.5 MiB"', 'did you mean "1.5M"?'),
    ],
)
def test_a_size_that_is_refused_names_one_that_is_taken(size: str, hint: str) -> None:
    with pytest.raises(TopologyError) as caught:
        loads(f"[memory]\nsize = {size}\n{MINIMAL}")
    assert [problem.hint for problem in caught.value.problems] == [hint]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("31.25M", 32_768_000), ("1.k", 1024), ("0x1b", 27), ("7", 7), ("1E", 1 << 60), ("0.0001k", 0), ("3b", 3)],
)
def test_sizes_are_read_as_qemu_reads_them(text: str, size_bytes: int) -> None:
    """util/cutils.c, qemu_strtosz: the b of 0x1b is a digit."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "M", "1.5", "1.5B", "0x4M", "-1", "1 M", "4MB", "4K\n", "\u0664K", "1e6"])
def test_a_text_that_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as"):
        parse_size(text)


@pytest.mark.parametrize(("size_bytes", "text"), [(0, "0"), (5000, "5000"), (1 << 20, "1M"), (1 << 40, "1T")])
def test_a_size_is_shown_as_it_is_written(size_bytes: int, text: str) -> None:
    assert show_size(size_bytes) == text
    assert parse_size(text) == size_bytes


def test_the_memory_has_a_name_if_the_file_gives_it_one() -> None:
    assert loads(MINIMAL).memory.name == ""
    assert loads(f"[memory]\nname = 'shm-7'\n{MINIMAL}").memory.name == "shm-7"
    two = loads(f"[domains.x]\nname = 'left'\n[domains.y]\n{MINIMAL}domains = ['x']\n")
    assert [domain.memory.name for domain in two.domains] == ["left", ""]


@pytest.mark.parametrize(
    ("text", "key", "got"),
    [
        ("[memory]\nname = 'a/b'\n", "memory.name", '"a/b"'),
        ("[memory]\nname = '..'\n", "memory.name", '".."'),
        ("[memory]\nname = ''\n", "memory.name", '""'),
        ("[memory]\nname = 'a'\nkind = 'memfd'\n", "memory.name", '"a"'),
        ("[domains.x]\nname = 'a'\n[domains.y]\nname = 'a'\n", "domains.y.name", '"a", as domain x has'),
    ],
)
def test_names_that_no_memory_can_have(text: str, key: str, got: str) -> None:
    with pytest.raises(TopologyError) as caught:
        loads(text + MINIMAL + ("domains = ['x']\n" if "domains" in text else ""))
    assert [(problem.key, problem.got) for problem in caught.value.problems] == [(key, got)]


def test_names_and_indices_follow_the_file() -> None:
    topology = loads(
        "".join(f"[machines.{name}]\nprogram = 'idle'\ncount = {count}\n" for name, count in [("z", 11), ("b", 1)])
        + "[machines.a]\nprogram = 'idle'\ncount = 10\n"
    )
    names = [machine.name for machine in topology.machines]
    assert names == [f"z-{place:02d}" for place in range(11)] + ["b"] + [f"a-{place}" for place in range(10)]
    assert [machine.index for machine in topology.machines] == list(range(22))
    assert [group.name for group in topology.groups] == ["z", "b", "a"]
    assert [machine.index for machine in topology.members("a")] == list(range(12, 22))
    with pytest.raises(UsageError):
        topology.members("c")


GROUPS = """
[machines.hub]
program = "idle"
[machines.far]
count = 2
program = "idle"
[machines.a]
count = 3
program = "storm"
"""


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ('"others"', [(0, 1, 2, 4, 5), (0, 1, 2, 3, 5), (0, 1, 2, 3, 4)]),
        ('"all"', [(0, 1, 2, 3, 4, 5)] * 3),
        ('"hub"', [(0,)] * 3),
        ('"far"', [(1, 2)] * 3),
        ('"a"', [(4, 5), (3, 5), (3, 4)]),
        ('"a-1"', [(4,)] * 3),
        ('["a-1", "hub"]', [(4, 0)] * 3),
        ('["a", "a-0"]', [(3, 4, 5), (3, 5), (3, 4)]),
        ('["far", "far-1", "far"]', [(1, 2)] * 3),
        ('["others", "all"]', [(0, 1, 2, 3, 4, 5)] * 3),
        ("[]", [()] * 3),
    ],
)
def test_names_stand_for_machines(to: str, expected: list[tuple[int, ...]]) -> None:
    found = peers(f"{GROUPS}parameters = {{ to = {to} }}\n")
    assert found == dict(zip(("a-0", "a-1", "a-2"), expected, strict=True))


def test_a_default_that_names_machines_is_resolved_too() -> None:
    assert peers(GROUPS) == {"a-0": (0, 1, 2, 4, 5), "a-1": (0, 1, 2, 3, 5), "a-2": (0, 1, 2, 3, 4)}


def test_a_machine_that_names_itself_is_kept() -> None:
    assert peers('[machines.solo]\nprogram = "storm"\nparameters = { to = "solo" }') == {"solo": (0,)}
    assert peers('[machines.solo]\nprogram = "storm"') == {"solo": ()}


def test_many_machines_share_what_they_name() -> None:
    topology = loads(
        '[machines.hub]\nprogram = "idle"\n[machines.a]\ncount = 60000\nprogram = "echo"\nparameters.to = "hub"'
    )
    assert len(topology.machines) == 60001
    assert topology.machines[-1].parameters["to"] is topology.machines[1].parameters["to"]


@pytest.mark.parametrize(
    ("key", "value", "look", "expected"),
    [
        ("machines.storm.count", "64", lambda t: len(t.machines), 64),
        ("machines.storm.parameters.rate_hz", "5", lambda t: t.machines[0].parameters["rate_hz"], 5.0),
        ("machines.storm.parameters.to", "all", lambda t: t.machines[0].parameters["to"], tuple(range(16))),
        ("machines.storm.parameters.to", '["storm-01"]', lambda t: t.machines[0].parameters["to"], (1,)),
        ("machines.storm.program", "idle", lambda t: t.groups[0].program, "idle"),
        ('machines."storm".vectors', "0x10", lambda t: t.eventfds, 256),
        ("memory.size", "64K", lambda t: t.memory.size_bytes, 65536),
        ("memory.kind", '"memfd"', lambda t: t.memory.kind, "memfd"),
        ("run.on_death", "degrade", lambda t: t.run.on_death, "degrade"),
        ("run.duration_s", "0.25", lambda t: t.run.duration_s, 0.25),
        ("title", "two words", lambda t: t.title, "two words"),
        ("seed", "7", lambda t: t.seed, 7),
    ],
)
def test_overrides(key: str, value: str, look: Any, expected: object) -> None:
    overrides = {key: value}
    if value == "idle":
        overrides["machines.storm.parameters"] = "{}"
    topology = load("doorbell_storm", overrides)
    assert look(topology) == expected
    assert topology.overrides == overrides
    assert topology.source_text == load("doorbell_storm").source_text


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("machines.strom.count", "3", 'did you mean "storm"?'),
        ("machines.storm.cuont", "3", 'did you mean "count"?'),
        ("machine.storm.count", "3", 'did you mean "machines"?'),
        ("seed", "[1", ""),
        ("seed", "1\nx = 2", ""),
        ("title", "x" * 5000, ""),
        ("seed.x", "1", ""),
        ("", "1", ""),
        ("a..b", "1", ""),
        (".".join("abcdefghijklmnopqrstuvwxyz"), "1", ""),
        ("seed", "[" * 100, ""),
        ("run.duration_s", "inf", ""),
        ("machines.storm.count", "1000000000", ""),
        ("machines.storm.count", "", ""),
    ],
)
def test_a_bad_override_is_a_problem_that_names_it(key: str, value: str, hint: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load("doorbell_storm", {key: value})
    (problem,) = caught.value.problems
    assert problem.file.startswith(f"--set {key}"[:40])
    assert problem.line == 0
    assert hint in problem.hint


def test_overrides_and_the_file_are_judged_together() -> None:
    with pytest.raises(TopologyError) as caught:
        loads("sed = 1\n" + MINIMAL, "x.toml", {"machines.b.count": "2", "run.warmup_s": "-1"})
    assert [problem.key for problem in caught.value.problems] == ["machines.b.count", "run.warmup_s", "sed"]


def test_shipped_topologies_load_and_have_titles() -> None:
    found = dict(shipped())
    assert set(found) >= {"ping_pong", "doorbell_storm", "fan_in", "storm_64"}
    for name, title in found.items():
        topology = load(name)
        assert topology.title == title
        assert title
        assert topology.source_text.startswith("# "), "it begins with what to look at"
        assert topology.source_text.count("\n") <= 66, "at most a page"
        assert not unreachable(topology), name
    file = Path(shipped.__code__.co_filename).parent / "scenarios" / "ping_pong.toml"
    assert load(file) == load(str(file)) == load("ping_pong")


def test_shipped_topologies_have_their_documented_sizes() -> None:
    storm = load("doorbell_storm")
    assert (len(storm.machines), storm.eventfds, storm.run.duration_s) == (16, 64, 5.0)
    assert all(len(machine.parameters["to"]) == 15 for machine in storm.machines)
    assert (len(load("storm_64").machines), load("storm_64").eventfds) == (64, 256)
    ping = load("ping_pong")
    assert [(machine.program, machine.parameters["to"]) for machine in ping.machines] == [
        ("ping", (1,)),
        ("echo", (0,)),
    ]
    fan_in = load("fan_in")
    assert {machine.parameters.get("to") for machine in fan_in.machines} == {None, (0,)}


def test_a_bare_word_is_a_shipped_topology_then_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ping_pong").write_text(MINIMAL)
    Path("mine").write_text(MINIMAL)
    assert load("ping_pong").title == "Ping and echo: the price of one interrupt"
    assert load("./ping_pong").title == "ping_pong"
    assert load("mine").title == "mine"
    with pytest.raises(TopologyError, match='did you mean "ping_pong"'):
        load("pingpong")
    with pytest.raises(TopologyError):
        load("nul\0byte")
    with pytest.raises(TopologyError):
        load("")


def test_the_starting_file_loads() -> None:
    topology = loads(starter_text())
    assert len(topology.machines) == 4
    assert starter_text().count("#") > 15


def test_every_profile_can_be_named() -> None:
    for name, made in PROFILES.items():
        domain = f'domains.d = {{ version = {made.version}, size = "1M" }}\n'
        assert loads(domain + MINIMAL + f'profile = "{name}"\n').machines[0].profile == name


def test_a_machine_has_no_more_vectors_than_its_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"qemu-doorbell": replace(PROFILES["qemu-doorbell"], msix_limit=2)}
    monkeypatch.setattr("topologies.resolve.machines.PROFILES", small)
    assert loads(MINIMAL + "vectors = 2").eventfds == 2
    with pytest.raises(TopologyError, match="at most 2, as qemu-doorbell has"):
        loads(MINIMAL + "vectors = 3")


def test_a_topology_travels_between_processes_and_cannot_be_changed() -> None:
    topology = load("fan_in")
    assert pickle.loads(pickle.dumps(topology)) == topology  # noqa: S301 - our own bytes
    for value, field in ((topology, "seed"), (topology.machines[0], "index"), (topology.run, "warmup_s")):
        with pytest.raises(AttributeError):
            setattr(value, field, 3)
    with pytest.raises(TopologyError) as caught:
        loads("x = 1")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert again.problems == caught.value.problems


@pytest.mark.parametrize(
    "make",
    [
        lambda: RunSettings(duration_s=0.0),
        lambda: RunSettings(duration_s=float("nan")),
        lambda: RunSettings(warmup_s=-0.1),
        lambda: RunSettings(sample_every=True),
        lambda: RunSettings(on_death="explode"),  # type: ignore[arg-type]
        lambda: Memory(size_bytes=4097),
        lambda: Memory(size_bytes=2048),
        lambda: Memory(kind="memfd", name="a"),
        lambda: Memory(name="a/b"),
        lambda: Memory(kind="file"),  # type: ignore[arg-type]
        lambda: Group(name="a/b", program="idle"),
        lambda: Group(name="a", program="idle", count=0),
        lambda: Group(name="a", program="", count=1),
        lambda: Group(name="a\n", program="idle"),
    ],
)
def test_the_model_checks_itself(make: Any) -> None:
    with pytest.raises(UsageError):
        make()


@pytest.mark.parametrize("fault", ["order", "names", "group", "none", "seed", "title"])
def test_a_topology_checks_that_its_parts_agree(fault: str) -> None:
    good = load("ping_pong")
    first, second = good.machines
    renamed = Machine(**{**{f: getattr(second, f) for f in second.__struct_fields__}, "name": first.name})
    changed: dict[str, dict[str, Any]] = {
        "order": {"machines": (second, first)},
        "names": {"machines": (first, renamed)},
        "group": {"machines": (first,)},
        "none": {"machines": (), "groups": ()},
        "seed": {"seed": -1},
        "title": {"title": "x" * 500},
    }
    fields = {field: getattr(good, field) for field in good.__struct_fields__}
    assert Topology(**fields) == good
    with pytest.raises(UsageError, match="Topology"):
        Topology(**{**fields, **changed[fault]})


def test_a_role_that_is_not_given_is_the_devices_default():
    def roles(profile):
        topology = loads(f'[machines.a]\ncount = 2\nprofile = "{profile}"\nprogram = "idle"\n')
        return {machine.role for machine in topology.machines}

    assert roles("qemu-doorbell") == {"peer"}
    assert roles("qemu-1.1") == {"master"}


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [("", 'role = "master"', 5), ('role = "master"\ncount = 2', "", 3), ('role = "master"', "", None)],
)
def test_a_master_is_peer_0_or_is_refused_before_it_would_be(first, second, line):
    text = f'[machines.a]\nprogram = "idle"\n{first}\n[machines.b]\n{second}\nprogram = "idle"\n'
    if line is None:
        assert [machine.role for machine in loads(text).machines] == ["master", "peer"]
        return
    with pytest.raises(TopologyError) as caught:
        loads(text)
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (line, f"machines.{'a' if line == 3 else 'b'}.role")


@pytest.mark.parametrize(
    ("value", "key", "got"),
    [
        (0.5, "run.duration_s", 0.5),
        (7, "seed", 7),
        (True, "run.only_migratable", True),
        (np.int64(7), "seed", 7),
        (np.float32(0.5), "run.duration_s", 0.5),
        (np.bool_(True), "run.only_migratable", True),
        (Path("a b"), "title", "a b"),
        ("two words", "title", "two words"),
        ("\u00e9 \U0001f514 \x7f", "title", None),
        ('say "hi"', "title", 'say "hi"'),
    ],
)
def test_overrides_are_values_of_python_too(value: object, key: str, got: object) -> None:
    text = MINIMAL + "role = 'master'\n"
    if got is None:
        (problem,) = refused_overrides(text, {key: value})
        assert problem.expected == "one line of printable characters"
        return
    topology = loads(text, overrides={key: value})
    table, _, name = key.rpartition(".")
    assert getattr(topology.run if table else topology, name) == got
    again = loads(text, overrides=topology.overrides)
    assert again == topology, "the texts that are kept make the same topology again"


@pytest.mark.parametrize("cpus", [[0, 2], (0, 2), np.array([0, 2]), range(0, 4, 2)])
def test_overrides_are_arrays_and_tables_too(cpus: object) -> None:
    (machine,) = loads(MINIMAL, overrides={"machines.a": {"program": "idle", "cpus": cpus}}).machines
    assert machine.scheduling.cpus == (0, 2)


@pytest.mark.parametrize(
    "overrides", [{"seed": None}, {"seed": b"1"}, {"seed": [object()]}, {3: "1"}, {"seed": {1, 2}}]
)
def test_an_override_that_toml_cannot_write_is_refused_in_words(overrides: Any) -> None:
    with pytest.raises(UsageError, match=r"^overrides.*expected"):
        loads(MINIMAL, overrides=overrides)


def refused_overrides(text: str, overrides: dict[str, object]) -> tuple[Problem, ...]:
    with pytest.raises(TopologyError) as caught:
        loads(text, overrides=overrides)
    return caught.value.problems
