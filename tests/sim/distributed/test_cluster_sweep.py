"""A sweep on a cluster that is not there: what is sent where, and what becomes of results and failures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import sim
from nodes.errors import HostError, IvshmemError, RunError, UsageError
from sim.distributed.job import Job, JobResult, pack, unpack
from sim.sweeps import Cell, Plan, Row, Sweep, hosts_are_comparable, make_plan
from topologies import load

pytest.importorskip("distributed")

from sim.distributed import sweep as cluster_sweep
from sim.distributed.dask.client import Done
from sim.distributed.sweep import ClusterSweep
from tests.two_machines import VIRTUAL_STORM

ARCHIVES: dict[tuple[tuple[str, str], ...], tuple[bytes, str]] = {}
"""The packed runs of `VIRTUAL_STORM`, by what was changed in it."""


class FakeSweepCluster:
    """Runs each job in this process at once, as if on one of its hosts; answers the latest job first."""

    title = "tcp://127.0.0.1:1"

    def __init__(self, where: Path, hosts: dict[str, int]) -> None:
        self.where, self.workers = where, hosts
        self.sent: list[tuple[str, str]] = []
        self.most = 0
        self.cancelled = False
        self.answer: Callable[[str, str, JobResult], Done] = lambda name, host, result: Done(name, result, None)
        self._waiting: list[Done] = []
        self._told = 0

    def begun(self) -> list[tuple[str, str]]:
        told, self._told = self.sent[self._told :], len(self.sent)
        return told

    def hosts(self) -> dict[str, int]:
        return self.workers

    def submit(self, name: str, job: Job, host: str | None = None) -> None:
        host = sorted(self.workers)[len(self.sent) % len(self.workers)] if host is None else host
        self.sent.append((name, host))
        self._waiting.append(self.answer(name, host, JobResult(host, 0, b"", "", *self._run(job))))
        self.most = max(self.most, len(self._waiting))

    def wait(self, timeout_s: float) -> Done | None:
        return self._waiting.pop() if self._waiting else None

    def cancel(self) -> list[str]:
        self.cancelled = True
        return []

    def _run(self, job: Job) -> tuple[bytes, str]:
        assert job.arguments[0] == "run"
        words = job.arguments
        pairs = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "--set")
        key = tuple(sorted(pairs.items()))
        if key not in ARCHIVES:
            file = self.where / "sent.toml"
            file.write_bytes(job.files["topology/t.toml"])
            ARCHIVES[key] = pack(sim.run(load(file, pairs), runs=self.where / "there", resources_every_s=0).path)
        return ARCHIVES[key]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "t.toml").write_text(VIRTUAL_STORM)
    return make_plan(str(tmp_path / "t.toml"), {}, {"machines.a.vectors": ["1", "2"]}, repeat=2)


def run(sweep: Sweep, cluster: FakeSweepCluster, **options: bool) -> list[Row]:
    told: list[Row] = []
    begun: set[int] = set()

    def tell(cell: Cell, host: str, row: Row | None) -> None:
        if row is None:
            begun.add(cell.place)
        else:
            assert cell.place in begun
            told.append(row)

    ClusterSweep(sweep, cluster, tell=tell, **options).run()  # type: ignore[arg-type]
    return told


def test_each_run_comes_to_its_place(plan: Plan, tmp_path: Path) -> None:
    sweep = Sweep.create(tmp_path / "sweeps", plan)
    cluster = FakeSweepCluster(tmp_path, {"alpha": 1, "beta": 1})
    told = run(sweep, cluster)
    assert sorted(row.place for row in told) == [1, 2, 3, 4]
    assert [row.seed for row in sweep.rows] == [5, 6, 5, 6]
    assert [row.values["machines.a.vectors"] for row in sweep.rows] == ["1", "1", "2", "2"]
    assert cluster.most <= 4
    assert cluster.cancelled
    sweep.finish()
    assert sorted(path.name for path in sweep.path.iterdir()) == [
        "001",
        "002",
        "003",
        "004",
        "sweep.json",
        "sweep.parquet",
    ]
    assert Sweep.resume(sweep.path).left == []


def test_balance_gives_each_host_every_combination(plan: Plan, tmp_path: Path) -> None:
    cluster = FakeSweepCluster(tmp_path, {"alpha": 3, "beta": 1})
    sweep = Sweep.create(tmp_path / "sweeps", plan)
    run(sweep, cluster, balance=True)
    by_combination = {(int(name) - 1) // 2: set() for name, _ in cluster.sent}
    for name, host in cluster.sent:
        by_combination[(int(name) - 1) // 2].add(host)
    assert by_combination == {0: {"alpha", "beta"}, 1: {"alpha", "beta"}}


def test_an_interrupted_run_is_sent_again_but_not_for_ever(plan: Plan, tmp_path: Path) -> None:
    def interrupted(times: int) -> Callable[[str, str, JobResult], Done]:
        left = [times]

        def answer(name: str, host: str, result: JobResult) -> Done:
            if name != "2" or not left[0]:
                return Done(name, result, None)
            left[0] -= 1
            unpack(result, path := tmp_path / f"cut-{name}-{left[0]}")
            (path / "status").write_text("interrupted\nSIGTERM\n")
            return Done(name, JobResult(host, 143, b"", "", *pack(path)), None)

        return answer

    cluster = FakeSweepCluster(tmp_path, {"alpha": 1})
    cluster.answer = interrupted(2)
    sweep = Sweep.create(tmp_path / "sweeps", plan)
    run(sweep, cluster)
    assert [name for name, _ in cluster.sent].count("2") == 3
    assert sweep.left == []

    cluster = FakeSweepCluster(tmp_path, {"alpha": 1})
    cluster.answer = interrupted(9)
    with pytest.raises(RunError, match="run 2 was interrupted 3 times, now on alpha"):
        run(Sweep.create(tmp_path / "sweeps", plan), cluster)
    assert cluster.cancelled


@pytest.mark.parametrize(
    ("done", "error", "said"),
    [
        (
            lambda name: Done(name, JobResult("beta", 3, b"", "ivsim: no room", b"", ""), None),
            HostError,
            "run {} on beta: no room",
        ),
        (
            lambda name: Done(name, JobResult("beta", 2, b"", "ivsim: bad", b"", ""), None),
            UsageError,
            "run {} on beta: bad",
        ),
        (
            lambda name: Done(name, JobResult("beta", -9, b"", "", b"", ""), None),
            HostError,
            "run {} on beta: exit code -9",
        ),
        (lambda name: Done(name, None, OSError("disk full")), HostError, "run {} cannot be carried out: disk full"),
        (lambda name: Done(name, None, RuntimeError("killed")), RunError, "run {} cannot be carried out: killed"),
        (
            lambda name: Done(name, JobResult("beta", 0, b"", "", b"damaged", "0"), None),
            RunError,
            "the run from beta arrived damaged",
        ),
    ],
)
def test_what_a_host_cannot_do_ends_the_sweep_and_names_it(
    plan: Plan, tmp_path: Path, done: Callable[[str], Done], error: type[IvshmemError], said: str
) -> None:
    cluster = FakeSweepCluster(tmp_path, {"alpha": 1})
    cluster.answer = lambda name, host, result: done(name) if name == "2" else Done(name, result, None)
    sweep = Sweep.create(tmp_path / "sweeps", plan)
    with pytest.raises(error, match=re.escape(said.format(2))):
        run(sweep, cluster)
    assert cluster.cancelled
    assert 2 in {cell.place for cell in Sweep.resume(sweep.path).left}


def test_a_balanced_sweep_ends_when_a_host_with_runs_is_lost(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeSweepCluster(tmp_path, {"alpha": 1, "beta": 1})
    sweep = Sweep.create(tmp_path / "sweeps", plan)
    monkeypatch.setattr(cluster_sweep, "HOSTS_EVERY_S", 0.0)
    monkeypatch.setattr(cluster_sweep, "LOST_HOST_S", 0.0)

    def wait(timeout_s: float) -> None:
        cluster.workers = {"alpha": 1}

    monkeypatch.setattr(cluster, "wait", wait)
    with pytest.raises(HostError, match="beta: no worker since 0 s, and runs are balanced"):
        run(sweep, cluster, balance=True)


def test_hosts_are_comparable_where_each_has_run_everything() -> None:
    def rows(*places: tuple[str, str]) -> list[Row]:
        return [
            Row(place=place, repeat=0, seed=0, values={"k": value}, status="finished", host=host)
            for place, (value, host) in enumerate(places, start=1)
        ]

    assert hosts_are_comparable(["k"], [])
    assert hosts_are_comparable(["k"], rows(("1", "a"), ("2", "a")))
    assert hosts_are_comparable(["k"], rows(("1", "a"), ("1", "b"), ("2", "b"), ("2", "a")))
    assert not hosts_are_comparable(["k"], rows(("1", "a"), ("2", "b")))
    assert not hosts_are_comparable(["k"], rows(("1", "a"), ("1", "b"), ("2", "b")))
