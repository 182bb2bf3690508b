"""A job on this host: its process group ends with it, however it ends."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from sim.distributed.execute import JobStoppedError, execute
from sim.distributed.job import Job
from sim.distributed.job_process import JobServer

TOPOLOGY = b"""
title = "One"
[run]
duration_s = 60.0
[machines.a]
program = "idle"
"""


def pids_of(place: Path) -> list[int]:
    """The processes whose current directory is below a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if Path(os.readlink(entry / "cwd")).is_relative_to(place):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_a_command_line_has_output_and_a_code(short_path: Path) -> None:
    with JobServer() as server:
        done = execute(Job(["device", "show", "no-such"], {}), server, short_path, "alpha", lambda: True)
    assert (done.host, done.code, done.stdout, done.archive) == ("alpha", 2, b"", b"")
    assert "no-such" in done.stderr
    assert list(short_path.iterdir()) == []


def leader_of(pids: list[int]) -> int:
    """The one of these processes that leads their group: the command itself."""
    (leader,) = [pid for pid in pids if os.getpgid(pid) == pid]
    return leader


@pytest.mark.system
@pytest.mark.usefixtures("orphans_alone")
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_run_that_is_not_wanted_any_more_ends_with_its_machines(short_path: Path, killed: bool) -> None:
    """Also when the command cannot end its machines: it is killed."""
    ready = threading.Event()

    def is_wanted() -> bool:
        if not ready.is_set() and any(
            "ready" in each.read_text() for each in short_path.glob("job-*/runs/*/events.jsonl")
        ):
            ready.set()
            if killed:
                os.kill(leader_of(pids_of(short_path)), signal.SIGKILL)
        return killed or not ready.is_set()

    job = Job(["run", "t.toml", "--runs", "runs", "--json"], {"t.toml": TOPOLOGY}, "runs")
    with JobServer() as server:
        if killed:
            assert execute(job, server, short_path, "alpha", is_wanted).code == -signal.SIGKILL
        else:
            with pytest.raises(JobStoppedError):
                execute(job, server, short_path, "alpha", is_wanted)
    assert ready.is_set()
    assert pids_of(short_path) == []
    assert list(short_path.iterdir()) == []
