"""A sweep on a cluster of real processes on this host: the same table, and nothing that is left."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodes.errors import UsageError
from sim.cli import ivsim
from sim.host.inventory import inventory
from sim.sweeps import Sweep
from tests.clusters import Part, alive, cluster, descendants, job_directories, jobs, left_below, table, until
from tests.two_machines import PING_PONG

pytest.importorskip("distributed")

FILE = PING_PONG.format(duration_s=0.05)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(FILE)
    return path


@pytest.mark.timeout(600)  # two commands and three runs, each of which waits for a CPU
def test_a_killed_workers_run_is_repeated_and_nothing_is_left(file: Path, tmp_path: Path) -> None:
    """The worker is killed once its run has begun; the run is carried out again by the worker that follows."""
    with cluster(tmp_path, ["alpha"]) as (address, scheduler, workers):
        arguments = ["sweep", str(file), "--set", "run.engine=process,virtual", "--set", "run.duration_s=0.5"]
        client = Part([*arguments, "--scheduler", address, "--runs", str(tmp_path / "r")], tmp_path / "client.log")
        client.until_it_says("1/2  engine=process: on alpha")
        (worker,) = [
            pid for pid in descendants(workers["alpha"].process.pid) if parent(pid) == workers["alpha"].process.pid
        ]
        listed = [(item.kind, item.pid) for item in inventory()]
        assert ("worker", workers["alpha"].process.pid) in listed
        assert ("server", scheduler.process.pid) in listed
        its = descendants(worker)  # none, should the host have been so slow that the run is over
        os.kill(worker, signal.SIGKILL)
        workers["alpha"].until_it_says("the worker has ended (SIGKILL)")
        assert client.wait() == 0, client.complained
        assert alive(its) == []
    (directory,) = (tmp_path / "r").iterdir()
    assert [(row["place"], row["repeat"], row["seed"]) for row in table(directory)] == [(1, 0, 5), (2, 0, 5)]
    assert {row.host for row in Sweep.resume(directory).rows} == {"alpha"}
    assert "host" in client.said.splitlines()[0].split()
    assert left_below(Path(tempfile.gettempdir())) == []


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_client_that_ends_leaves_nothing_and_the_workers_serve_the_next_one(
    file: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with cluster(tmp_path, ["alpha", "beta"]) as (address, _, workers):
        arguments = ["sweep", str(file), "--set", "run.duration_s=600,601,602", "--scheduler", address]
        client = Part([*arguments, "--runs", str(tmp_path / "r")], tmp_path / "client.log")
        client.until_it_says("on alpha")
        client.until_it_says("on beta")
        for worker in workers.values():
            until(lambda its=worker: len(jobs(its)) > 2, what="a run with its machines")
        its = [pid for worker in workers.values() for pid in jobs(worker)]
        assert client.end(number) == code
        if number != signal.SIGKILL:  # the command has waited for that
            assert alive(its) == []
            assert "0 of 3 runs are done; go on with: ivsim sweep --resume" in client.complained
        until(lambda: not alive(its), what="the end of the runs")
        until(lambda: not job_directories(), what="no directory of a job")
        arguments = ["sweep", str(file), "--set", "run.engine=virtual", "--repeat", "2", "--scheduler", address]
        again = Part([*arguments, "--runs", str(tmp_path / "again")], tmp_path / "again.log")
        assert again.wait() == 0, again.complained


EXAMPLES = Path(__file__).parents[2] / "examples"
EXPLORE = [
    *("explore", str(EXAMPLES / "explore.toml")),
    *("--program", str(EXAMPLES / "ring_buffer.py"), "--program", str(EXAMPLES / "lost_wake_up.py")),
]


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_first_seed_that_fails_ends_the_others_and_its_schedule_can_be_replayed(tmp_path: Path) -> None:
    with cluster(tmp_path, ["alpha", "beta"]) as (address, _, workers):
        file = tmp_path / "schedule.json"
        words = [*EXPLORE, "--set", "machines.consumer.program=lossy_consumer", "--seeds", "200000"]
        words += ["--scheduler", address, "-o", str(file)]
        client = Part(words, tmp_path / "client.log")
        assert client.wait() == 99, client.complained
        assert "the shortest schedule has 1 of the" in client.said
        assert int(client.said.split()[0]) < 20_000  # of 200,000 seeds
        until(lambda: not any(jobs(worker) for worker in workers.values()), what="no batch")
        until(lambda: not job_directories(), what="no directory of a job")
        replayed = Part(["run", "--replay", str(file)], tmp_path / "replayed.log")
        assert replayed.wait() == 99, replayed.complained


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_search_that_ends_leaves_no_batch(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with cluster(tmp_path, ["alpha", "beta"]) as (address, _, workers):
        words = [*EXPLORE, "--seeds", "1000000", "--jobs", "2", "--scheduler", address]
        client = Part(words, tmp_path / "client.log")
        for worker in workers.values():
            until(lambda its=worker: len(jobs(its)) > 2, client.process.poll, what=f"a batch: {client.said}")
        its = [pid for worker in workers.values() for pid in jobs(worker)]
        assert client.end(number) == code, client.complained
        until(lambda: not alive(its), what="the end of the batches")
        until(lambda: not job_directories(), what="no directory of a job")
    assert left_below(Path(tempfile.gettempdir())) == []


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scheduler", "--host", "0.0.0.0"], "0.0.0.0 is not on this host's loopback"),
        (["worker", "tcp://192.0.2.1:8786"], "192.0.2.1 is not on this host's loopback"),
        (["worker", "tcp://127.0.0.1:8786", "--host", "0.0.0.0"], "0.0.0.0 is not on this host's loopback"),
        (["worker", "tcp://127.0.0.1:8786", "--name", "a#b"], "expected a name without #"),
        (["sweep", "FILE", "--repeat", "2", "--scheduler", "tcp://192.0.2.1:1"], "needs TLS"),
        (["sweep", "FILE", "--repeat", "2", "--scheduler", "tls://192.0.2.1:1"], "expected --tls-ca"),
        (["sweep", "FILE", "--repeat", "2", "--scheduler", "x", "--workers", "2"], "not both"),
        (["sweep", "FILE", "--repeat", "2", "--balance"], "--balance goes with --scheduler"),
    ],
)
def test_what_is_not_protected_or_makes_no_sense_is_refused(file: Path, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(ivsim, [str(file) if word == "FILE" else word for word in arguments])
    assert isinstance(done.exception, UsageError | SystemExit)
    assert said in done.output + str(done.exception)
