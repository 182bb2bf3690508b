"""The server that jobs are forked from: what it has loaded, and what becomes of jobs and of the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sim.distributed.job_process import JobProcess, JobServer
from sim.distributed.job_server import STDERR, STDOUT, Request
from sim.kernel.waiting import readable_within
from tests.clusters import alive, descendants, until
from tests.two_machines import VIRTUAL_STORM

LOADED = """
import os, sys
from sim.distributed import job_server
job_server.load()
assert len(os.listdir("/proc/self/task")) == 1, "threads"
before = set(sys.modules)
from sim.cli import main
try:
    main(["run", sys.argv[1], "--runs", sys.argv[2], "--json"])
except SystemExit as end:
    assert end.code == 0
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""
WORKER = """
import sys
from pathlib import Path
from sim.distributed.job_process import JobServer
from sim.distributed.job_server import STDERR, STDOUT, Request
from sim.kernel.waiting import readable_within

place = Path(sys.argv[1])
for name in (STDOUT, STDERR):
    (place / name).touch()
with JobServer() as server, server.job(place, Request(["run", "one.toml", "--json"], {})) as job:
    readable_within(job.descriptor, None)
"""
COSTLY = ("click", "msgspec", "nodes", "numpy", "pyarrow", "rich", "sim", "topologies", "zmq")
SEEDED = "numpy.random"
"""What draws its seed when it is loaded: jobs must not share that."""


def test_a_run_loads_next_to_nothing_that_the_server_has_not(tmp_path: Path) -> None:
    """And the server has no thread, which a fork would lack."""
    (tmp_path / "two.toml").write_text(VIRTUAL_STORM)
    words = [sys.executable, "-c", LOADED, str(tmp_path / "two.toml"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    more = {name for name in done.stderr.split() if name.split(".")[0] in COSTLY}
    assert SEEDED in more
    assert {name for name in more if not name.startswith(SEEDED)} == set()


def begin(server: JobServer, place: Path, *arguments: str, **variables: str) -> AbstractContextManager[JobProcess]:
    for name in (STDOUT, STDERR):
        (place / name).touch()
    return server.job(place, Request(list(arguments), variables))


def test_a_job_has_a_directory_an_environment_and_output(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(VIRTUAL_STORM)
    with JobServer() as server, begin(server, tmp_path, "run", "two.toml", "--json", IVSIM_HOST_NAME="alpha") as job:
        assert readable_within(job.descriptor, None)
        assert job.collect() == 0
    assert (tmp_path / STDERR).read_text() == ""
    assert '"status": "finished"' in (tmp_path / STDOUT).read_text()
    assert '"alpha"' in next(tmp_path.glob("runs/*/manifest.json")).read_text()


def test_a_killed_server_is_started_again(tmp_path: Path) -> None:
    before = set(descendants(os.getpid()))
    with JobServer() as server:
        (first,) = set(descendants(os.getpid())) - before
        os.kill(first, signal.SIGKILL)
        with begin(server, tmp_path, "device", "list") as job:
            readable_within(job.descriptor, None)
            assert job.collect() == 0
        assert (tmp_path / STDOUT).read_text()
        assert first not in descendants(os.getpid())
    assert set(descendants(os.getpid())) <= before


IDLE = """
title = "One"
[run]
duration_s = 600.0
[machines.a]
program = "idle"
"""


@pytest.mark.system
@pytest.mark.usefixtures("orphans_alone")
@pytest.mark.timeout(300)
def test_a_job_ends_when_its_worker_is_gone(tmp_path: Path) -> None:
    """Which closes the socket of the job, and that of the server: neither is told anything else."""
    (tmp_path / "one.toml").write_text(IDLE)
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)])
    until(lambda: any("ready" in path.read_text() for path in tmp_path.glob("runs/*/events.jsonl")), what="a run")
    its = descendants(worker.pid)
    assert len(its) > 4  # server, keeper, command, fork server, machine
    worker.kill()
    worker.wait()
    until(lambda: not alive(its), what=f"the end of {its}")
