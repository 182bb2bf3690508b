"""Frequent mistakes in a topology: each is reported once, at its line, with a hint on what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from topologies import Problem, TopologyError, load, loads

TEXT = """title = "Senders and a receiver"
seed = 1

[run]
duration_s = 4.0
sample_every = 16

[memory]
size = "4M"

[machines.receiver]
vectors = 4
program = "idle"

[machines.sender]
count = 3
vectors = 4
program = "storm"
parameters = { to = "receiver", rate_hz = 1000.0 }

[[timeline]]
at_s = 2.0
do = "stall"
machines = "sender-1"

[[timeline]]
at_s = 3.0
do = "resume"
machines = "sender-1"

[[expect]]
that = "refused == 0"
"""


def refused(text: str) -> tuple[Problem, ...]:
    with pytest.raises(TopologyError) as caught:
        loads(text, "t.toml")
    return caught.value.problems


def mistaken(right: str, wrong: str) -> Problem:
    """The only problem of a text with one mistake, at its line."""
    assert right in TEXT
    (problem,) = refused(TEXT.replace(right, wrong, 1))
    first = TEXT.partition(right)[0].count("\n") + 1
    assert first <= problem.line <= first + wrong.count("\n") + 1
    return problem


# No TOML


@pytest.mark.parametrize(
    ("right", "wrong", "hint"),
    [
        ("seed = 1", "seed: 1", "a key and its value have = between them"),
        ("seed = 1", "seed 1", "a key and its value have = between them"),
        ("seed = 1", "seed", "a key and its value have = between them"),
        ("seed = 1", "seed =", "a value is missing after ="),
        ("seed = 1", "seed = # 1", "a value is missing after ="),
        ("= 4.0", "= 4s", "a number has no unit"),
        ('"4M"', "4M", "a number has no unit"),
        ("1000.0 }", "1k }", "a number has no unit"),
        ("= 4.0", "= 4,5", "a point, not a comma"),
        ("1000.0", "1,000", "1_000"),
        ("= 4.0", "= .5", "digits on both sides"),
        ("= 4.0", "= 5.", "digits on both sides"),
        ('"idle"', "idle", 'strings need quotes: "idle"'),
        ('"refused == 0"', "refused == 0", 'strings need quotes: "refused == 0"'),
        ('"idle"', "“idle”", "straight quotes"),
        ('"idle"', '"idle', "the quote that ends the string"),
        ('"idle"', "'idle\"", "the quote that ends the string"),
        ('"idle"', '"i\\dle"', "a backslash is written \\\\"),
        ("to = ", "to: ", "a key and its value have = between them"),
        ('"receiver", ', '"receiver"; ', "commas separate the keys"),
        ("1000.0 }", "1000.0, }", "no comma before }"),
        ("1000.0 }", "1000.0", "the } is missing"),
        ("[memory]", "[memory", "the ] is missing"),
        ("seed =", "seed\u00a0=", "U+00A0, no-break space"),
        ("[memory]", "[mem\u043ery]", "U+043E, cyrillic small letter o"),
        ("[memory]", "// the memory", "comments begin with #"),
        ("[memory]", "; the memory", "comments begin with #"),
        ("[memory]", "<<<<<<< HEAD", "an unresolved merge"),
        ("[memory]", '{ "memory": 4 }', "not JSON or XML"),
        ("seed = 1\n", "seed = 1\rx = 2\n", "lines end in LF"),
        ("vectors = 4\n", "vectors = 4\nvectors = 2\n", "vectors has a value on line 12 already"),
        ("[memory]", "[run]", "[run] begins on line 4, and once only"),
        ("[[timeline]]\nat_s = 3", "[timeline]\nat_s = 3", "[[timeline]], in double brackets"),
        (
            "\n[[timeline]]",
            "[machines.sender.parameters]\n[[timeline]]",
            "parameters of [machines.sender] has a value on",
        ),
    ],
)
def test_a_line_that_is_no_toml(right: str, wrong: str, hint: str) -> None:
    problem = mistaken(right, wrong)
    assert problem.expected == "TOML"
    assert ", in: " in problem.got
    assert hint in problem.hint


def test_a_file_in_another_language_is_recognised() -> None:
    assert "not JSON" in refused('{"machines": {"a": {"program": "idle"}}}')[0].hint
    assert "have = between" in refused("machines:\n  a:\n    program: idle\n")[0].hint


def test_an_array_that_the_end_of_the_file_interrupts() -> None:
    (problem,) = refused("title = 'no ]' # nor here ]\nmachines = [\n")
    assert problem.hint == "an array is not closed: its ] is missing"


# No topology


@pytest.mark.parametrize(
    ("right", "wrong", "hint"),
    [
        ("seed = 1", 'seed = "1"', "did you mean 1?"),
        ("= 4.0", '= "4"', "did you mean 4?"),
        ("= 4.0", '= "4 s"', "a number without a unit: the key's name says it"),
        ("1000.0", '"1kHz"', "a number without a unit: the key's name says it"),
        ("count = 3", 'count = "3"', "did you mean 3?"),
        ("count = 3", "count = 3.0", "did you mean 3?"),
        ('"4M"', '"4MB"', 'did you mean "4M"?'),
        ('"4M"', '"4 MiB"', 'did you mean "4M"?'),
        ('"4M"', '"4 mb"', 'did you mean "4M"?'),
        ('"4M"', '"2T"', "take 1T"),
        ("count = 3", 'count = 3\nabsent = "yes"', "did you mean true?"),
        ("count = 3", 'count = 3\nblockers = "a disk"', 'did you mean ["a disk"]?'),
        ("count = 3", "count = 3\ncpus = 0", "did you mean [0]?"),
        ("count = 3", 'count = 3\ncpus = [0, "1"]', "it is the value at [1]"),
        ('do = "stall"', 'do = "stall "', 'did you mean "stall"?'),
        ('do = "stall"', 'do = "mask"\nvectors = 1', "did you mean [1]?"),
        ('"sender-1"', '["sender", 3]', "it is the value at [1]"),
        ("rate_hz", "hz", 'did you mean "rate_hz"?'),
        ('"refused == 0"', '"refused = 0"', "the comparisons are <, <=, ==, !=, >=, >"),
        ('"refused == 0"', '"rung => 5"', "the comparisons are"),
        ('"refused == 0"', '"0 == refused"', "the metric comes first"),
        ('"refused == 0"', '"p99_us < 500us"', "a number without a unit: the name of the metric has it"),
        ('"refused == 0"', '"refused == 0 and lost == 0"', "one comparison in each entry"),
        ('"refused == 0"', '"refused == 0"\nof = "all"', "without `of` it is all of them"),
        ('"refused == 0"', '"refused == 0"\nof = "nobody"', "the groups are receiver, sender"),
        ("at_s = 2.0", 'when = "up < 2"\nof = "sender-7"', "the machines of sender are sender-0 to sender-2"),
        ('"receiver",', '"sender_1",', "the machines of sender are sender-0 to sender-2"),
        ("count = 3", "count = 3\nsize = 4096", "[memory] can have that key"),
        ('vectors = 4\nprogram = "idle"', 'vectors = 4\nat_s = 4\nprogram = "idle"', "[[timeline]] can have that key"),
        ('do = "stall"', 'do = "stall"\nduration_s = 1', "[run] and [[phases]] can have that key"),
        ("[memory]", "[memory]\nseed = 3", "seed belongs before the first table"),
        ("[machines.receiver]", "[receiver]", "a group of machines is [machines.receiver]"),
    ],
)
def test_hints_for_probable_spellings(right: str, wrong: str, hint: str) -> None:
    problem = mistaken(right, wrong)
    assert problem.hint.startswith(hint)
    assert hint or not problem.hint


@pytest.mark.parametrize(
    ("right", "wrong", "key"),
    [
        ("[machines.receiver]", "[machine.receiver]", "machine"),
        ("[machines.receiver]", "[[machines.receiver]]", "machines.receiver"),
        ("[machines.receiver]", "[[machines]]", "machines"),
        ("count", "counts", "machines.sender.counts"),
        ("count = 3", "count = 0", "machines.sender.count"),
        ('program = "idle"', 'programm = "idle"', "machines.receiver.programm"),
        ("at_s", "at", "timeline[0].at"),
        ('machines = "sender-1"', 'machine = "sender-1"', "timeline[0].machine"),
        ("that", "what", "expect[0].what"),
        ('do = "stall"', 'do = "slow"\ndelay = 3', "timeline[0].delay"),
        ('do = "stall"', 'do = "slow"\ndelay_us = "3"', "timeline[0].delay_us"),
    ],
)
def test_consequences_of_a_mistake_are_not_reported(right: str, wrong: str, key: str) -> None:
    """A faulty group is not reported as unknown, too, and a misspelt key not as missing."""
    assert mistaken(right, wrong).key == key


def test_expectations_of_faulty_groups_are_not_checked() -> None:
    text = TEXT.replace("count = 3", "count = 0") + 'of = "sender-1"\n'
    assert [problem.key for problem in refused(text)] == ["machines.sender.count"]


def test_other_problems_are_told_beside_a_mistake() -> None:
    text = TEXT.replace("count = 3", "count = 0").replace('"receiver",', '"nobody",')
    assert [problem.key for problem in refused(text)] == ["machines.sender.count", "machines.sender.parameters.to"]


def test_brackets_and_numbers_are_told_as_they_are() -> None:
    double = mistaken("[machines.receiver]", "[[machines.receiver]]")
    assert (double.expected, double.got) == ("a table, [machines.receiver] in single brackets", "an array of 1 table")
    (range_,) = refused(TEXT.replace('"stall"', '"slow"\ndelay_us = -1'))
    assert range_.expected == "a number from 0 to 1000000000"


def test_a_key_of_a_matrix_is_told_once_and_quoted() -> None:
    (problem,) = refused(TEXT + '[matrix]\n"machines.sender.counts" = [1, 2, 3]\n')
    assert (problem.key, problem.hint) == ('matrix."machines.sender.counts"[0]', 'did you mean "count"?')
    (problem,) = refused(TEXT + "[matrix]\nmachines.sender.count = [1, 2]\n")
    assert problem.hint == 'in quotes: "machines.sender.count"'
    found = refused(TEXT + '[matrix]\n"machines.sender.count" = [0, "many"]\n')
    assert [problem.got for problem in found] == ["0", '"many"']


def test_masters_and_priorities_are_told_by_name() -> None:
    assert mistaken("count = 3", 'count = 3\nrole = "master"').got == '"master" for 3 machines'
    assert (
        mistaken("count = 3", 'role = "master"\ncount = 1\nname = "sender-1"').got
        == '"master" for sender-1, which is not'
    )
    fifo = refused(TEXT.replace("count = 3", 'count = 3\npolicy = "fifo"'))[0]
    assert (fifo.key, fifo.got) == ("machines.sender.priority", "nothing: this key is missing")


@pytest.mark.parametrize("value", ["9" * 4000, "1e" + "9" * 4000, " " * 4000, "4" * 30 + "M", "=" * 4000])
def test_no_hint_for_values_without_a_likely_meaning(value: str) -> None:
    for right in ("count = 3", 'size = "4M"', 'that = "refused == 0"'):
        key = right.partition(" ")[0]
        assert "did you mean" not in mistaken(right, f'{key} = "{value}"').hint


# Files


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert loads("\ufeff" + TEXT).title == "Senders and a receiver"


def test_windows_lines_and_tabs_are_no_mistake() -> None:
    (problem,) = refused(TEXT.replace("count = 3", "\tcount\t=\t0").replace("\n", "\r\n"))
    assert (problem.line, problem.key) == (16, "machines.sender.count")


def test_a_path_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hint_for(source: str) -> str:
        with pytest.raises(TopologyError) as caught:
            load(source)
        (problem,) = caught.value.problems
        return f"{problem.got}; {problem.hint}"

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hint_for("runs") == "a directory; "
    assert hint_for("ring.toml") == 'neither; did you mean "ring"?'
    assert hint_for("no/such.toml").startswith("no such file; `ivsim list`")
    assert hint_for("x" * 300) == "File name too long; "
