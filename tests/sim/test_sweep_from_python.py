"""`sim.sweep`: a table with its runs, here and on workers, begun and continued."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sim
from nodes.errors import UsageError
from sim.sweeps import Row, Sweep, make_plan
from sim.sweeps.run_sweep import SweepResult
from tests.two_machines import VIRTUAL_STORM


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(VIRTUAL_STORM)
    return path


def test_a_sweep_has_a_table_and_runs(file: Path, tmp_path: Path) -> None:
    told: list[Row] = []
    done = sim.sweep(file, {"machines.a.vectors": [1, 2]}, overrides={"seed": 9}, runs=tmp_path, on_row=told.append)
    assert len(done) == 2
    assert told == done.rows
    assert not done.interrupted
    table = done.table()
    assert table["machines.a.vectors"].to_pylist() == [1, 2]
    assert table["seed"].to_pylist() == [9, 9]
    assert table["status"].to_pylist() == ["finished", "finished"]
    assert [run.figures.doorbells_per_s for run in done.runs] == table["rung_per_s"].to_pylist()
    assert list(done.frame()["machines.a.vectors"]) == [1, 2]
    assert "machines.a.vectors" in str(done._repr_html_())
    # What is done is not run again.
    again = sim.sweep(file, {"machines.a.vectors": [1, 2]}, overrides={"seed": 9}, resume=done.path, on_row=pytest.fail)
    assert again.rows == done.rows


@pytest.mark.full
@pytest.mark.timeout(600)
def test_workers_give_the_same_table(file: Path, tmp_path: Path) -> None:
    """In a process of its own: Dask keeps threads until the process ends."""
    pytest.importorskip("distributed")
    axes = {"machines.a.vectors": [1, 2]}
    here = sim.sweep(file, axes, runs=tmp_path / "here")
    text = f"import sim; print(sim.sweep({str(file)!r}, {axes!r}, runs={str(tmp_path / 'there')!r}, workers=2).path)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=500, check=True)
    assert done.stderr == ""
    there = Sweep.resume(Path(done.stdout.strip()))

    def known(row: Row) -> Row:
        return msgspec.structs.replace(row, uss_bytes=None, ready_s=None)

    # Under virtual time all figures are the same.
    assert list(map(known, there.rows)) == list(map(known, here.rows))
    assert {path.name for path in there.path.iterdir()} == {"001", "002", "sweep.json", "sweep.parquet"}


def test_latencies_of_different_hosts_are_not_side_by_side(file: Path, tmp_path: Path) -> None:
    plan = make_plan(str(file), {}, {"machines.a.vectors": ["1", "2"]})
    its = Sweep.create(tmp_path / "sweeps", plan)
    rows = [
        Row(
            place=place,
            repeat=0,
            seed=5,
            values={"machines.a.vectors": str(place)},
            status="finished",
            delivery_p50_ns=1000 * place,
            rung_per_s=2.0,
            host=host,
        )
        for place, host in ((1, "alpha"), (2, "beta"))
    ]
    its._rows = {row.place: row for row in rows}
    result = SweepResult(its)
    assert result.hosts == ["alpha", "beta"]
    assert result.table()["delivery_p50_ns"].to_pylist() == [None, None]
    assert result.table()["rung_per_s"].to_pylist() == [2.0, 2.0]
    assert result.table(across_hosts=True)["delivery_p50_ns"].to_pylist() == [1000, 2000]
    its._rows = {1: rows[0]}
    assert SweepResult(its).table()["delivery_p50_ns"].to_pylist() == [1000]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"axes": {"machines.a.vectors": []}}, "expected a list of values"),
        ({"axes": {"machines.a.vectors": "12"}}, "expected a list of values"),
        ({"repeat": 2, "scheduler": "tcp://192.0.2.1:1"}, "needs TLS"),
        ({"repeat": 2, "scheduler": "tcp://127.0.0.1:1", "workers": 2}, "not both"),
        ({"repeat": 2, "balance": True}, "balance goes with a scheduler"),
        ({}, "nothing varies"),
    ],
)
def test_wrong_use_starts_nothing(file: Path, tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        sim.sweep(file, runs=tmp_path / "runs", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options", [{"workers": 2}, {"scheduler": "tcp://127.0.0.1:1"}])
def test_without_dask_the_extra_is_named(
    file: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'ivshmem-sim\[dist\]'"):
        sim.sweep(file, repeat=2, runs=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()
