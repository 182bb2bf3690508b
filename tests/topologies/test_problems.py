"""Bad topologies: all problems at once, each with its line and key, and no other exception."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.samples import examples
from topologies import Problem, Topology, TopologyError, load, loads, starter_text
from topologies.language.document import MAX_FILE_BYTES, MAX_LINE_BYTES
from topologies.language.problems import MAX_PROBLEMS
from topologies.language.reader import MAX_COLLECTED

GOLDEN = Path(__file__).parents[1] / "golden" / "bad_topologies"
BAD_FILES = sorted(GOLDEN.glob("*.toml"))
MACHINE = '[machines.a]\nprogram = "idle"\n'


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(TopologyError) as caught:
        loads(text, "bad.toml")
    return caught.value.problems


@pytest.mark.parametrize("file", BAD_FILES, ids=[file.stem for file in BAD_FILES])
def test_a_bad_file_tells_each_line_and_key(file: Path) -> None:
    found = re.findall(r"^# expect (\d+) ?(.*)$", file.read_text(), re.MULTILINE)
    assert found, "the file says what is wrong with it"
    with pytest.raises(TopologyError) as caught:
        load(file)
    assert [(p.line, p.key) for p in caught.value.problems] == [(int(line), key) for line, key in found]
    for problem in caught.value.problems:
        assert problem.file == str(file)
        assert problem.expected
        assert problem.got
        assert f"{file}:{problem.line}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("sed = 1\n" + MACHINE, "seed"),
        ("[machine.a]\nprogram = 'idle'", "machines"),
        (MACHINE + "vector = 4", "vectors"),
        (MACHINE + "role = 'Master'", "master"),
        (MACHINE + "profile = 'qemu_doorbell'", "qemu-doorbell"),
        ("[machines.a]\nprogram = 'strom'", "storm"),
        ("[machines.a]\nprogram = 'storm'\nparameters = { rate = 1 }", "rate_hz"),
        ("[machines.sender]\nprogram = 'storm'\nparameters = { to = 'sendr' }", "sender"),
        ("[memory]\nkind = 'memdf'\n" + MACHINE, "memfd"),
        ("[run]\non_death = 'degrad'\n" + MACHINE, "degrade"),
    ],
)
def test_the_nearest_spelling_is_named(text: str, hint: str) -> None:
    assert f'did you mean "{hint}"?' in [problem.hint for problem in problems_of(text)]


def test_an_unquoted_word_is_recognised() -> None:
    (problem,) = problems_of("[machines.a]\nprogram = storm # quickly\n")
    assert (problem.line, problem.hint) == (2, 'strings need quotes: "storm"')


def test_one_problem_is_one_readable_block() -> None:
    with pytest.raises(TopologyError) as caught:
        loads("[machines.a]\nprogram = 'idle'\nvector = 4\n", "x.toml")
    assert str(caught.value) == (
        "x.toml:3: machines.a.vector\n"
        "    expected: one of program, kind, ready_timeout_s, vectors, role, profile, variant, parameters, domains, "
        "absent, guest, cpus, policy, priority, nice, blockers, count, name, override\n"
        "    got:      an unknown key\n"
        '    hint:     did you mean "vectors"?'
    )


def test_nothing_that_a_terminal_acts_upon_is_printed() -> None:
    with pytest.raises(TopologyError) as caught:
        loads('"\\u001b[2J" = 1\ntitle = "\\u001b]0;"\nseed = "\\u202e"\n[machines.a]\nprogram = "\\u001b"')
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_flood_of_problems_is_cut() -> None:
    problems = problems_of("\n".join(f"k{i} = 1" for i in range(5000)))
    assert len(problems) == MAX_COLLECTED
    with pytest.raises(TopologyError, match=rf"\.\.\. and {MAX_COLLECTED - MAX_PROBLEMS} more problems"):
        loads("\n".join(f"k{i} = 1" for i in range(5000)))


def test_a_bad_group_does_not_hide_what_others_say() -> None:
    keys = [p.key for p in problems_of("[machines.a]\ncount = 0\n[machines.b]\nprogram = 'storm'\nrole = 1")]
    assert keys == ["machines.a.program", "machines.a.count", "machines.b.role"]


BOMBS = {
    "count": "[machines.a]\nprogram = 'idle'\ncount = 1000000000",
    "vectors": MACHINE + "vectors = 1000000000",
    "counts that add up": "".join(f"[machines.g{i}]\nprogram = 'idle'\ncount = 65536\n" for i in range(5000)),
    "all to all": "[machines.a]\nprogram = 'storm'\ncount = 65536",
    "many to all": "".join(f"[machines.g{i}]\nprogram = 'storm'\n" for i in range(5000))
    + "[machines.z]\nprogram = 'idle'\ncount = 60000",
    "lists to all": "[machines.z]\nprogram = 'idle'\ncount = 60000\n"
    + "".join(f"[machines.g{i}]\nprogram = 'storm'\nparameters.to = ['all', 'g{i}']\n" for i in range(1000)),
    "the same name": "[machines.a]\nprogram = 'storm'\ncount = 65536\nparameters.to = [\n" + "'all',\n" * 15000 + "]",
    "dotted keys": "\n".join("a" + ".a" * 2000 + f".b{i} = 1" for i in range(250)),
    "dotted keys within the limit": "\n".join(".".join("abcdefghijklmno") + f".k{i} = 1" for i in range(16000)),
    "nested arrays": "a = " + "[" * 4000,
    "nested arrays on many lines": "a = " + "[\n" * 400_000,
    "nested tables": "a = " + "{a=" * 1300,
    "huge decimal": "seed = " + "9" * 4000,
    "huge hexadecimal": "seed = 0x" + "f" * 4000,
    "huge exponent": "[run]\nduration_s = 1e999999",
    "keys": "\n".join(f"k{i} = 1" for i in range(90_000)),
    "arrays of tables": "[[a]]\n" * 170_000,
    "escapes": 'title = """' + "\\n\n" * 340_000 + '"""',
    "a long line": "title = '" + "x" * 5000 + "'",
    "a large file": "# " + "x\n" * MAX_FILE_BYTES,
    "comments": "#\n" * (MAX_FILE_BYTES // 2),
    "bad names": "".join(f"[machines.g{i}]\nprogram = 'echo'\nparameters.to = 'x{i}'\n" for i in range(3000)),
    "overrides to all": "[machines.a]\nprogram = 'storm'\ncount = 65536\nparameters.to = []\n"
    + "".join(f"[machines.a.override.{i}]\nparameters.to = 'all'\n" for i in range(4000)),
    "overrides of nobody": MACHINE + "".join(f"[machines.a.override.{i}]\nnice = 1\n" for i in range(1, 5000)),
    "random peers": "[machines.a]\nprogram = 'storm'\ncount = 65536\nparameters.to = { random = 'a', degree = 65535 }",
    "rings of others": "[machines.z]\nprogram = 'idle'\ncount = 60000\n"
    + "".join(f"[machines.g{i}]\nprogram = 'storm'\nparameters.to = {{ ring = 'all' }}\n" for i in range(3000)),
    "a timeline of all": "[machines.a]\nprogram = 'idle'\ncount = 65536\n"
    + "[[timeline]]\nat_s = 1\ndo = 'kill'\npick = 1\nmachines = 'all'\n" * 2500,
    "repetitions": "[machines.a]\nprogram = 'idle'\ncount = 65536\n"
    + "[[timeline]]\nat_s = 1\ndo = 'kill'\nmachines = 'a'\nrepeat = 100000\nperiod_s = 1\n" * 20,
    "cells": MACHINE + "[matrix]\n" + "".join(f"k{i} = [{'1,' * 1000}]\n" for i in range(10)),
    "phases": MACHINE + "[[phases]]\nname = 'x'\nduration_s = 1\n" * 4000,
    "domains": MACHINE + "".join(f"[domains.d{i}]\n" for i in range(5000)),
    "conditions": MACHINE + "[[expect]]\nthat = 'x'\n" * 5000,
    "bad programs": "".join(f"[machines.g{i}]\nprogram = 'strom{i}'\n" for i in range(5000)),
}


HONEST = "".join(f"[machines.g{i}]\ncount = 10\nprogram = 'idle'\n" for i in range(500))
BOMB_COST_MAX = 60.0
"""In honest files of 500 groups, which take a twentieth of a second where nothing else runs. The costliest takes 18 of
them; what is quadratic takes hundreds."""


def cpu_s(work: Callable[[], object]) -> float:
    begin_s = time.process_time()
    work()
    return time.process_time() - begin_s


@pytest.mark.sample(12)
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_before_it_costs_anything(text: str) -> None:
    """CPU time differs from one time to the next on a busy host: one of three comparisons has to hold."""
    assert any(cpu_s(lambda: problems_of(text)) < BOMB_COST_MAX * cpu_s(lambda: loads(HONEST)) for _ in range(3))


def test_hostile_files_take_less_than_256_mebibytes(seed: int, request: pytest.FixtureRequest) -> None:
    bombs = sorted(BOMBS)
    if not request.config.getoption("--full"):
        bombs = random.Random(seed).sample(bombs, 4)
    # A process of its own, and its own high-water mark: ru_maxrss begins with what its parent had at the fork.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.topologies import test_problems as t\n"
        "for name in sys.argv[2:]:\n"
        "    t.problems_of(t.BOMBS[name])\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(root), *bombs]
    peak_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak_kib < 256 << 10


def refusal(file: Path) -> Problem:
    with pytest.raises(TopologyError) as caught:
        load(file)
    (problem,) = caught.value.problems
    return problem


def test_files_that_are_none(tmp_path: Path) -> None:
    assert refusal(tmp_path).got == "a directory"
    assert refusal(tmp_path / "missing.toml").got == "no such file"
    assert refusal(tmp_path / ("x" * 300)).got == "File name too long"
    assert "\0" not in str(refusal(tmp_path / "nul\0byte"))
    os.mkfifo(tmp_path / "pipe.toml")
    assert "no regular file" in refusal(tmp_path / "pipe.toml").got
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    assert refusal(tmp_path / "loop.toml").got


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(b"seed = 1\n\x7fELF\0\0")
    assert (refusal(file).line, refusal(file).got) == (2, "a byte of value 0")
    file.write_bytes(b"seed = 1\n\n# caf\xe9")
    assert (refusal(file).line, refusal(file).got) == (3, "the byte 0xe9, which is not UTF-8")
    file.write_bytes(b"#" * MAX_LINE_BYTES + b"\n" + b"#" * (MAX_LINE_BYTES + 1))
    assert (refusal(file).line, refusal(file).got) == (2, f"one of {MAX_LINE_BYTES + 1} bytes")
    with file.open("wb") as opened:
        opened.truncate(1 << 30)  # a gigabyte that occupies nothing
    assert refusal(file).got == "a larger one"
    for nothing in (b"", b"\n\n", b"# later\n"):
        file.write_bytes(nothing)
        assert (refusal(file).line, refusal(file).got) == (1, "no table and no key")
        assert "ivsim init" in refusal(file).hint
    file.write_bytes(MACHINE.encode("utf-16"))
    assert (refusal(file).line, refusal(file).got) == (1, "text in UTF-16")
    file.write_bytes(b"\xef\xbb\xbf" + MACHINE.encode())  # what some editors put before UTF-8
    assert load(file).machines[0].name == "a"


def test_a_text_that_is_too_large_is_not_looked_at() -> None:
    (problem,) = problems_of("#\n" * (MAX_FILE_BYTES // 2) + "é")
    assert (problem.line, problem.got) == (0, f"{MAX_FILE_BYTES + 2} bytes")


def test_half_a_character_is_refused_in_a_text_too() -> None:
    (problem,) = problems_of("seed = 1\ntitle = '\ud800'")
    assert (problem.line, problem.got) == (2, "half of a surrogate pair")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret.toml"
    file.write_text(MACHINE)

    def refuse(*_args: object, **_keywords: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, whom no mode stops
    assert refusal(file).got == "no permission to read it"


# Generated files. Each is a good one with something done to it.

GOOD = starter_text()
GOOD_LINES = GOOD.split("\n")
BAD_VALUES = st.sampled_from(
    [
        *[
            "-1",
            "nan",
            "inf",
            "-inf",
            "[]",
            "{}",
            "[[]]",
            "1979-05-27",
            "07:32:00",
            "true",
            "{a={a=1}}",
            "99999999999999999999",
        ],
        *("''", r'"\u0000"', r'"\u202e"', '"no such thing"', "0x" + "f" * 200),
    ]
)
SETTABLE = [
    *(
        "seed",
        "run.duration_s",
        "run.warmup_s",
        "run.sample_every",
        "run.on_death",
        "memory.size",
        "memory.kind",
    ),
    *("machines.sender.count", "machines.sender.vectors", "machines.sender.program"),
    *("machines.receiver.role", "machines.receiver.profile", "machines.receiver.program"),
]


@settings(max_examples=examples(600), deadline=None)
@given(st.sampled_from(SETTABLE), BAD_VALUES, st.integers(0, 30))
def test_a_bad_value_is_reported_on_its_line(key: str, value: str, comments: int) -> None:
    table, _, name = key.rpartition(".")
    section = ""
    lines = ["# a comment"] * comments
    expected_line = 0
    for line in GOOD_LINES:
        if line.startswith("["):
            section = line[1 : line.index("]")]
        if section == table and re.match(rf"{name}\s*=", line):
            line = f"{name} = {value}"
            expected_line = len(lines) + 1
        lines.append(line)
    assert expected_line
    problems = problems_of("\n".join(lines))
    assert [(p.line, p.key) for p in problems if p.key.startswith(key)] == [(expected_line, key)] or (
        # What is no TOML at all has a line, and no key.
        [(p.line, p.key) for p in problems] == [(expected_line, "")]
    )


WORDS = "[ ] { } = . , # \\ _ - [[ ]] ' \" ''' \"\"\" 0x 1e9 nan é machines parameters to all others"
FRAGMENTS = st.sampled_from(
    [
        *WORDS.split(),
        *("\n[machines.a]\n", "\n[machines.b]\nprogram='storm'\n", "\nseed=1\n", "count=3\n"),
        *("1979-05-27 07:32:00", "\r\n", "\n", "\t", " ", "\0", "\x1b", "\u2028"),
    ]
)
EDITS = st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 12), FRAGMENTS), min_size=1, max_size=6)


@settings(max_examples=examples(1000), deadline=None)
@given(EDITS)
def test_a_mangled_file_loads_or_gives_declared_errors_with_lines(edits: list[tuple[int, int, str]]) -> None:
    text = GOOD
    for at, removed, inserted in edits:
        text = text[:at] + inserted + text[at + removed :]
    problems: tuple[Problem, ...] = ()
    try:
        assert isinstance(loads(text, "mangled.toml"), Topology)
    except TopologyError as error:
        problems = error.problems
        event("refused")
    last = text.count("\n") + 1
    for problem in problems:
        assert problem.file == "mangled.toml"
        assert 1 <= problem.line <= last
        assert problem.expected
        assert problem.got
        assert str(problem).replace("\n", "").isprintable()


@settings(max_examples=examples(300), deadline=None)
@given(st.one_of(st.text(max_size=200), st.text("ab.=[]{}\"'\\#\n ,1-", max_size=60)))
def test_any_text_loads_or_gives_declared_errors(text: str) -> None:
    with pytest.raises(TopologyError) as caught:
        loads(text)
    assert all(problem.line >= 1 for problem in caught.value.problems)
