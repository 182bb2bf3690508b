"""One topology over several hosts, as real processes: the workers of this host stand for them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import sim
from nodes.errors import UsageError
from sim.cli import ivsim
from tests.clusters import Part, alive, cluster, descendants, job_directories, jobs, left_below, until
from tests.two_halves import TWO_HALVES
from topologies import loads


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "halves.toml"
    path.write_text(TWO_HALVES)
    return path


def only(place: Path) -> sim.Run:
    (path,) = place.iterdir()
    return sim.open(path)


def start_held(tmp_path: Path, results: list[sim.Run]) -> tuple[socket.socket, threading.Thread]:
    """A run of one half whose start is held: the other end of its socket, and its thread."""
    near, far = socket.socketpair()
    near.settimeout(300)

    def run() -> None:
        with far:
            descriptor = os.dup(far.fileno())
        results.append(sim.run(loads(TWO_HALVES), domains=["left"], runs=tmp_path, start_fd=descriptor))

    thread = threading.Thread(target=run)
    thread.start()
    return near, thread


@pytest.mark.timeout(600)
def test_a_run_starts_when_it_is_told_to(tmp_path: Path) -> None:
    results: list[sim.Run] = []
    near, thread = start_held(tmp_path, results)
    with near:
        assert near.recv(64) == b"ready\n"
        (directory,) = tmp_path.iterdir()
        events = (directory / "events.jsonl").read_text()
        assert '"ready"' not in events  # which the run writes when it starts
        near.send(b"go\n")
        thread.join()
    (run,) = results
    assert (run.status, run.reason) == ("finished", "")
    assert run.figures.machines == 2
    assert run.figures.rung > 0


@pytest.mark.timeout(600)
def test_a_start_that_is_called_off_ends_the_run(tmp_path: Path) -> None:
    results: list[sim.Run] = []
    near, thread = start_held(tmp_path, results)
    with near:
        assert near.recv(64) == b"ready\n"
    thread.join()
    (run,) = results
    assert (run.status, run.reason) == ("failed", "the start was called off")
    assert run.figures.rung == 0


def test_a_start_is_held_by_a_socket_only(tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as plain, pytest.raises(UsageError, match="expected a connected socket"):
        sim.run(loads(TWO_HALVES), domains=["left"], runs=tmp_path, start_fd=plain.fileno())


@pytest.mark.timeout(900)
def test_two_parts_start_together_and_their_counts_add_up(tmp_path: Path) -> None:
    """The scenario that ships."""
    pytest.importorskip("distributed")
    runs = tmp_path / "runs"
    short = ["--set", "run.duration_s=0.5", "--set", "run.warmup_s=0"]
    part = Part(["run", "two_hosts", *short, "--workers", "2", "--runs", str(runs), "--json"], tmp_path / "run.log")
    assert part.wait() in (0, 99), part.complained  # the expectations are judged below
    run = only(runs)
    assert json.loads(part.said)["rung"] == run.figures.rung
    assert {host: part.figures.machines for host, part in run.parts.items()} == {"worker-1": 3, "worker-2": 2}
    assert run.figures.rung == sum(part.figures.rung for part in run.parts.values()) > 0
    summed, of_east = run.figures.expectations
    assert (summed.got, summed.met) == (run.figures.refused, True)
    assert [of_east] == run.parts["worker-2"].figures.expectations
    kinds = [event["kind"] for event in run.events()]
    assert sorted(kinds) == sorted(["part_begun", "part_ready", "part_ended"] * 2 + ["parts_started"])
    assert kinds.index("parts_started") > max(place for place, kind in enumerate(kinds) if kind == "part_ready")
    # No part started before all were ready.
    for half in run.parts.values():
        (began,) = [event["utc"] for event in half.events() if event["kind"] == "ready"]
        assert max(event["utc"] for event in run.events() if event["kind"] == "part_ready") < began


OVER_HOSTS = """
import sys
import sim
from nodes.guest import Peers

def count(guest, *, to: Peers):
    for peer in to:
        guest.ring(peer)
    yield from ()

overrides = {"run.duration_s": 0.2, "machines.west.program": "count", "machines.west.parameters": {"to": "west"}}
run = sim.run(sys.argv[1], workers=2, overrides=overrides, programs=count, runs=sys.argv[2])
print(run.path)
"""


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_call_in_python_runs_over_hosts_also_with_a_function_of_its_own(file: Path, tmp_path: Path) -> None:
    """In a process of its own: Dask keeps threads until the process ends."""
    pytest.importorskip("distributed")
    words = [sys.executable, "-c", OVER_HOSTS, str(file), str(tmp_path / "runs")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=800, check=True)
    assert done.stderr == ""
    run = sim.open(done.stdout.strip())
    assert (run.status, run.figures.machines, len(run.parts)) == ("finished", 5, 2)
    assert run.figures.groups["west"].rung == 2
    assert run.figures.balanced


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 2, "domains": ["left"]}, "domains goes with a run on this host"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "not both"),
        ({"workers": 0}, "expected a number from 1, got 0"),
        ({"tls": ("ca.pem", "host.pem", "host.key")}, "there is no such file"),
        ({"scheduler": "tcp://192.0.2.1:1"}, "needs TLS"),
        ({"workers": 2, "overrides": {"run.engine": "virtual"}}, "no domain has a host"),
    ],
)
def test_a_call_that_makes_no_sense_starts_nothing(
    file: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UsageError, match=said):
        sim.run(file, runs=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "`ivsim run FILE --scheduler ADDRESS` runs them there"),
        (
            ["--workers", "1", "--set", 'domains.left.host="a"', "--set", 'domains.right.host="b"'],
            2,
            "hosts a, b, got 1",
        ),
        (["--workers", "2", "--socket", "s"], 2, "--socket goes with a run on this host"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], 2, "not both"),
        (["--workers", "2", "--engine", "virtual"], 2, "no domain has a host"),
        (["--domains", "left,middle"], 2, "expected domains of the topology (left, right), got middle"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_does(
    file: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    pytest.importorskip("distributed")
    done = CliRunner().invoke(ivsim, ["run", str(file), "--runs", str(tmp_path / "runs"), *arguments])
    assert said in done.output + str(done.exception)
    assert done.exit_code == code or isinstance(done.exception, UsageError)
    assert not (tmp_path / "runs").exists()


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupt_ends_all_parts_and_keeps_what_they_have_measured(
    file: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    pytest.importorskip("distributed")
    with cluster(tmp_path, ["alpha", "beta"]) as (address, _, workers):
        words = ["run", str(file), "--set", "run.duration_s=600", "--scheduler", address]
        client = Part([*words, "--runs", str(tmp_path / "runs")], tmp_path / "client.log")
        client.until_it_says("all machines are ready: started")
        its = [pid for worker in workers.values() for pid in jobs(worker)]
        assert client.end(number) == code
        until(lambda: not alive(its), what="the end of the machines")
        until(lambda: not job_directories(), what="no directory of a job")
        run = only(tmp_path / "runs")
        if number == signal.SIGKILL:
            assert run.status == "died"
        else:
            assert (run.status, run.reason) == ("interrupted", number.name)
            assert {host: part.status for host, part in run.parts.items()} == dict.fromkeys(
                ("alpha", "beta"), "interrupted"
            )
            assert run.figures.balanced
            assert run.figures.rung == sum(part.figures.rung for part in run.parts.values())
        # The workers serve the next one.
        again = Part([*words, "--set", "run.duration_s=0.1", "--runs", str(tmp_path / "again")], tmp_path / "again.log")
        again.wait()
        assert only(tmp_path / "again").status == "finished", again.complained
    assert left_below(Path(tempfile.gettempdir())) == []


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_host_that_dies_is_named_and_the_others_keep_their_results(file: Path, tmp_path: Path, when: str) -> None:
    """Before the start: its worker is killed while another run keeps the other worker busy."""
    pytest.importorskip("distributed")
    with cluster(tmp_path, ["alpha", "beta"]) as (address, _, workers):
        words = ["run", str(file), "--set", "run.duration_s=600", "--set", 'domains.left.host="alpha"']
        words += ["--set", 'domains.right.host="beta"', "--scheduler", address]
        busy = None
        if when == "before":
            one = tmp_path / "one.toml"
            one.write_text(TWO_HALVES.replace('"any"', '"beta"'))
            busy = Part(
                [
                    "run",
                    str(one),
                    "--set",
                    "run.duration_s=600",
                    "--scheduler",
                    address,
                    "--runs",
                    str(tmp_path / "busy"),
                ],
                tmp_path / "busy.log",
            )
            busy.until_it_says("all machines are ready: started")
        client = Part([*words, "--runs", str(tmp_path / "runs")], tmp_path / "client.log")
        client.until_it_says("all machines are ready: started" if when == "after" else "alpha: ready")
        victim = next(
            pid for pid in descendants(workers["alpha"].process.pid) if parent(pid) == workers["alpha"].process.pid
        )
        os.kill(victim, signal.SIGKILL)
        assert client.wait() == 1, client.complained
        run = only(tmp_path / "runs")
        assert (run.status, run.reason) == ("failed", f"alpha was lost {when} the start: its worker is gone")
        assert list(run.parts) == (["beta"] if when == "after" else [])
        if when == "after":
            assert run.parts["beta"].status == "interrupted"
            assert run.figures.rung == run.parts["beta"].figures.rung > 0
        if busy is not None:
            assert busy.end(signal.SIGINT) == 130
        until(lambda: not any(jobs(worker) for worker in workers.values()), what="no run")
    assert left_below(Path(tempfile.gettempdir())) == []


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
