"""Sweeps: splitting of values, cells, what is run once, and what is left after an interrupt."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sim
from nodes.errors import HostError, UsageError
from sim.commands.parameters import split_values
from sim.results import Run
from sim.sweeps import INTERRUPTED, Cell, Plan, Row, Sweep, make_plan
from tests.command import invoke
from tests.two_machines import PING_PONG
from topologies import Topology, TopologyError

FILE = PING_PONG.format(duration_s=0.05)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(FILE)
    return path


# Values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ["1"]),
        ("1,2,4", ["1", "2", "4"]),
        (" 1 , 2 ", ["1", "2"]),
        ('["b","c"],"all"', ['["b","c"]', '"all"']),
        ("[[1,2],[3]],[]", ["[[1,2],[3]]", "[]"]),
        ("{a=1,b=2},{}", ["{a=1,b=2}", "{}"]),
        ('"a,b",c', ['"a,b"', "c"]),
        (r'"a\",b",c', [r'"a\",b"', "c"]),
        (r'"a\\",b', [r'"a\\"', "b"]),
        ("'a\",b',c", ["'a\",b'", "c"]),
    ],
)
def test_commas_part_values_where_nothing_is_open(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["", ",", "1,,2", "1,", "[1,2", "1]", '"a', "it's", "[1,2]],3"])
def test_values_that_are_not_whole_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="each whole"):
        split_values(text)


@given(st.lists(st.one_of(st.integers(), st.text(), st.lists(st.text())), min_size=1))
def test_joined_json_values_are_split_again(values: list[object]) -> None:
    written = [json.dumps(value) for value in values]
    assert split_values(",".join(written)) == written


# Plans


def test_the_cells_are_the_product_in_order(file: Path) -> None:
    axes = {"machines.ping.vectors": ["1", "2"], "run.sample_every": ["1", "2", "4"]}
    plan = make_plan(str(file), {"seed": "9"}, axes)
    assert plan.varied == list(axes)
    assert [cell.place for cell in plan.cells] == [1, 2, 3, 4, 5, 6]
    assert plan.cells[1].overrides == {"seed": "9", "machines.ping.vectors": "1", "run.sample_every": "2"}
    assert [plan.topology(cell).run.sample_every for cell in plan.cells] == [1, 2, 4, 1, 2, 4]
    assert {plan.topology(cell).seed for cell in plan.cells} == {9}


def test_repeats_draw_other_seeds_that_can_be_had_again(file: Path) -> None:
    plan = make_plan(str(file), {}, {"run.sample_every": ["1", "2"]}, repeat=3)
    assert [(cell.repeat, plan.topology(cell).seed) for cell in plan.cells] == [(0, 5), (1, 6), (2, 7)] * 2


def test_a_sweep_without_axes_is_refused(file: Path) -> None:
    with pytest.raises(UsageError, match="nothing varies"):
        make_plan(str(file), {"seed": "3"}, {})
    assert len(make_plan(str(file), {}, {}, repeat=2).cells) == 2


def test_too_much_to_vary_is_said_before_it_is_made(file: Path) -> None:
    many = [str(number) for number in range(1, 1001)]
    with pytest.raises(UsageError, match="at most 10000 runs, got 1000000000"):
        make_plan(str(file), {}, {"seed": many, "run.sample_every": many, "run.duration_s": many})


def test_a_wrong_cell_is_found_before_anything_runs(file: Path) -> None:
    with pytest.raises(TopologyError, match=r"vectors=99999"):
        make_plan(str(file), {}, {"machines.ping.vectors": ["1", "99999"]})


def test_the_files_matrix_varies_unless_a_value_is_given(file: Path) -> None:
    file.write_text(FILE + '[matrix]\n"run.sample_every" = [1, 2]\n"machines.echo.program" = ["echo"]\n')
    plan = make_plan(str(file), {}, {})
    assert [cell.overrides for cell in plan.cells] == [
        {"run.sample_every": "1", "machines.echo.program": "echo"},
        {"run.sample_every": "2", "machines.echo.program": "echo"},
    ]
    assert len(make_plan(str(file), {}, {"run.sample_every": ["4", "8", "16"]}).cells) == 3
    with pytest.raises(UsageError, match="nothing varies"):
        make_plan(str(file), {"run.sample_every": "4"}, {})


def test_a_sweep_finds_the_files_that_go_with_its_topology(file: Path) -> None:
    program = file.with_name("mine.py")
    program.write_text("def nothing(guest):\n    yield None\n")
    file.write_text(FILE.replace('program = "echo"\nparameters = { to = "ping" }', 'program = "nothing"'))
    plan = make_plan(str(file), {}, {"run.sample_every": ["1", "2"]}, programs=[program])
    assert plan.programs == [str(program)]
    assert "nothing" in plan.topology(plan.cells[1]).machines[1].program


# Runs


class Runner:
    """Runs for real, and remembers which; the run number ``stop_at`` comes back as one that was interrupted."""

    def __init__(self, stop_at: int = 0) -> None:
        self.ran: list[dict[str, str]] = []
        self.stop_at = stop_at

    def __call__(self, topology: Topology, runs: Path) -> Run:
        self.ran.append(dict(topology.overrides))
        run = sim.run(topology, runs=runs, resources_every_s=0)
        if len(self.ran) == self.stop_at:
            (run.path / "status").write_text(f"{INTERRUPTED}\nSIGINT\n")
        return Run(run.path)


def carry_out(sweep: Sweep, cell: Cell, runner: Runner) -> tuple[Row, str]:
    return sweep.take(cell, runner(sweep.plan.topology(cell), sweep.unfinished))


def test_only_interrupted_cells_are_run_again(file: Path, tmp_path: Path) -> None:
    plan = make_plan(str(file), {}, {"machines.ping.vectors": ["1", "2"]})
    sweep = Sweep.create(tmp_path / "sweeps", plan)
    runner = Runner(stop_at=2)
    assert carry_out(sweep, plan.cells[0], runner)[1] == ""
    row, stopped = carry_out(sweep, plan.cells[1], runner)
    assert (row.status, stopped) == (INTERRUPTED, "SIGINT")
    assert [cell.place for cell in sweep.left] == [2]
    sweep.finish()

    again = Sweep.resume(sweep.path, make_plan(str(file), {}, {"machines.ping.vectors": ["1", "2"]}))
    assert again.rows == sweep.rows
    assert [cell.place for cell in again.left] == [2]
    runner = Runner()
    carry_out(again, again.left[0], runner)
    again.finish()
    assert runner.ran == [{"machines.ping.vectors": "2"}]
    assert Sweep.resume(sweep.path).left == []
    assert {entry.name for entry in sweep.path.iterdir()} == {
        "001",
        "002",
        "sweep.json",
        "sweep.parquet",
        "unfinished",
    }
    assert sim.open(sweep.path / "002").status == "finished"

    table = pq.read_table(sweep.path / "sweep.parquet").to_pylist()
    assert [(row["place"], row["machines.ping.vectors"], row["status"]) for row in table] == [
        (1, 1, "finished"),
        (2, 2, "finished"),
    ]
    figures = sim.open(sweep.path / "002").summary
    assert table[1]["rung_per_s"] == figures["doorbells_per_s"]
    assert table[1]["delivery_p50_ns"] == figures["latency_ns"]["delivery"]["p50"]


def test_another_sweep_is_not_gone_on_with(file: Path, tmp_path: Path) -> None:
    def plan(*values: str) -> Plan:
        return make_plan(str(file), {}, {"run.sample_every": list(values)})

    sweep = Sweep.create(tmp_path / "sweeps", plan("1", "2"))
    program, second = tmp_path / "p.py", tmp_path / "second.toml"
    program.write_text("def nothing(guest):\n    yield None\n")
    second.write_text(FILE + "# another\n")
    axes = {"run.sample_every": ["1", "2"]}
    for other, difference in [
        (plan("1", "2", "3"), "expected 2 runs, got 3"),
        (plan("1", "4"), "expected run.sample_every=2 in run 2, got run.sample_every=4"),
        (make_plan(str(file), {}, axes, programs=[program]), f"expected the programs none, got {program}"),
        (make_plan(str(second), {}, axes), f"expected the topology {file}, got {second}"),
    ]:
        with pytest.raises(UsageError) as refused:
            Sweep.resume(sweep.path, other)
        assert str(refused.value) == (
            f"{sweep.path}: another sweep was begun there: {difference}. To go on with that one, leave out the "
            "topology and what goes with it; to run this one, leave out --resume"
        )
    assert len(Sweep.resume(sweep.path, plan("1", "2")).left) == 2
    file.write_text(FILE + "# changed\n")
    for same in (None, plan("1", "2")):
        with pytest.raises(UsageError, match=f"{file}: the topology has changed since .* put back what it was"):
            Sweep.resume(sweep.path, same)


def test_a_run_of_something_else_is_not_taken_for_a_cell(file: Path, tmp_path: Path) -> None:
    plan = make_plan(str(file), {}, {}, repeat=2)
    sweep = Sweep.create(tmp_path / "sweeps", plan)
    other = make_plan(str(file), {"seed": "77"}, {}, repeat=2)
    run = sim.run(other.topology(other.cells[0]), runs=tmp_path / "runs", resources_every_s=0)
    shutil.move(run.path, sweep.run_path(plan.cells[0]))
    with pytest.raises(UsageError, match="another topology or seed"):
        Sweep.resume(sweep.path)


def test_a_directory_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sweep to go on with"):
        Sweep.resume(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UsageError, match="no sweep to go on with"):
        Sweep.resume(tmp_path)


@pytest.mark.parametrize(
    ("its", "code"),
    [
        ({"status": "finished"}, 0),
        ({"status": "degraded"}, 0),
        ({"status": "finished", "missed": ["rung > 5"]}, 99),
        ({"status": "failed", "missed": ["rung > 5"], "aborted": True}, 99),
        ({"status": "finished", "missed": ["rung > 5"], "balanced": False}, 1),
        ({"status": "failed"}, 1),
    ],
)
def test_a_rows_code_is_that_of_the_run(its: dict[str, Any], code: int) -> None:
    row = Row(**{"place": 1, "repeat": 0, "seed": 1, "values": {}, "balanced": True} | its)
    assert row.exit_code == code


# The command


def ivsim(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sim", "sweep", *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_command_runs_all_and_shows_one_table(file: Path, tmp_path: Path) -> None:
    done = ivsim(str(file), "--set", "machines.ping.vectors=1,2", "--set", "seed=3", "--runs", str(tmp_path / "r"))
    (directory,) = (tmp_path / "r").iterdir()
    assert directory.name.startswith("sweep-two-that-ring-")
    assert not (directory / "unfinished").exists()
    head, first, second, place = done.stdout.splitlines()
    assert head.split()[:4] == ["run", "vectors", "status", "rung/s"]
    assert first.split()[:3] == ["1", "1", "finished"]
    assert second.split()[:3] == ["2", "2", "finished"]
    assert place == f"sweep: {directory}"
    assert "2/2  vectors=2: finished, " in done.stderr
    # All is done: nothing is run again, and the result is the same.
    again = ivsim("--resume", str(directory), "--json")
    assert json.loads(again.stdout)["plan"]["cells"][1]["overrides"] == {"seed": "3", "machines.ping.vectors": "2"}
    assert again.stderr == ""


def test_an_interrupt_says_how_to_go_on(file: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "sim", "sweep", str(file), "--set", "run.duration_s=0.05,60"]
    with subprocess.Popen(
        [*arguments, "--runs", str(tmp_path / "r")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("1/2  duration_s=0.05: finished")
        deadline = time.monotonic() + 60
        while not any("ready" in its.read_text() for its in tmp_path.glob("r/*/unfinished/*/events.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    (directory,) = (tmp_path / "r").iterdir()
    assert f"SIGINT: 1 of 2 runs are done; go on with: ivsim sweep --resume {directory}" in err
    assert "Traceback" not in err
    assert out.splitlines()[1].split()[:3] == ["1", "0.05", "finished"]
    assert [cell.place for cell in Sweep.resume(directory).left] == [2]


@pytest.mark.parametrize(
    ("raised", "code", "said"), [(KeyboardInterrupt(), 130, "SIGINT"), (HostError("full"), 3, "stopped")]
)
def test_an_error_between_runs_says_how_to_resume(
    raised: BaseException,
    code: int,
    said: str,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, runs = sim.run, iter([None, raised])

    def run(topology: Topology, **options: Any) -> Run:
        wrong = next(runs)
        if wrong is not None:
            raise wrong
        return real(topology, **options)

    monkeypatch.setattr("sim.runner.run", run)
    done = invoke("sweep", str(file), "--set", "run.sample_every=1,2", "--runs", str(tmp_path / "r"))
    assert done.returncode == code
    assert f"{said}: 1 of 2 runs are done; go on with: ivsim sweep --resume" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "TOPOLOGY is missing"),
        (["--resume", "x", "--repeat", "2"], 2, "--set, --repeat and --program go with it"),
        (["--resume", "x", "--program", "FILE"], 2, "--set, --repeat and --program go with it"),
        (["FILE", "--set", "run.sample_every=1,,2"], 2, "each whole"),
        (["FILE", "--set", "run.sample_every"], 2, "expected KEY=VALUE,VALUE"),
        (["FILE"], 2, "nothing varies"),
        (["FILE", "--set", "run.duration=1,2"], 2, "an unknown key"),
        (["no-such", "--repeat", "2"], 2, "neither"),
        (["--resume", "/"], 2, "no sweep to go on with"),
    ],
)
def test_wrong_use_is_one_clear_error(file: Path, arguments: list[str], code: int, said: str) -> None:
    done = invoke("sweep", *(str(file) if word == "FILE" else word for word in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_a_cell_that_does_not_fit_is_reported_before_the_first_run(file: Path, tmp_path: Path) -> None:
    arguments = [str(file), "--set", "machines.ping.count=1,600", "--set", "machines.ping.vectors=2000"]
    done = ivsim(*arguments, "--runs", str(tmp_path / "r"), code=3)
    assert "run 2 (count=600): this topology needs 120" in done.stderr
    assert "run 1" not in done.stderr
    assert not (tmp_path / "r").exists()
    (tmp_path / "file").touch()
    elsewhere = ivsim(str(file), "--repeat", "3", "--runs", str(tmp_path / "file"), code=2)
    assert "ivsim: run 1 (#0) and 2 more: " in elsewhere.stderr
    assert f"{tmp_path / 'file'} is no directory" in elsewhere.stderr
    dry = ivsim(*arguments, "--dry-run", code=3)
    assert dry.stdout.splitlines()[1].split() == ["1", "count=1", "2", "2001", "0.07", "s"]
