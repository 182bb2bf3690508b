"""A file with every key of the language, and a thousand files that differ a little from it."""

from __future__ import annotations

import contextlib
import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.samples import examples
from topologies import Problem, Topology, TopologyError, load, loads, starter_text
from topologies.actions import ACTIONS
from topologies.language.problems import show_key
from topologies.language.tables import (
    ActionTable,
    DomainTable,
    ExpectTable,
    File,
    GroupTable,
    MachineTable,
    MemoryTable,
    PhaseTable,
)
from topologies.language.toml_positions import positions
from topologies.language.validated import annotations_of
from topologies.model import RunSettings

EVERYTHING = Path(__file__).parents[1] / "golden" / "topologies" / "everything.toml"
TEXT = EVERYTHING.read_text()


@pytest.fixture(scope="module", autouse=True)
def _here() -> Iterator[None]:
    """The current directory has the trace, for texts."""
    with contextlib.chdir(EVERYTHING.parent):
        yield


@contextlib.contextmanager
def no_process() -> Iterator[None]:
    """Starting a process in this context is a failure."""

    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise AssertionError("a process is started")

    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "os.fork",
            "os.posix_spawn",
            "os.system",
            "subprocess.Popen.__init__",
            "_posixsubprocess.fork_exec",
        ):
            patch.setattr(name, refuse)
        yield


def problems_of(text: str, name: str = "generated.toml") -> tuple[Problem, ...]:
    """The problems of a text, none when it loads; any other exception is a failure."""
    with no_process():
        try:
            assert isinstance(loads(text, name), Topology)
        except TopologyError as error:
            return error.problems
    return ()


def check(problems: tuple[Problem, ...], text: str) -> None:
    last = text.count("\n") + 1
    for problem in problems:
        assert problem.file in ("generated.toml", "bells.csv")
        assert 1 <= problem.line <= (last if problem.file == "generated.toml" else 3)
        assert problem.expected
        assert problem.got
        assert str(problem).replace("\n", "").isprintable()


def test_everything_stands_in_the_file_and_loads() -> None:
    values = tomllib.loads(TEXT)
    groups = values["machines"].values()

    def said(*tables: dict[str, Any]) -> set[str]:
        return {key for table in tables for key in table}

    overrides = [own for group in groups for own in group.get("override", {}).values()]
    machines = said(values["defaults"], *groups, *overrides)
    # A file with domains has no [memory]; virtual time, which the other two need, has no real QEMUs; other hosts run
    # no guests of their own.
    assert said(values) >= annotations_of(File).keys() - {"memory", "chaos", "invariant"}
    assert machines >= annotations_of(MachineTable).keys() | annotations_of(GroupTable).keys()
    assert said(*values["domains"].values()) >= annotations_of(DomainTable).keys() - {"host"}
    assert said(*values["phases"]) >= annotations_of(PhaseTable).keys()
    assert said(*values["expect"]) >= annotations_of(ExpectTable).keys()
    assert said(*values["timeline"]) >= annotations_of(ActionTable).keys()
    topology = load(EVERYTHING)
    assert loads(TEXT).machines == topology.machines
    assert (len(topology.machines), len(topology.domains), len(topology.phases)) == (28, 3, 3)
    assert len(topology.timeline) == len(values["timeline"])
    assert {key: len(cells) for key, cells in topology.matrix.items()} == {
        key: len(cells) for key, cells in values["matrix"].items()
    }


def test_the_commented_parts_of_the_starter_file_load() -> None:
    """The parts in comments load without the # and without their alternatives."""
    shown = re.sub(r'(?m)^# (\[|"[^"]+" = |\w+(\.\w+)* = )', r"\1", starter_text())
    for alternative in (
        r"\[memory\]\s.*\n.*\n.*\n.*\n",
        r"duration_s = .*after the warm-up\n",
        r"warmup_s = .*\n",
        r"absent = .*\n",
    ):
        shown, number = re.subn(f"(?m)^{alternative}", "", shown)
        assert number == 1
    topology = loads(shown.replace("[defaults]", "[defaults]\ndomains = ['left']"))
    assert [domain.name for domain in topology.domains] == ["left", "right"]
    assert [machine.name for machine in topology.machines] == ["receiver", "node-00", "node-01", "node-02"]
    assert [machine.parameters.get("rate_hz") for machine in topology.machines] == [None, 10.0, 1000.0, 1000.0]
    for part in (topology.phases, topology.timeline, topology.expectations, topology.matrix):
        assert len(part) == 1


# Generated files

BAD_VALUES = st.sampled_from(
    [
        *("-1", "nan", "inf", "[]", "{}", "[[]]", "1979-05-27", "07:32:00", "{a={a=1}}", "99999999999999999999"),
        *("''", r'"\u0000"', r'"\u202e"', '"no such thing"', "0x" + "f" * 200, "[1, 'a']", "[{}]", "true"),
        *("{ ring = 'storm' }", "'a -> b:1'", "'p99_us < 3'", "'all'", "['others']", "1e9", "'{n}'", "'0-3'"),
    ]
)
ASSIGNMENTS = [
    (number, match[1])
    for number, line in enumerate(TEXT.split("\n"))
    if (match := re.match(r'("?[\w.]+"?)\s*=', line)) is not None
]


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from(ASSIGNMENTS), BAD_VALUES)
def test_another_value_loads_or_is_refused_with_lines(place: tuple[int, str], value: str) -> None:
    number, key = place
    lines = TEXT.split("\n")
    lines[number] = f"{key} = {value}"
    text = "\n".join(lines)
    problems = problems_of(text)
    check(problems, text)
    event("refused" if problems else "loads")
    if problems and problems[0].key == "":
        assert problems[0].line in (number, number + 1, len(lines))


BARE = """
[run]
[defaults]
program = "storm"
parameters = { to = "all" }
[machines.a]
count = 2
override.0 = { vectors = 2 }
[machines.b]
parameters = { to = { random = "all", degree = 1 } }
[[timeline]]
at_s = 0.1
do = "stop_server"
[[timeline]]
when = "rung > 1"
of = "a -> b:0"
do = "migrate"
machines = "all"
[[expect]]
that = "rung > 1"
of = "a -> b:0"
"""
"""A file that leaves out what may be left out: its single elements are taken for granted."""
EMPTY = ("{}", "[]", '""')


@pytest.mark.parametrize("text", [BARE, TEXT], ids=["bare", "everything"])
def test_empty_tables_arrays_and_texts_load_or_are_refused(
    text: str, seed: int, request: pytest.FixtureRequest
) -> None:
    keys = {show_key(path).replace("[", ".").replace("]", "") for path in positions(text) if path}
    tables = ("domains", "memory", "machines", "defaults", "phases", "timeline", "expect", "matrix", "run")
    cases = [
        *({key: empty} for key in sorted(keys) for empty in EMPTY),
        *({one: "{}", other: empty} for one in tables for other in tables for empty in EMPTY),
    ]
    if not request.config.getoption("--full"):
        cases = random.Random(seed).sample(cases, 100)
    for overrides in cases:
        with no_process(), contextlib.suppress(TopologyError):
            assert isinstance(loads(text, "generated.toml", overrides), Topology)


def test_a_table_that_names_no_domain_is_a_problem() -> None:
    (problem,) = problems_of("[domains]\n" + BARE)
    assert (problem.line, problem.key, problem.expected) == (1, "domains", "at least one table [domains.NAME]")


WORDS = '[ ] { } = . , # \\ _ - [[ ]] \' " """ nan é machines parameters others override -> : timeline expect phases'
FRAGMENTS = st.sampled_from(
    [
        *WORDS.split(),
        *("\n[machines.a]\n", "\n[[timeline]]\n", "\n[[phases]]\n", "\n[[expect]]\n", "\n[matrix]\n", "\n[defaults]\n"),
        *("at_s = 1\n", "do = 'kill'\n", "machines = 'storm'\n", "repeat = 100000\n", "count = 3\n", "absent = true\n"),
        *("\r\n", "\n", "\t", "\0", "\x1b", "\u2028"),
    ]
)
EDITS = st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 12), FRAGMENTS), min_size=1, max_size=6)


@settings(max_examples=examples(1000), deadline=None)
@given(EDITS)
def test_a_mangled_file_loads_or_is_refused_with_lines(edits: list[tuple[int, int, str]]) -> None:
    text = TEXT
    for at, removed, inserted in edits:
        text = text[:at] + inserted + text[at + removed :]
    problems = problems_of(text)
    check(problems, text)
    event("refused" if problems else "loads")


KEYS = sorted(
    key
    for table in (File, GroupTable, DomainTable, MemoryTable, PhaseTable, ActionTable, ExpectTable, RunSettings)
    for key in annotations_of(table)
)
SCALARS = st.one_of(
    st.integers(-2, 70),
    st.floats(-1, 1e3, allow_nan=False).map(lambda number: round(number, 3)),
    st.booleans(),
    st.sampled_from(
        ["a", "b", "a-0", "all", "others", "storm", "idle", "echo", "left", "memfd", "4K", "fifo", "x y", ""]
    ),
    st.sampled_from(["rung > 1", "p99_us < 3", "refused == 0", "a -> b", "a -> b:0", "0-1", "n-{n}", *ACTIONS]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.sampled_from(KEYS), SCALARS, max_size=2))


def toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"'
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }"
        case _:
            return repr(value)


HEADERS = st.sampled_from(
    [
        *("[run]", "[memory]", "[defaults]", "[matrix]", "[domains.left]", "[machines.a]", "[machines.b]"),
        *("[machines.a.override.0]", "[machines.b.parameters]", "[[phases]]", "[[timeline]]", "[[expect]]"),
    ]
)
TABLES = st.lists(st.tuples(HEADERS, st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5)), max_size=6)


@settings(max_examples=examples(1000), deadline=None)
@given(TABLES)
def test_random_tables_load_or_are_refused_with_lines(tables: list[tuple[str, dict[str, Any]]]) -> None:
    text = "[machines.z]\nprogram = 'idle'\n"
    for header, values in tables:
        text += header + "\n" + "".join(f"{key} = {toml(value)}\n" for key, value in values.items())
    problems = problems_of(text)
    check(problems, text)
    event("refused" if problems else "loads")
