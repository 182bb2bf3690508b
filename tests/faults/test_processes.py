"""Faults of processes: F1, F2, F17, F18 and F19 of tests/fault_matrix.py."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

import sim
from sim.runner import Begun
from tests.faults.processes import (
    family_of,
    ivsim,
    left_alive,
    only_directory,
    wait_until,
)

KILLS_EACH = 100
"""Kills in one run: then another run begins."""

SHORT = {"run.duration_s": "0.1", "run.warmup_s": "0.0"}
NOT_STARTED = "could not be started: its process ended at once"
"""One that is killed before it has said its process ID."""

CHURN = """
title = "Machines that are killed from outside and come back"
[run]
duration_s = 20.0
warmup_s = 0.0
sample_every = 0
on_death = "degrade"
[defaults]
program = "storm"
parameters = { to = "others", rate_hz = 500.0 }
[machines.first]
count = 2
[machines.churn]
count = 8
absent = true
[[timeline]]
at_s = 0.0
do = "join"
machines = "churn"
pick = 1
repeat = 150
period_s = 0.03
"""


@pytest.fixture
def runtime(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory for the sockets of runs. It is empty after the test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    yield short_path
    assert os.listdir(short_path) == []


def machines_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a run: its coordinator's children, without the oldest, which forks them."""
    forked = [child for child in psutil.Process(pid).children() if "ivsim-forkserver" in child.cmdline()]
    return sorted(forked, key=lambda each: (each.create_time(), each.pid))[1:]


class RandomKiller:
    """Kills random machines of this process's run, one after the other, and then ends the run as Ctrl-C does."""

    def __init__(self, rng: random.Random, kills: int) -> None:
        self._rng, self._kills, self.done = rng, kills, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill)

    def __enter__(self) -> RandomKiller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill(self) -> None:
        while self.done < self._kills and not self._over.wait(self._rng.random() * 0.06):
            with contextlib.suppress(psutil.Error, IndexError):
                # Two or more live: a run without machines would end.
                if len(machines := machines_of(os.getpid())) > 2:
                    self._rng.choice(machines).kill()
                    self.done += 1
        if not self._over.is_set():
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.fault("F1", full=1000, sample=8, unit="kills of a worker")
def test_workers_are_killed_at_any_moment(seed: int, fault_count: int, runtime: Path, tmp_path: Path) -> None:
    """The run goes on, each death is told once, and the account balances."""
    rng, killed = random.Random(seed), 0
    topology = tmp_path / "churn.toml"
    topology.write_text(CHURN)
    while killed < fault_count:
        begun = threading.Event()
        with RandomKiller(rng, min(KILLS_EACH, fault_count - killed)) as killer:
            result = sim.run(topology, runs=tmp_path / "runs", on_begin=lambda _, begun=begun: begun.set())  # type: ignore[misc]
        killed += killer.done
        died = [event for event in result.events() if event["kind"] == "machine_died"]
        # A machine that is killed before all were Ready fails the run. On a busy host, no machine may be left to kill
        # when the last one has joined: the run ends in its own time, and the next one goes on.
        assert result.status in ("interrupted", "failed", "degraded"), result.reason
        assert 0 < len(died) <= killer.done
        assert {event["how"] for event in died} <= {"SIGKILL", NOT_STARTED}
        summary = result.summary
        assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"]
        assert summary["balanced"]


def storm(runs: Path, *more: str) -> tuple[str, ...]:
    return ("run", "doorbell_storm", "--quiet", "--runs", str(runs), "--set", "machines.storm.count=4",
            "--set", "machines.storm.parameters.rate_hz=500.0", "--set", "run.duration_s=600", *more)  # fmt: skip


@pytest.mark.fault("F2", full=200, sample=2, unit="kills of a coordinator")
def test_a_coordinator_is_killed_and_another_takes_its_socket(
    seed: int, fault_count: int, runtime: Path, short_path: Path, tmp_path: Path
) -> None:
    """Its machines end within two seconds, its directory can be opened, and its socket path can be used again."""
    rng = random.Random(seed)
    socket_path = tmp_path / "s"
    for cycle in range(fault_count):
        runs = tmp_path / str(cycle)
        with ivsim(*storm(runs, "--socket", str(socket_path))) as process:
            wait_until(lambda: list(runs.glob("*/manifest.json")), "the run began")  # noqa: B023
            threading.Event().wait(rng.random() * 0.8)
            family = family_of(process.pid)
            process.kill()
            process.wait()
            assert left_alive(family) == []
        result = sim.open(only_directory(runs))
        assert result.status == "died"
        summary = result.summary
        assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"]
    result = sim.run("ping_pong", runs=tmp_path, overrides=SHORT, socket_path=socket_path)
    assert result.status == "finished"


STAGES = ("", "*/manifest.json", "*/raw/3.rec")
"""A signal comes while the command loads, when the run is being made, or when its machines are starting or running:
the files that say so, however slow the host is."""


@pytest.mark.fault("F17", full=200, sample=2, unit="signals of each sort")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_at_any_moment(
    number: signal.Signals, code: int, seed: int, fault_count: int, runtime: Path, tmp_path: Path
) -> None:
    """The exit code tells the signal, no traceback is printed, and what was measured is kept.

    The test waits for the end with the patience of pytest: on a busy host, the command alone takes long to load.
    """
    rng = random.Random(seed)
    for cycle in range(fault_count):
        runs = tmp_path / str(cycle)
        with ivsim(*storm(runs)) as process:
            if pattern := rng.choice(STAGES):
                wait_until(lambda: process.poll() is not None or list(runs.glob(pattern)), f"no {pattern}")  # noqa: B023
            threading.Event().wait(rng.random() * 0.6)
            os.killpg(process.pid, number)
            stdout, stderr = process.communicate()
            assert "Traceback" not in stdout + stderr
            if not list(runs.glob("*/manifest.json")):  # the command was not loaded yet
                assert process.returncode in (code, -number), stderr
                continue
            assert process.returncode == code, stderr
        result = sim.open(only_directory(runs))
        assert (result.status, result.reason) == ("interrupted", number.name)


PARENT = """
import sys, sim
storm = {"machines.storm.count": "4", "machines.storm.parameters.rate_hz": "500.0"}
sim.run("doorbell_storm", runs=sys.argv[1], overrides={**storm, "run.duration_s": "600.0"})
"""


@pytest.mark.fault("F18", full=200, sample=2, unit="kills of the calling process")
def test_the_process_that_called_run_is_killed(seed: int, fault_count: int, runtime: Path, tmp_path: Path) -> None:
    """A notebook kernel, a test session, a worker of a cluster: nothing of the run outlives it by two seconds."""
    rng = random.Random(seed)
    for cycle in range(fault_count):
        runs = tmp_path / str(cycle)
        with subprocess.Popen([sys.executable, "-c", PARENT, str(runs)], start_new_session=True) as process:
            wait_until(lambda: list(runs.glob("*/manifest.json")), "the run began")  # noqa: B023
            threading.Event().wait(rng.random() * 0.6)
            family = family_of(process.pid)
            process.kill()
            process.wait()
            assert left_alive(family) == []
    # What a caller leaves that is killed before it has machines, the next run removes.
    assert sim.run("ping_pong", runs=tmp_path, overrides=SHORT).status == "finished"


@pytest.mark.fault("F19", full=50, sample=1, unit="runs beside threads")
def test_runs_beside_threads_and_a_zmq_context(fault_count: int, runtime: Path, tmp_path: Path) -> None:
    """Warnings are errors here: no worker is forked from a process that has threads."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with zmq.Context() as context, context.socket(zmq.PUB), warnings.catch_warnings():
            warnings.simplefilter("error")
            for cycle in range(fault_count):
                seen: list[Begun] = []
                result = sim.run("ping_pong", runs=tmp_path / str(cycle), overrides=SHORT, on_begin=seen.append)
                assert result.status == "finished"
                assert seen
    finally:
        over.set()
        thread.join()
