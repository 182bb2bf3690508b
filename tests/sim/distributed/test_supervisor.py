"""The supervisor of a worker, in a process of its own: it adopts and ends whatever its worker leaves."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import os, signal, subprocess, sys, time
from pathlib import Path
from sim.distributed.supervisor import keep_worker

def serve(scratch):
    tried = Path(sys.argv[2])
    tried.write_text(tried.read_text() + "x" if tried.exists() else "x")
    (scratch / "job").mkdir()
    if sys.argv[1] == "fail":
        raise OSError("no such scheduler")
    if len(tried.read_text()) == 1:  # leave a child that ignores the end of its parent, and be killed
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        Path(sys.argv[3]).write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)

import sim.distributed.supervisor as supervisor
supervisor.JOB_PATIENCE_S = 0.2
supervisor.PAUSE_S = 0.0
keep_worker(serve, lambda line: print(line, flush=True))
"""


def supervise(how: str, place: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", PROGRAM, how, str(place / "tried"), str(place / "child")]
    return subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)


def scratch() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("ivsim-*"))


def test_a_killed_worker_is_started_again_and_what_it_left_is_ended(tmp_path: Path) -> None:
    done = supervise("kill", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the worker has ended (SIGKILL); starting another one\n"
    assert (tmp_path / "tried").read_text() == "xx"
    assert not Path(f"/proc/{(tmp_path / 'child').read_text()}").exists()
    assert scratch() == []


def test_a_first_worker_that_cannot_start_ends_the_command(tmp_path: Path) -> None:
    done = supervise("fail", tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("ivsim: no such scheduler\n")
    assert "HostError: no worker: the reason is in the line above" in done.stderr
    assert (tmp_path / "tried").read_text() == "x"
    assert scratch() == []
