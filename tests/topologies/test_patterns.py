"""Patterns of peers, and doorbells from a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topologies import Machines, Problem, TopologyError, Trace, load, loads
from topologies.resolve.patterns import draw
from topologies.resolve.references import MAX_EDGES
from topologies.resolve.traces import MAX_TRACE_ROWS


def group(name: str, count: int, to: str) -> str:
    return f"[machines.{name}]\ncount = {count}\nprogram = 'storm'\nparameters.to = {to}\n"


def peers(text: str, seed: int = 1) -> list[tuple[int, ...]]:
    return [tuple(machine.parameters["to"]) for machine in loads(f"seed = {seed}\n{text}").machines]


def only(text: str) -> Problem:
    with pytest.raises(TopologyError) as caught:
        loads(text, "bad.toml")
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("count", "pattern", "expected"),
    [
        (3, "{ ring = 'a' }", [(1,), (2,), (0,)]),
        (2, "{ ring = 'a' }", [(1,), (0,)]),
        (1, "{ ring = 'a' }", [()]),
        (4, "{ pairs = 'a' }", [(1,), (0,), (3,), (2,)]),
        (3, "{ pairs = 'a' }", [(1,), (0,), ()]),
        (4, "{ star = 'a' }", [(1, 2, 3), (0,), (0,), (0,)]),
        (1, "{ star = 'a' }", [()]),
        (3, "{ all = 'a' }", [(1, 2), (0, 2), (0, 1)]),
        (3, "{ all = 'all' }", [(0, 1, 2)] * 3),
        (3, "{ ring = ['a-2', 'a'] }", [(1,), (2,), (0,)]),
        (3, "{ random = 'a', degree = 2 }", None),
    ],
)
def test_patterns(count: int, pattern: str, expected: list[tuple[int, ...]] | None) -> None:
    found = peers(group("a", count, pattern))
    if expected is None:
        assert [set(chosen) for chosen in found] == [{1, 2}, {0, 2}, {0, 1}]
    else:
        assert found == expected


def test_the_order_of_a_ring_is_that_of_the_names() -> None:
    assert peers(group("a", 2, "{ ring = ['b', 'a'] }") + group("b", 2, "{ ring = ['b', 'a'] }")) == [
        (1,),
        (2,),
        (3,),
        (0,),
    ]


def test_machines_that_are_not_in_it() -> None:
    two = group("a", 3, "{ pairs = 'b' }") + group("b", 2, "{ pairs = 'a' }")
    assert peers(two) == [(3,), (4,), (), (0,), (1,)], "by their place"
    drawn = peers(group("a", 5, "{ random = 'b', degree = 3 }") + group("b", 3, "[]"))
    assert [sorted(each) for each in drawn[:5]] == [[5, 6, 7]] * 5
    for kind in ("ring", "star"):
        problem = only(group("a", 3, f"{{ {kind} = 'b' }}") + group("b", 2, "[]"))
        assert (problem.line, problem.key) == (4, f"machines.a.parameters.to.{kind}")
        assert "without a-0" in problem.got


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("{}", ""),
        ("{ rign = 'a' }", ""),
        ("{ ring = 'a', star = 'a' }", ""),
        ("{ ring = 'a', degree = 2 }", ".degree"),
        ("{ ring = 'b' }", ".ring"),
        ("{ ring = 'others' }", ".ring"),
        ("{ ring = ['a', 'c'] }", ".ring[1]"),
        ("{ ring = { ring = 'a' } }", ".ring"),
        ("{ random = 'a' }", ".degree"),
        ("{ random = 'a', degree = 0 }", ".degree"),
        ("{ random = 'a', degree = 4 }", ".degree"),
        ("{ random = 'a', degree = true }", ".degree"),
        ("{ random = 'a', degree = 1.5 }", ".degree"),
        ("{ random = 'a', degree = 1, dgree = 2 }", ".dgree"),
    ],
)
def test_patterns_that_are_none(pattern: str, key: str) -> None:
    problem = only(group("a", 4, pattern))
    assert (problem.line, problem.key) == (4, f"machines.a.parameters.to{key}")


def test_the_same_seed_draws_the_same() -> None:
    text = group("a", 40, "{ random = 'a', degree = 5 }")
    first = peers(text)
    assert first == peers(text)
    assert first != peers(text, seed=2)
    assert len(set(first)) > 30, "each draws for itself"
    # What any Python must draw, today and later.
    assert tuple(draw(Machines(range(10)), [(3, 3)], 4, "7/to").peers[3]) == (2, 5, 4, 9)  # type: ignore[union-attr]


@given(st.integers(2, 40), st.data())
def test_a_draw_is_of_different_others(count: int, data: st.DataObject) -> None:
    degree = data.draw(st.integers(1, count - 1))
    laid = draw(Machines(range(count)), [(index, index) for index in range(count)], degree, str(count))
    assert laid is not None
    for index, chosen in laid.peers.items():
        assert len(set(chosen)) == degree
        assert index not in chosen
        assert set(chosen) <= set(range(count))


@pytest.mark.parametrize(
    "text",
    [
        group("a", 65536, "{ random = 'a', degree = 65535 }"),
        group("z", 60000, "[]") + "".join(group(f"g{i}", 1, "{ pairs = 'all' }") for i in range(500)),
        group("z", 60000, "[]") + "".join(group(f"g{i}", 1, "{ random = 'all', degree = 1 }") for i in range(500)),
    ],
)
def test_a_pattern_that_is_too_large_is_refused_before_it_is_made(text: str) -> None:
    assert f"at most {MAX_EDGES} pairs" in only(text).expected


# Traces

TOPOLOGY = """[machines.player]
count = 2
vectors = 3
program = "trace"
parameters.file = "bells.csv"
[machines.hub]
vectors = 2
program = "idle"
"""
HEADER = "time_s,source,target,vector\n"


def played(folder: Path, rows: str, topology: str = TOPOLOGY) -> dict[str, Trace]:
    (folder / "bells.csv").write_text(rows)
    (folder / "topology.toml").write_text(topology)
    machines = load(folder / "topology.toml").machines
    return {machine.name: machine.parameters["file"] for machine in machines if "file" in machine.parameters}


def faults(folder: Path, rows: str, topology: str = TOPOLOGY) -> list[tuple[str, int, str]]:
    with pytest.raises(TopologyError) as caught:
        played(folder, rows, topology)
    return [(Path(problem.file).name, problem.line, problem.key) for problem in caught.value.problems]


def test_a_trace_is_a_file_beside_the_topology(tmp_path: Path) -> None:
    rows = "0.5,player-0,hub,1\n\n 0.25 , player-0 , player-1 , 2\n0.5,player-0,player-1,0\n1e-9,player-0,hub,0\n"
    found = played(tmp_path, HEADER + rows)
    assert found == {
        "player-0": Trace(
            machines=Machines((2, 1)),
            doorbells=((1, 0, 0), (250_000_000, 1, 2), (500_000_000, 0, 1), (500_000_000, 1, 0)),
        ),
        "player-1": Trace(machines=Machines(), doorbells=()),
    }
    topology = load(tmp_path / "topology.toml")
    assert topology.files == {"bells.csv": str(tmp_path / "bells.csv")}
    assert played(tmp_path, (HEADER + rows).replace("\n", "\r\n")) == found


def test_a_text_looks_from_the_current_directory_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bells.csv").write_text(HEADER + "0,player-1,hub,0\n")
    monkeypatch.chdir(tmp_path)
    assert loads(TOPOLOGY).machines[1].parameters["file"].doorbells == ((0, 0, 0),)
    assert loads(TOPOLOGY).files == {"bells.csv": str(tmp_path / "bells.csv")}


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ("0.5,player-0,hub", ""),
        ("0.5,player-0,hub,0,0", ""),
        ("soon,player-0,hub,0", "time_s"),
        ("-1,player-0,hub,0", "time_s"),
        ("nan,player-0,hub,0", "time_s"),
        ("1e9,player-0,hub,0", "time_s"),
        ("1,playr-0,hub,0", "source"),
        ("1,player,hub,0", "source"),
        ("1,player-0,hubb,0", "target"),
        ("1,player-0,hub,2", "vector"),
        ("1,hub,player-0,2", "vector"),
        ("1,player-0,hub,-1", "vector"),
        ("1,player-0,hub,²", "vector"),
        ("1,player-0,hub," + "0" * 5000, "vector"),
        ("1,hub,player-0,0", "source"),
        ('1,"player-0,hub,0', ""),
        ('1,"player-0"x,hub,0', ""),
        ("1,player-0,\x1b[2J,0", "target"),
    ],
)
def test_a_bad_row_is_reported_with_its_own_file_and_line(tmp_path: Path, row: str, key: str) -> None:
    rows = HEADER + "0,player-0,hub,0\n" + row + "\n"
    assert faults(tmp_path, rows) == [("bells.csv", 3, key)]


def test_all_bad_rows_are_reported_and_not_endlessly(tmp_path: Path) -> None:
    assert faults(tmp_path, HEADER + "x,y,z,0\n0,player-0,hub,0\n0,player-0,hub,9\n") == [
        *(("bells.csv", 2, column) for column in ("source", "target", "time_s")),
        ("bells.csv", 4, "vector"),
    ]
    assert len(faults(tmp_path, HEADER + "x,player-0,hub,0\n" * 10_000)) == 50
    row = HEADER + "-1,nobody,nothing,99999\n"
    assert faults(tmp_path, row) == [("bells.csv", 2, column) for column in ("source", "target", "time_s")]
    assert faults(tmp_path, "time,source,target,vector\n0,player-0,hub,0\n") == [("bells.csv", 1, "")]
    assert faults(tmp_path, "") == [("bells.csv", 1, "")]
    assert faults(tmp_path, HEADER + "\n" * (MAX_TRACE_ROWS + 9)) == [("bells.csv", MAX_TRACE_ROWS + 2, "")]
    assert len(played(tmp_path, HEADER + "0,player-0,hub,0\n" * 1000)["player-0"].doorbells) == 1000


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    def key(value: str) -> tuple[str, int, str]:
        (fault,) = faults(tmp_path, HEADER, TOPOLOGY.replace('"bells.csv"', value))
        return fault

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"a\0b")
    with (tmp_path / "large").open("wb") as opened:
        opened.truncate(1 << 30)
    for value in ('"none.csv"', '"pipe"', '"."', '"binary"', '"large"', "3", '""', '"a\\u0000b"', "['bells.csv']"):
        assert key(value) == ("topology.toml", 5, "machines.player.parameters.file"), value


def test_a_trace_is_read_once_for_all_its_machines(tmp_path: Path) -> None:
    other = TOPOLOGY + '[machines.more]\nvectors = 1\nprogram = "trace"\nparameters.file = "bells.csv"\n'
    found = played(tmp_path, HEADER + "1,more,hub,0\n2,player-1,hub,0\n", other)
    assert [len(trace.doorbells) for trace in found.values()] == [0, 1, 1]
    assert faults(tmp_path, HEADER + "1,more,hub,0\nx,player-1,hub,0\n", other) == [("bells.csv", 3, "time_s")]


def test_a_trace_stays_within_a_domain(tmp_path: Path) -> None:
    two = "[domains.l]\n[domains.r]\n" + TOPOLOGY.replace('"trace"', '"trace"\ndomains = ["l"]')
    two = two.replace('"idle"', '"idle"\ndomains = ["r"]')
    assert faults(tmp_path, HEADER + "0,player-0,player-1,2\n0,player-0,hub,0\n", two) == [("bells.csv", 3, "vector")]


def test_there_are_not_endlessly_many_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        (tmp_path / f"{number}.csv").write_text(HEADER)
    group = '[machines.p{0}]\nprogram = "trace"\nparameters.file = "{0}.csv"\n'
    with pytest.raises(TopologyError) as caught:
        loads("".join(group.format(number) for number in range(17)))
    assert [problem.key for problem in caught.value.problems] == ["machines.p16.parameters.file"]
    assert len(loads("".join(group.format(number) for number in range(16))).files) == 16
