"""Phases, timeline, expectations and matrix: their values, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from topologies import Condition, Expectation, Phase, Problem, TimelineEntry, TopologyError, loads
from topologies.actions import ACTIONS, Kill, MachineAction, Migrate, StopServer, fields_of
from topologies.language.matrix import MAX_CELLS
from topologies.language.tables import EntryTable, keys_of
from topologies.language.values import MisfitError
from topologies.metrics import LIVE, METRICS, find_metric, parse_condition, parse_owner
from topologies.resolve.timeline import MAX_ACTIONS
from topologies.schedule import COMPARISONS

GROUPS = """[machines.a]
count = 4
vectors = 3
program = "idle"
[machines.b]
program = "idle"
[machines.away]
count = 2
absent = true
program = "idle"
"""
LINES = GROUPS.count("\n")


def refused(text: str, **overrides: str) -> list[Problem]:
    with pytest.raises(TopologyError) as caught:
        loads(text, "bad.toml", {key.replace("__", "."): value for key, value in overrides.items()})
    return list(caught.value.problems)


def where(problems: list[Problem]) -> list[tuple[int, str]]:
    return [(problem.line, problem.key) for problem in problems]


# Phases


def test_phases_are_the_times_of_the_run() -> None:
    topology = loads(
        GROUPS + "[[phases]]\nname='w'\nduration_s=1\nmeasured=false\nload=[0,0.5]\n"
        "[[phases]]\nname='v'\nduration_s=0.5\nmeasured=false\n"
        "[[phases]]\nname='x'\nduration_s=2\nload=3\n[[phases]]\nname='y'\nduration_s=4\nmeasured=false\n"
    )
    assert topology.phases == (
        Phase(name="w", duration_s=1.0, load=(0.0, 0.5), measured=False),
        Phase(name="v", duration_s=0.5, measured=False),
        Phase(name="x", duration_s=2.0, load=(3.0, 3.0)),
        Phase(name="y", duration_s=4.0, measured=False),
    )
    assert (topology.run.warmup_s, topology.run.duration_s) == (1.5, 6.0)


def test_without_phases_there_are_the_warmup_and_the_rest() -> None:
    phases = loads(GROUPS + "[run]\nduration_s = 3\nwarmup_s = 1\n").phases
    assert [(phase.name, phase.duration_s, phase.measured) for phase in phases] == [
        ("warmup", 1.0, False),
        ("measured", 3.0, True),
    ]


PHASE = "[[phases]]\nname = 'x'\nduration_s = 2\n"


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[run]\nduration_s = 3\n" + PHASE, 2, "run.duration_s"),
        ("[run]\nwarmup_s = 0.5\n" + PHASE, 2, "run.warmup_s"),
        (PHASE + PHASE, 5, "phases[1].name"),
        (PHASE + "measured = false", 1, "phases"),
        (PHASE + "load = -1", 4, "phases[0].load"),
        (PHASE + "load = [1]", 4, "phases[0].load"),
        (PHASE + "load = [1, 2, 3]", 4, "phases[0].load"),
        (PHASE + "load = 'high'", 4, "phases[0].load"),
        (PHASE + "load = nan", 4, "phases[0].load"),
        (PHASE + "lod = 1", 4, "phases[0].lod"),
        ("[[phases]]\nname = 'x'\n", 1, "phases[0].duration_s"),
        ("[[phases]]\nduration_s = 3\n", 1, "phases[0].name"),
        ("[[phases]]\nname = 'x y'\nduration_s = 3\n", 2, "phases[0].name"),
        ("[[phases]]\nname = 'x'\nduration_s = 0\n", 3, "phases[0].duration_s"),
        (PHASE + "[[phases]]\nname = 'y'\nduration_s = 604800\n", 1, "phases"),
        ("[phases]\nname = 'x'\nduration_s = 3\n", 1, "phases"),
    ],
)
def test_phases_that_are_none(text: str, line: int, key: str) -> None:
    assert where(refused(text + "\n" + GROUPS)) == [(line, key)]


def test_an_override_cannot_set_times_that_the_phases_set() -> None:
    (problem,) = refused(PHASE + GROUPS, run__duration_s="3")
    assert (problem.file, problem.key) == ("--set run.duration_s=3", "run.duration_s")
    assert loads(PHASE + GROUPS, overrides={"phases.0.duration_s": "7"}).run.duration_s == 7.0
    for key in ("phases.1.duration_s", "phases.x.duration_s", "phases.-1.duration_s", "phases.duration_s"):
        (problem,) = refused(PHASE + GROUPS, **{key.replace(".", "__"): "7"})
        assert problem.file == f"--set {key}=7"


# The timeline


def test_an_action_of_every_kind_is_read() -> None:
    values: dict[str, tuple[str, object]] = {
        "vectors": ("[0, 2]", (0, 2)),
        "delay_us": ("5", 5.0),
        "message": ("'half_message'", "half_message"),
        "domain": ("'main'", "main"),
        "to_domain": ("'main'", "main"),
        "fault": ("'cancel'", "cancel"),
        "hand_over": ("true", True),
    }
    text = GROUPS
    for do, action in ACTIONS.items():
        machines = "" if not issubclass(action, MachineAction) else f"machines = '{'away' if do == 'join' else 'a'}'\n"
        text += f"[[timeline]]\nat_s = 1\ndo = '{do}'\n{machines}"
        text += "".join(f"{key} = {values[key][0]}\n" for key in fields_of(action))
    timeline = loads(text).timeline
    assert [entry.action for entry in timeline] == [
        action(**{key: values[key][1] for key in fields_of(action)}) for action in ACTIONS.values()
    ]
    assert [entry.action.do for entry in timeline] == list(ACTIONS)
    assert all(text.split("\n")[entry.line - 1] == "[[timeline]]" for entry in timeline)
    assert timeline[0].machines == (5, 6)
    assert timeline[-1].machines == ()


def test_a_key_that_several_actions_take_means_the_same_in_each() -> None:
    declared: dict[str, object] = {}
    for action in ACTIONS.values():
        for key, annotation in fields_of(action).items():
            assert declared.setdefault(key, annotation) == annotation
            assert key not in EntryTable.__struct_fields__


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ("qemu-1.1", ""),
        ("qemu-1.1-intx", ""),
        ("qemu-1.1-shm", "gets none from a server"),
        ("qemu-plain", "gets none from a server"),
        ("qemu-doorbell", "waits for it"),
    ],
)
def test_memory_is_late_for_devices_of_2012_only(profile: str, why: str) -> None:
    text = f"[machines.m]\nprogram = 'idle'\nprofile = '{profile}'\n"
    text += "[[timeline]]\nat_s = 1\ndo = 'migrate'\nmachines = 'm'\nfault = 'late_memory'\n"
    if why:
        (problem,) = refused(text)
        assert problem.got.endswith(why)
    else:
        assert loads(text).timeline[0].action == Migrate(fault="late_memory")


def test_when_and_how_often() -> None:
    (action,) = loads(
        GROUPS + "[[timeline]]\nat_s=0.5\nwhen='delivered >= 1_000'\nof='a'\ndo='kill'\n"
        "machines=['a', 'b']\npick=2\nevery_s=0.25\nrepeat=3\nperiod_s=1\n"
    ).timeline
    assert action == TimelineEntry(
        action=Kill(),
        at_s=0.5,
        when=Condition(metric="delivered", comparison=">=", bound=1000.0, of="a"),
        machines=(0, 1, 2, 3, 4),
        pick=2,
        every_s=0.25,
        repeat=3,
        period_s=1.0,
        line=LINES + 1,
    )
    (stop,) = loads(GROUPS + "[[timeline]]\nat_s = 1\ndo = 'stop_server'").timeline
    assert stop.action == StopServer(domain="main"), "the only one"


def action(text: str) -> str:
    return GROUPS + "[[timeline]]\n" + text


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("at_s = 1\nmachines = 'a'", 1, "do"),
        ("at_s = 1\nmachines = 'a'\ndo = 'kil'", 4, "do"),
        ("machines = 'a'\ndo = 'kill'", 1, "at_s"),
        ("at_s = -1\nmachines = 'a'\ndo = 'kill'", 2, "at_s"),
        ("at_s = 5.5\nmachines = 'a'\ndo = 'kill'", 2, "at_s"),
        ("at_s = 1\ndo = 'kill'", 1, "machines"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'others'", 4, "machines"),
        ("at_s = 1\ndo = 'kill'\nmachines = ['a', 'c']", 4, "machines[1]"),
        ("at_s = 1\ndo = 'kill'\nmachines = []", 4, "machines"),
        ("at_s = 1\ndo = 'kill'\nmachines = { ring = 'a' }", 4, "machines"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'a'\npick = 5", 5, "pick"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'a'\npick = 0", 5, "pick"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'a'\nvectors = [0]", 5, "vectors"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'a'\nvector = [0]", 5, "vector"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'a'\ndelay_us = 3", 5, "delay_us"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'a'\nrepeat = 2", 1, "period_s"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'a'\nrepeat = 100001\nperiod_s = 1", 5, "repeat"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'a'\nof = 'a'", 5, "of"),
        ("when = 'delivered'\ndo = 'kill'\nmachines = 'a'", 2, "when"),
        ("when = 'delivered > many'\ndo = 'kill'\nmachines = 'a'", 2, "when"),
        ("when = 'delivered > 1e999'\ndo = 'kill'\nmachines = 'a'", 2, "when"),
        ("when = 'p99_us > 3'\ndo = 'kill'\nmachines = 'a'", 2, "when"),
        ("when = 'delivred > 3'\ndo = 'kill'\nmachines = 'a'", 2, "when"),
        ("when = 'delivered > 3'\nof = 'c'\ndo = 'kill'\nmachines = 'a'", 3, "of"),
        ("at_s = 1\ndo = 'mask'\nmachines = ['a', 'b']\nvectors = [0, 1]", 5, "vectors[1]"),
        ("at_s = 1\ndo = 'fill'\nmachines = 'a'\nvectors = [3]", 5, "vectors[0]"),
        ("at_s = 1\ndo = 'fill'\nmachines = 'a'\nvectors = 3", 5, "vectors"),
        ("at_s = 1\ndo = 'garble'\nmachines = 'a'\nmessage = 'hello'", 5, "message"),
        ("at_s = 1\ndo = 'migrate'\nmachines = 'a'\nfault = 'fire'", 5, "fault"),
        ("at_s = 1\ndo = 'migrate'\nmachines = 'a'\nfault = 'late_memory'", 4, "machines"),
        ("at_s = 1\ndo = 'migrate'\nmachines = 'a'\nfault = 'late_memory'\nhand_over = true", 5, "fault"),
        ("at_s = 1\ndo = 'migrate'\nmachines = 'a'\nto_domain = 'left'", 5, "to_domain"),
        ("at_s = 1\ndo = 'stop_server'\nmachines = 'a'", 4, "machines"),
        ("at_s = 1\ndo = 'stop_server'\ndomain = 'left'", 4, "domain"),
        ("at_s = 1\ndo = 'join'\nmachines = 'a'", 4, "machines"),
        ("at_s = 1\ndo = 'kill'\nmachines = 'away'", 4, "machines"),
        ("at_s = 1\ndo = 'slow'\nmachines = 'a'", 1, "delay_us"),
    ],
)
def test_actions_that_make_no_sense(text: str, line: int, key: str) -> None:
    assert where(refused(action(text))) == [(LINES + line, f"timeline[0].{key}")]


def test_an_unknown_key_lists_the_keys_of_the_action() -> None:
    (problem,) = refused(action("at_s = 1\ndo = 'slow'\nmachines = 'a'\ndelay_us = 1\nvectors = [0]"))
    assert (
        problem.expected == "for slow: do, at_s, when, of, console, repeat, period_s, machines, pick, every_s, delay_us"
    )
    for do in ACTIONS:
        assert ("machines" in keys_of(do)) == issubclass(ACTIONS[do], MachineAction)


BRIDGED = """
[domains.l]
[domains.r]
[machines.a]
program = 'idle'
domains = ['l']
[machines.bridge]
program = 'idle'
domains = ['l', 'r']
"""


def test_migrations_that_could_never_begin() -> None:
    text = BRIDGED + "[[timeline]]\nat_s = 1\ndo = 'migrate'\n"
    assert where(refused(text + "machines = 'all'")) == [(13, "timeline[0].machines")]
    handed = text + "machines = 'a'\nto_domain = 'r'\nhand_over = true\n"
    assert where(refused(handed)) == [(14, "timeline[0].to_domain")]
    loads(handed.replace("'r'\nhand", "'l'\nhand"))
    # It may have moved there before.
    loads(handed + "[[timeline]]\nat_s = 0.5\ndo = 'migrate'\nmachines = 'a'\nto_domain = 'r'\n")


def test_a_server_of_several_domains_must_be_named() -> None:
    text = "[domains.l]\n[domains.r]\n[machines.a]\nprogram = 'idle'\ndomains = ['l']\n[[timeline]]\nat_s = 1\n"
    assert where(refused(text + "do = 'stop_server'")) == [(6, "timeline[0].domain")]
    assert loads(text + "do = 'stop_server'\ndomain = 'r'").timeline[0].action == StopServer(domain="r")


def test_the_devices_of_masked_machines_have_msix() -> None:
    one = "[machines.a]\nprogram = 'idle'\nprofile = '{}'\nvectors = {}\n"
    one += "[[timeline]]\nat_s = 1\nmachines = 'a'\ndo = '{}'"
    assert loads(one.format("qemu-1.1-intx", 1, "fill")).timeline
    for profile, vectors, do in (("qemu-1.1-intx", 1, "mask"), ("qemu-plain", 0, "unmask"), ("qemu-plain", 0, "fill")):
        assert where(refused(one.format(profile, vectors, do))) == [(7, "timeline[0].machines")]


@pytest.mark.parametrize(
    ("actions", "wrong"),
    [
        ([(1, "leave", "a"), (2, "join", "a")], None),
        ([(1, "kill", "a"), (2, "join", "a")], None),
        ([(1, "unplug", "a-1"), (2, "join", "a-1")], None),
        ([(2, "join", "a"), (1, "leave", "a")], None),
        ([(1, "join", "a"), (2, "leave", "a")], 0),
        ([(1, "leave", "a-0"), (2, "join", "a")], 1),
        ([(1, "stall", "a"), (2, "join", "a")], 1),
        ([(1, "join", "away"), (2, "kill", "away"), (3, "join", "away")], None),
        ([(2, "join", "away"), (1, "stall", "away")], 1),
        ([("rung > 3", "leave", "a"), (1, "join", "a")], None),
        ([(3, "leave", "a"), ("rung > 3", "join", "a")], None),
        ([("rung > 3", "join", "a")], 0),
    ],
)
def test_only_absent_machines_join(actions: list[tuple[Any, str, str]], wrong: int | None) -> None:
    text = GROUPS
    for at, do, machines in actions:
        moment = f"at_s = {at}" if isinstance(at, int) else f"when = '{at}'"
        text += f"[[timeline]]\n{moment}\ndo = '{do}'\nmachines = '{machines}'\n"
    if wrong is None:
        assert len(loads(text).timeline) == len(actions)
    else:
        assert where(refused(text)) == [(LINES + 4 * wrong + 4, f"timeline[{wrong}].machines")]


def test_too_many_actions_are_refused_before_they_are_made() -> None:
    one = "[[timeline]]\nat_s = 1\ndo = 'stall'\nmachines = 'a'\nrepeat = 50000\nperiod_s = 1e-5\n"
    assert len(loads(GROUPS + one * (MAX_ACTIONS // 200_000)).timeline) == 5
    problems = refused(GROUPS + one * (MAX_ACTIONS // 200_000 + 1))
    assert where(problems) == [(LINES + 35, "timeline[5].repeat")]


def test_the_ends_of_phases_are_the_end_of_the_run() -> None:
    late = action("at_s = 1.9\ndo = 'kill'\nmachines = 'a'")
    assert loads(PHASE + late).timeline
    assert where(refused(PHASE + late.replace("1.9", "2"))) == [(LINES + 5, "timeline[0].at_s")]
    assert where(refused(late, run__duration_s="0.5")) == [(LINES + 2, "timeline[0].at_s")]


# Figures and expectations


def test_expectations_are_read() -> None:
    topology = loads(
        GROUPS
        + "[[expect]]\nthat='p99_us<500'\n[[expect]]\nthat=' refused == 0 '\nof='a'\nabort=true\n"
        "[[expect]]\nthat='lag.p99_9_ms >= -1.5e3'\nof='a->b-0:0'\n".replace("b-0", "b")
        + "[[expect]]\nthat='statistics.sent_twice != 0'\nof='a-3'\n"
    )
    assert topology.expectations == (
        Expectation(that=Condition(metric="total.p99_us", comparison="<", bound=500.0)),
        Expectation(that=Condition(metric="refused", comparison="==", bound=0.0, of="a"), abort=True),
        Expectation(that=Condition(metric="lag.p99_9_ms", comparison=">=", bound=-1500.0, of="a -> b:0")),
        Expectation(that=Condition(metric="statistics.sent_twice", comparison="!=", bound=0.0, of="a-3")),
    )


@pytest.mark.parametrize(
    ("text", "line", "key", "hint"),
    [
        ("of = 'a'", 1, "that", ""),
        ("that = 'p99_us'", 2, "that", ""),
        ("that = 'p99_us < 500 us'", 2, "that", ""),
        ("that = 'p99_us << 5'", 2, "that", ""),
        ("that = 'p99us < 500'", 2, "that", 'did you mean "p99_us"?'),
        ("that = 'p98_us < 500'", 2, "that", "did you mean"),
        ("that = 'delivery.p99 < 500'", 2, "that", 'did you mean "delivery.p99_us"?'),
        ("that = 'refusd == 0'", 2, "that", 'did you mean "refused"?'),
        ("that = 'statistics. == 0'", 2, "that", ""),
        ("that = 'rung > nan'", 2, "that", ""),
        ("that = 3", 2, "that", ""),
        ("that = 'p99_us < 5'\nabort = true", 2, "that", ""),
        ("that = 'rung > 5'\nof = 'c'", 3, "of", ""),
        ("that = 'rung > 5'\nof = 'all'", 3, "of", ""),
        ("that = 'rung > 5'\nof = 'awya'", 3, "of", 'did you mean "away"?'),
        ("that = 'rung > 5'\nof = 'a -> c'", 3, "of", ""),
        ("that = 'rung > 5'\nof = 'a -> b:1'", 3, "of", ""),
        ("that = 'rung > 5'\nof = 'a -> '", 3, "of", ""),
        ("that = 'rung > 5'\nof = 'b:1'", 3, "of", ""),
        ("that = 'rung > 5'\nof = 'c:1'", 3, "of", ""),
        ("that = 'died == 0'\nof = 'a:1'", 3, "of", ""),
        ("that = 'dropped == 0'\nof = 'a-1'", 3, "of", ""),
        ("that = 'ready_s < 5'\nof = 'a'", 3, "of", ""),
        ("that = 'rss_mib > 5'\nof = 'a -> b'", 3, "of", ""),
        ("that = 'duration_s > 5'\nof = 'a'", 3, "of", ""),
        ("that = 'rung > 5'\nabrot = true", 3, "abrot", 'did you mean "abort"?'),
    ],
)
def test_expectations_that_are_none(text: str, line: int, key: str, hint: str) -> None:
    (problem,) = refused(GROUPS + "[[expect]]\n" + text)
    assert (problem.line, problem.key) == (LINES + line, f"expect[0].{key}")
    assert hint in problem.hint


def test_every_metric_has_a_meaning_and_can_be_compared() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.doc
        assert metric.of
        assert metric.live or not metric.grows
        for spelling in (name, *metric.aliases):
            for comparison in COMPARISONS:
                condition = parse_condition(f"{spelling}{comparison}2.5")
                assert (condition.metric, condition.comparison, condition.bound) == (name, comparison, 2.5)
    assert set(LIVE) == {name for name, metric in METRICS.items() if metric.live}
    with pytest.raises(MisfitError):
        parse_condition("p99_us < 3", live=True)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("max_ms", "total.max_ms"),
        ("p99.9_us", "total.p99_9_us"),
        ("p99_9_us", "total.p99_9_us"),
        ("delivery.p99.99_s", "delivery.p99_99_s"),
        ("unrung", "missed"),
        ("rate_hz", "doorbells_per_s"),
    ],
)
def test_metrics_have_other_spellings(spelling: str, name: str) -> None:
    assert find_metric(spelling) == METRICS[name]
    (expectation,) = loads(GROUPS + f"[[expect]]\nthat = '{spelling} < 5'\nallow_empty = true").expectations
    assert expectation == Expectation(that=Condition(metric=name, comparison="<", bound=5.0), allow_empty=True)


@pytest.mark.parametrize(
    "spelling", ["p9.9_us", "p99.9", "p99..9_us", "p99.9.9_us", "total.total.p50_us", "p99.999_us"]
)
def test_spellings_of_no_metric(spelling: str) -> None:
    with pytest.raises(MisfitError):
        find_metric(spelling)


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("a -> b", ("a", "b", None)),
        (" a-1->b-2 : 17 ", ("a-1", "b-2", 17)),
        ("a", (None, "a", None)),
        (" a:1 ", (None, "a", 1)),
        ("a->b:", (None, "a->b:", None)),
        ("a -> b -> c", (None, "a -> b -> c", None)),
        ("a:b:1", (None, "a:b:1", None)),
    ],
)
def test_owners_of_metrics(text: str, owner: tuple[str | None, str, int | None]) -> None:
    assert parse_owner(text) == owner


def test_an_expectation_of_a_vector() -> None:
    (expectation,) = loads(GROUPS + "[[expect]]\nthat = 'delivered > 1'\nof = ' a : 2'").expectations
    assert expectation.that.of == "a:2"


def test_both_mistakes_of_an_entry_are_told() -> None:
    problems = refused(GROUPS.replace("[machines.a]\n", "[machines.a]\npolicy = 'idle'\npriority = 2\nnice = 5\n"))
    assert [problem.key for problem in problems] == ["machines.a.priority", "machines.a.nice"]
    for first in ("refusd == 0", "refused = 0"):
        problems = refused(GROUPS + f"[[expect]]\nthat = '{first}'\nof = 'awya'")
        assert [problem.key for problem in problems] == ["expect[0].that", "expect[0].of"]
    problems = refused(action("when = 'x > 1'\nof = 'awya'\ndo = 'kil'\nmachines = 'awya'\nrepeat = 2"))
    keys = ("period_s", "when", "of", "do", "machines")
    assert [problem.key for problem in problems] == [f"timeline[0].{key}" for key in keys]


# The matrix


def test_a_matrix_holds_what_set_would_be_given() -> None:
    matrix = loads(
        GROUPS + "[matrix]\n'machines.a.count' = [2, 4]\n'run.on_death' = ['fail', 'degrade']\n"
        "'machines.a.cpus' = [[0, 1], '0-3']\n'run.duration_s' = [6, 7.5]\ntitle = ['5', ' x', 'say \"hi\"']\n"
        "'machines.a.absent' = [true, false]\n'machines.b.program' = ['echo']\n"
        "'run' = [{ on_death = 'degrade', warmup_s = 1 }]\n"
    ).matrix
    assert matrix == {
        "machines.a.count": ("2", "4"),
        "run.on_death": ("fail", "degrade"),
        "machines.a.cpus": ("[0, 1]", "0-3"),
        "run.duration_s": ("6", "7.5"),
        "title": ('"5"', '" x"', 'say "hi"'),
        "machines.a.absent": ("true", "false"),
        "machines.b.program": ("echo",),
        "run": ('{ "on_death" = "degrade", "warmup_s" = 1 }',),
    }
    for key, values in matrix.items():
        for value in values:
            assert loads(GROUPS, overrides={key: value})


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("'machines.c.count' = [2]", 2, 'matrix."machines.c.count"[0]'),
        ("'machines.a.cuont' = [2]", 2, 'matrix."machines.a.cuont"[0]'),
        ("'machines.a.count' = [2, 0]", 2, 'matrix."machines.a.count"[1]'),
        ("'machines.a.count' = [2, 2]", 2, 'matrix."machines.a.count"[1]'),
        ("'machines.a.count' = []", 2, 'matrix."machines.a.count"'),
        ("'machines.a.count' = 2", 2, 'matrix."machines.a.count"'),
        ("machines.a.count = [2]", 2, "matrix.machines"),
        ("'a..b' = [2]", 2, 'matrix."a..b"[0]'),
        ("'matrix.seed' = [2]", 2, 'matrix."matrix.seed"'),
        ("seed = [1979-05-27]", 2, "matrix.seed[0]"),
        ("seed = [\n1,\n-1]", 4, "matrix.seed[1]"),
    ],
)
def test_a_matrix_is_tried_before_it_is_run(text: str, line: int, key: str) -> None:
    problems = refused(GROUPS + "[matrix]\n" + text)
    assert where(problems) == [(LINES + line, key)]


def test_a_matrix_is_not_too_large() -> None:
    axes = "".join(f"'machines.a.override.{place}.nice' = [{', '.join(map(str, range(19)))}]\n" for place in range(4))
    (problem,) = refused(GROUPS + "[matrix]\n" + axes)
    assert (problem.key, problem.got) == ("matrix", str(19**4))
    assert MAX_CELLS < 19**4
    assert len(refused(GROUPS + "[matrix]\n" + "".join(f"k{i} = [1]\n" for i in range(100)))) == 1


def test_the_first_values_of_a_large_matrix_are_tried() -> None:
    text = "[machines.a]\ncount = 30000\nprogram = 'idle'\n[matrix]\nseed = [{}]\n'run.warmup_s' = [{}]\n"
    assert where(refused(text.format("-1, 2", "0, 1"))) == [(5, "matrix.seed[0]")]
    assert where(refused(text.format("1, 2", "-1, 2"))) == [(6, 'matrix."run.warmup_s"[0]')]
    assert loads(text.format("1, -1", "0, -1")).matrix["seed"] == ("1", "-1"), "found when that cell is run"


def test_all_problems_of_phases_timeline_and_expectations_are_told_at_once() -> None:
    problems = refused(
        "[[phases]]\nname = 'x'\nduration_s = -1\n[[timeline]]\nat_s = 1\ndo = 'kill'\n"
        "[[expect]]\nthat = 'x < 1'\n[matrix]\nseed = 3\n" + GROUPS
    )
    assert [problem.line for problem in problems] == [3, 4, 8, 10]
    assert all(re.fullmatch(r"bad\.toml", problem.file) for problem in problems)


GUEST = "[machines.a]\nkind = 'qemu'\nguest = { disk = 'none.img' }\n"


def test_an_entry_waits_for_a_line_on_a_console() -> None:
    (entry,) = loads(f"{GUEST}[[timeline]]\nconsole = 'done$'\ndo = 'end'").timeline
    assert (entry.console, entry.when, entry.waits) == ("done$", None, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{GUEST}[[timeline]]\nconsole = '('\ndo = 'end'", "a regular expression"),
        (f"{GROUPS}[[timeline]]\nconsole = 'done'\ndo = 'end'", "a machine with a guest, which has a console"),
    ],
)
def test_a_console_that_cannot_match_is_reported(text: str, expected: str) -> None:
    (problem,) = refused(text)
    assert (problem.expected, problem.key) == (expected, "timeline[0].console")
