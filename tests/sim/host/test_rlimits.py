"""Limits of setrlimit(2): refused before the start with the figure (exit 3), or the command works."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nodes.errors import HostError
from sim.host import rlimits

MIB = 1 << 20
UNLIMITED = resource.RLIM_INFINITY
QUICK = ("--set", "run.duration_s=0.2", "--set", "run.warmup_s=0.0")


def limited(options: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ivsim` under ``ulimit`` with these options."""
    command = f"{options}; exec {shlex.join([sys.executable, '-m', 'sim', *arguments])}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize(
    "options",
    [
        *(f"ulimit -v {mebibytes << 10}" for mebibytes in (60, 100, 200, 400, 639, 640, 800)),
        *(f"ulimit -d {mebibytes << 10}" for mebibytes in (20, 100, 207, 260)),
        *(f"ulimit -f {blocks}" for blocks in (0, 100, 5000, 30000)),
        *(f"ulimit -n {descriptors}" for descriptors in (16, 40, 120)),
        "ulimit -s 128",
        "ulimit -l 0",
        "ulimit -c 0",
    ],
)
def test_a_run_is_refused_with_the_figure_or_works(options: str, tmp_path: Path) -> None:
    """Case 20."""
    done = limited(options, "run", "ping_pong", "-q", *QUICK, "--runs", str(tmp_path / "runs"))
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 3), (done.returncode, done.stderr)
    if done.returncode:
        option = options.split()[1]
        assert f"ulimit {option}" in done.stderr or f"ulimit -H{option[1:]}" in done.stderr, done.stderr
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["show", "sweep", "compare", "report", "trace", "top", "ps", "clean", "graph"])
def test_other_commands_are_refused_in_words_too(command: str) -> None:
    done = limited(f"ulimit -v {100 << 10}", command, "--help")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("ivsim: this command needs ")
    assert "this host allows 100 MiB (ulimit -v)" in done.stderr


@pytest.mark.parametrize("command", ["list", "validate", "init", "schema", "device", "serve"])
def test_commands_that_load_little_need_little(command: str) -> None:
    assert limited(f"ulimit -v {100 << 10}", command, "--help").returncode == 0


def test_each_limit_is_compared_with_its_need(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_AS: 640 * MIB, resource.RLIMIT_DATA: 208 * MIB, resource.RLIMIT_STACK: 128 << 10}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], UNLIMITED))
    rlimits.check(rlimits.RESULTS)
    for kind, option in ((resource.RLIMIT_AS, "-v"), (resource.RLIMIT_DATA, "-d"), (resource.RLIMIT_STACK, "-s")):
        limits[kind] -= 1
        with pytest.raises(HostError, match=rf"ulimit {option}"):
            rlimits.check(rlimits.RESULTS)
        limits[kind] = UNLIMITED
    rlimits.check(rlimits.RESULTS)


def test_libraries_map_less_where_that_is_limited_and_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = UNLIMITED
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (limit, UNLIMITED))
    environment = {"OMP_NUM_THREADS": "3"}
    rlimits.be_frugal(environment)
    assert environment == {"OMP_NUM_THREADS": "3"}
    limit = 600 * MIB
    rlimits.be_frugal(environment)
    assert environment == {**rlimits.FRUGAL, "OMP_NUM_THREADS": "3"}
