"""Faults of files: F12, F15 and F16 of tests/fault_matrix.py."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from nodes.errors import UsageError
from sim.results import Run
from tests.faults.processes import run_ivsim
from tests.sim.results.test_damage import read_everything
from tests.synthetic import PENDING, finish, pair
from tests.topologies.test_fuzz import EVERYTHING, TEXT, check, problems_of

WORDS = TEXT.replace("=", " = ").split()
JUNK = ["[", "]]", "{", "}", "=", "\n", "\0", "\x1b", "\r\n", "nan", "-1", "9" * 40, "[[timeline]]", "a.b.c.d", '"""']


def mutated(rng: random.Random) -> str:
    """A topology that says everything, with a few parts removed, doubled, exchanged or replaced by junk."""
    text = TEXT
    for _ in range(rng.randrange(1, 6)):
        at, length = rng.randrange(len(text) + 1), rng.choice((0, 1, 3, 20, 200))
        part = text[at : at + length]
        put = rng.choice((rng.choice(JUNK), rng.choice(WORDS), part * 2, part[::-1], ""))
        text = text[:at] + put + text[at + length :]
    return text


@pytest.mark.fault("F12", full=5000, sample=60, unit="mutated topologies")
def test_mutated_topologies(seed: int, fault_count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loads or is refused with lines; none starts a process, none ends in a traceback."""
    rng, refused = random.Random(seed), 0
    monkeypatch.chdir(EVERYTHING.parent)
    for _ in range(fault_count):
        text = mutated(rng)
        problems = problems_of(text)
        check(problems, text)
        refused += bool(problems)
    assert refused


def damage(rng: random.Random, file: Path) -> None:
    """Cut, change, empty, remove or replace a file; a JSON file may also get values that are legal and absurd."""
    whole = file.read_bytes()
    match rng.randrange(7):
        case 0:
            file.write_bytes(whole[: rng.randrange(len(whole) + 1)])
        case 1:
            changed = bytearray(whole or b"\0")
            for _ in range(rng.randrange(1, 9)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            file.write_bytes(bytes(changed))
        case 2:
            file.write_bytes(rng.randbytes(rng.randrange(2000)))
        case 3:
            file.unlink()
        case 4:
            file.unlink()
            file.mkdir()
        case 5 if file.suffix == ".json":
            with_other_values(rng, file)
        case _:
            file.write_bytes(whole[rng.randrange(len(whole) + 1) :])


def with_other_values(rng: random.Random, file: Path) -> None:
    """Exchange some values of a JSON document for others of any type and size."""
    document = json.loads(file.read_text())
    values = [None, True, -1, 0, 1 << 63, 1 << 64, 10**400, 1e308, -1e308, "", "x" * 5000, [], {}, [[]], "\x1b[31m"]

    def change(node: object) -> None:
        pairs = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        for key, value in pairs:
            if rng.random() < 0.05:
                node[key] = rng.choice(values)  # type: ignore[index]
            else:
                change(value)

    change(document)
    file.write_text(json.dumps(document))


@pytest.mark.fault("F15", full=10_000, sample=80, unit="damaged run directories")
def test_damaged_run_directories(seed: int, fault_count: int, tmp_path: Path) -> None:
    """What is damaged is named; the rest is read; no other error than ours comes out."""
    rng, said = random.Random(seed), 0
    path = finish(pair(tmp_path), PENDING).path
    for _ in range(fault_count):
        copy = tmp_path / "damaged"
        shutil.copytree(path, copy)
        files = sorted(file for file in copy.rglob("*") if file.is_file())
        for file in rng.sample(files, rng.choice((1, 1, 1, 2, 3))):
            damage(rng, file)
        try:
            run = Run(copy)
            said += bool(read_everything(run) or run.problems)
        except UsageError:
            said += 1
        shutil.rmtree(copy)
    assert said


SHOULD_NOT_RUN = (
    "import pathlib; pathlib.Path(__file__).with_name('it-ran').touch()\ndef program(guest):\n    yield 0\n"
)


@pytest.mark.fault("F16", full=6, sample=6, unit="ways to name code")
def test_a_topology_runs_no_code_beside_it(fault_count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code is run from installed packages and from --program only, never because it lies beside a data file."""
    (tmp_path / "beside.py").write_text(SHOULD_NOT_RUN)
    (tmp_path / "random.py").write_text(SHOULD_NOT_RUN)
    monkeypatch.chdir(tmp_path)
    names = [
        "beside:program",
        "./beside.py:program",
        "beside.py:program",
        "random:program",
        "beside.program",
        "program",
    ]
    assert len(names) == fault_count
    for name in names:
        topology = tmp_path / "t.toml"
        topology.write_text(f"[machines.a]\nprogram = {json.dumps(name)}\n")
        done = run_ivsim("run", topology)
        assert done.returncode == 2, (name, done.stderr)
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "it-ran").exists()
