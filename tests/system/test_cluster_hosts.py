"""Sweeps and runs on hosts with a network between them: the same table, whatever is cut, slowed down or killed.

These take minutes: `make clusters` runs them, or pytest with --full.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sim
from sim.sweeps import Sweep
from tests.clusters import Part, alive, descendants, end_all, job_directories, jobs, left_below, table, until
from tests.network_hosts import Network, make_certificates, network
from tests.two_halves import TWO_HALVES
from tests.two_machines import PING_PONG

pytest.importorskip("distributed")

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

FILE = PING_PONG.format(duration_s=0.2)
DEAD_AFTER = "12s"
"""After how long without an answer a connection is dead: 30 s by Dask's default, which also needs 11 s or more."""


class ClusterNetwork:
    """A network with a scheduler, workers and clients."""

    def __init__(self, place: Path, net: Network) -> None:
        self.place, self.net = place, net
        self.tls = make_certificates(place)
        self.parts: list[Part] = []
        self.file = place / "two.toml"
        self.file.write_text(FILE)

    def scheduler(self) -> Part:
        return self._part("hub", ["scheduler", "--host", "0.0.0.0", "--port", "8786", *self.tls], "scheduler: tls://")

    def worker(self, name: str) -> Part:
        number = self.net.number(name)
        address = f"tls://10.77.{number}.1:8786"
        return self._part(name, ["worker", address, "--name", name, *self.tls], f"worker {name}: tls://")

    def sweep(self, *arguments: str) -> Part:
        return self.run("sweep", *arguments)

    def run(self, *arguments: str) -> Part:
        """A command that uses the scheduler."""
        return self._part("hub", [*arguments, "--scheduler", "tls://127.0.0.1:8786", *self.tls], "")

    def here(self, *arguments: str) -> Path:
        """The same sweep without a cluster."""
        part = Part(["sweep", *arguments, "--runs", str(self.place / "here")], self.place / "here.log")
        assert part.wait() == 0, part.complained
        (directory,) = (self.place / "here").iterdir()
        return directory

    def _part(self, host: str, words: list[str], says: str) -> Part:
        part = Part(words, self.place / f"{len(self.parts)}-{host}-{words[0]}.log", self.net.inside(host))
        self.parts.append(part)
        if says:
            part.until_it_says(says)
        return part


@pytest.fixture
def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP", DEAD_AFTER)
    with contextlib.ExitStack() as stack:

        def make(*hosts: str, ahead_s: dict[str, int] | None = None) -> ClusterNetwork:
            site = ClusterNetwork(tmp_path, stack.enter_context(network(hosts, ahead_s)))
            stack.callback(lambda: end_all([part for part in site.parts if part.process.poll() is None]))
            return site

        yield make
    assert left_below(Path(tempfile.gettempdir())) == []


def only(place: Path) -> Path:
    (directory,) = place.iterdir()
    return directory


def done(directory: Path) -> int:
    return len([path for path in directory.iterdir() if path.name.isdecimal()])


MANY = ["--set", "machines.ping.vectors=1,2,4", "--set", "machines.echo.vectors=1,2", "--repeat", "4"]


def test_24_runs_give_the_same_table_here_and_on_two_hosts_and_resumed_after_each_part_was_killed(make_site) -> None:
    site = make_site("alpha", "beta")
    expected = table(site.here(str(site.file), *MANY))
    assert len(expected) == 24
    scheduler = site.scheduler()
    workers = {name: site.worker(name) for name in ("alpha", "beta")}

    # The client: its runs end on both hosts, and the sweep goes on from where it was.
    runs = site.place / "there"
    client = site.sweep(str(site.file), *MANY, "--runs", str(runs))
    until(lambda: runs.exists() and done(only(runs)) >= 4, lambda: client.said + client.complained, what="4 runs")
    its = [pid for worker in workers.values() for pid in jobs(worker)]
    client.end(signal.SIGKILL)
    until(lambda: not alive(its) and not any(jobs(worker) for worker in workers.values()), what="no runs")
    until(lambda: not job_directories(), what="no directory of a job")
    before = done(only(runs))
    assert before < 24

    # A worker, then another with its supervisor: their runs are carried out by others.
    client = site.sweep("--resume", str(only(runs)))
    until(lambda: done(only(runs)) >= before + 4, lambda: client.complained, what="4 more runs")
    os.kill(child(workers["alpha"]), signal.SIGKILL)
    until(lambda: done(only(runs)) >= before + 8, lambda: client.complained, what="8 more runs")
    its = descendants(workers["beta"].process.pid)
    workers["beta"].end(signal.SIGKILL)
    until(lambda: not alive(its), what="the end of the second worker's processes")

    # The scheduler: the client says how to go on, the worker ends its run and waits.
    scheduler.end(signal.SIGKILL)
    assert client.wait() == 1
    assert "go on with: ivsim sweep --resume" in client.complained
    until(lambda: not jobs(workers["alpha"]), what="no run")
    assert done(only(runs)) < 24
    site.scheduler()
    site.worker("beta")
    client = site.sweep("--resume", str(only(runs)))
    assert client.wait() == 0, client.complained
    assert table(only(runs)) == expected
    assert {row.host for row in Sweep.resume(only(runs)).rows} == {"alpha", "beta"}


def test_a_host_that_is_cut_off_loses_its_run_to_another(make_site) -> None:
    site = make_site("alpha", "beta")
    site.scheduler()
    alpha = site.worker("alpha")
    runs = site.place / "there"
    # Long enough for a busy test to see it, and idle.
    idle = ["--set", "machines.ping.program=idle", "--set", "machines.ping.parameters={}"]
    client = site.sweep(str(site.file), *idle, "--set", "run.duration_s=40,0.5", "--runs", str(runs))
    client.until_it_says("1/2  duration_s=40: on alpha")
    until(lambda: len(jobs(alpha)) > 2, what="a run with its machines")
    its = jobs(alpha)
    site.net.cut("alpha")
    site.worker("beta")
    assert client.wait() == 0, client.complained
    until(lambda: not alive(its), what="the end of the run that was cut off")
    rows = Sweep.resume(only(runs)).rows
    assert [(row.place, row.status) for row in rows] == [(1, "finished"), (2, "finished")]
    assert {row.host for row in rows} == {"beta"}
    # It comes back by itself.
    site.net.mend("alpha")
    until(lambda: alpha.said.count("worker alpha: tls://") == 2, lambda: len(alpha.complained), what="its return")


def test_a_slow_link_changes_nothing_but_the_time(make_site) -> None:
    site = make_site("alpha")
    expected = table(site.here(str(site.file), "--set", "machines.ping.vectors=1,2"))
    site.scheduler()
    site.worker("alpha")
    site.net.slow("alpha", "512kbit")
    client = site.sweep(str(site.file), "--set", "machines.ping.vectors=1,2", "--runs", str(site.place / "there"))
    assert client.wait() == 0, client.complained
    assert table(only(site.place / "there")) == expected


def test_hosts_whose_clocks_differ_by_an_hour_balance_their_repeats(make_site) -> None:
    site = make_site("alpha", "beta", ahead_s={"beta": 3600})
    expected = table(site.here(str(site.file), "--repeat", "4"))
    site.scheduler()
    site.worker("alpha")
    beta = site.worker("beta")
    client = site.sweep(str(site.file), "--repeat", "4", "--balance", "--runs", str(site.place / "there"))
    # A worker that is started again is still that host's.
    client.until_it_says("on beta")
    os.kill(child(beta), signal.SIGKILL)
    assert client.wait() == 0, client.complained
    assert table(only(site.place / "there")) == expected
    rows = Sweep.resume(only(site.place / "there")).rows
    assert sorted(row.host for row in rows) == ["alpha", "alpha", "beta", "beta"]
    starts = {row.host: started_ns(only(site.place / "there") / f"{row.place:03d}") for row in rows}
    assert starts["beta"] - starts["alpha"] > 3500e9


def started_ns(run: Path) -> int:
    return int(sim.open(run).origin.started_ns)


def child(worker: Part) -> int:
    """The process that is the worker, below its supervisor."""
    (pid,) = [
        int(pid)
        for path in Path(f"/proc/{worker.process.pid}/task").glob("*/children")
        for pid in path.read_text().split()
    ]
    return pid


def test_three_hosts_share_a_sweep_and_one_of_them_dies_with_its_workers_supervisor(make_site) -> None:
    site = make_site("alpha", "beta", "gamma")
    expected = table(site.here(str(site.file), "--repeat", "9"))
    site.scheduler()
    workers = {name: site.worker(name) for name in ("alpha", "beta", "gamma")}
    client = site.sweep(str(site.file), "--repeat", "9", "--runs", str(site.place / "there"))
    for name in workers:
        client.until_it_says(f"on {name}")
    its = descendants(workers["gamma"].process.pid)
    workers["gamma"].end(signal.SIGKILL)
    until(lambda: not alive(its), what="the end of the third worker's processes")
    assert client.wait() == 0, client.complained
    assert table(only(site.place / "there")) == expected
    assert {row.host for row in Sweep.resume(only(site.place / "there")).rows} >= {"alpha", "beta"}
    until(lambda: not any(jobs(workers[name]) for name in ("alpha", "beta")), what="no run")


# One topology over several hosts


THIRD = """
[domains.middle]
host = "any"
[machines.centre]
domains = ["middle"]
program = "storm"
parameters = { to = "all", rate_hz = 400.0 }
"""


def halves(site: ClusterNetwork, **values: str) -> list[str]:
    """The words of a run of two halves, the left one on alpha and the right one on beta."""
    file = site.place / "halves.toml"
    file.write_text(TWO_HALVES)
    given = {"domains.left.host": "alpha", "domains.right.host": "beta", **values}
    return ["run", str(file), *(word for key, value in given.items() for word in ("--set", f"{key}={value}"))]


def test_two_hosts_whose_clocks_differ_by_an_hour_start_together_and_their_counts_add_up(make_site) -> None:
    site = make_site("alpha", "beta", ahead_s={"beta": 3600})
    site.scheduler()
    workers = [site.worker(name) for name in ("alpha", "beta")]
    client = site.run(*halves(site), "--runs", str(site.place / "there"))
    assert client.wait() == 0, client.said + client.complained
    run = sim.open(only(site.place / "there"))
    parts = run.parts
    assert [(host, part.origin.host.name, part.figures.machines) for host, part in parts.items()] == [
        ("alpha", "alpha", 2),
        ("beta", "beta", 3),
    ]
    assert run.figures.rung == sum(part.figures.rung for part in parts.values()) > 0
    assert run.figures.balanced
    assert [verdict.met for verdict in run.figures.expectations] == [True, True]
    assert parts["beta"].figures.start_ns - parts["alpha"].figures.start_ns > 3500e9
    # UTC is the machine's: within it, the two have started no further apart than a busy host delays one of them.
    part_ready = max(event["utc"] for event in run.events() if event["kind"] == "part_ready")
    assert all(
        part_ready < event["utc"] for part in parts.values() for event in part.events() if event["kind"] == "ready"
    )
    until(lambda: not any(jobs(worker) for worker in workers), what="no run")


def test_three_hosts_run_a_topology_together(make_site) -> None:
    """One domain has a name, two go where there is room: each host has one."""
    site = make_site("alpha", "beta", "gamma")
    site.scheduler()
    for name in ("alpha", "beta", "gamma"):
        site.worker(name)
    file = site.place / "thirds.toml"
    file.write_text(TWO_HALVES + THIRD)
    client = site.run("run", str(file), "--set", "domains.left.host=gamma", "--runs", str(site.place / "there"))
    assert client.wait() in (0, 99), client.said + client.complained
    run = sim.open(only(site.place / "there"))
    machines = {host: part.figures.machines for host, part in run.parts.items()}
    assert machines.keys() == {"alpha", "beta", "gamma"}
    assert machines["gamma"] == 2
    assert sorted(machines.values()) == [1, 2, 3]
    assert run.figures.rung == sum(part.figures.rung for part in run.parts.values()) > 0
    assert run.figures.balanced


def test_a_host_that_is_cut_off_during_the_run_fails_it_and_the_other_is_kept(make_site) -> None:
    site = make_site("alpha", "beta")
    site.scheduler()
    alpha, beta = site.worker("alpha"), site.worker("beta")
    client = site.run(*halves(site, **{"run.duration_s": "600"}), "--runs", str(site.place / "there"))
    client.until_it_says("all machines are ready: started")
    its = [pid for worker in (alpha, beta) for pid in jobs(worker)]
    site.net.cut("alpha")
    assert client.wait() == 1, client.said + client.complained
    run = sim.open(only(site.place / "there"))
    assert (run.status, run.reason) == ("failed", "alpha was lost after the start: its worker is gone")
    assert list(run.parts) == ["beta"]
    assert run.parts["beta"].status == "interrupted"
    assert run.figures.rung == run.parts["beta"].figures.rung > 0
    until(lambda: not alive(its), what="the end of both parts")
    # It comes back, and the next run is whole.
    site.net.mend("alpha")
    until(lambda: alpha.said.count("worker alpha: tls://") == 2, lambda: len(alpha.complained), what="its return")
    again = site.run(*halves(site), "--runs", str(site.place / "again"))
    assert again.wait() == 0, again.said + again.complained
    assert sim.open(only(site.place / "again")).status == "finished"
