"""The libraries of commands: limits are refused before the start with the figure (exit 3); pandas is not loaded."""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nodes.errors import HostError
from sim.host import libraries
from sim.kernel.qemu_program import chosen_qemu

MIB = 1 << 20
UNLIMITED = resource.RLIM_INFINITY
QUICK = ("run.duration_s=0.2", "run.warmup_s=0.0", "machines.ping.parameters.rate_hz=1000.0")


def limited(options: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ivsim` under ``ulimit`` with these options."""
    command = f"{options}; exec {shlex.join([sys.executable, '-m', 'sim', *arguments])}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.sample(6)
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
    settings = [word for each in QUICK for word in ("--set", each)]
    done = limited(options, "run", "ping_pong", "-q", *settings, "--runs", str(tmp_path / "runs"))
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 3), (done.returncode, done.stderr)
    if done.returncode:
        option = options.split()[1]
        assert f"ulimit {option}" in done.stderr or f"ulimit -H{option[1:]}" in done.stderr, done.stderr
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("option", "answer"), [("-Sn", "no divergence"), ("-n", "more than 200 descriptors are needed")]
)
def test_a_soft_limit_on_descriptors_is_no_limit(option: str, answer: str) -> None:
    """It is 1,024 on most hosts; peers with many vectors need more."""
    if shutil.which(chosen_qemu()) is None:
        pytest.skip("no QEMU here to compare with")
    done = limited(f"ulimit {option} 200", "conformance", "--seed", "1", "--operations", "5")
    assert done.returncode == (0 if option == "-Sn" else 3), done.stderr
    assert answer in done.stdout + done.stderr


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
    libraries.check(libraries.RESULTS)
    for kind, option in ((resource.RLIMIT_AS, "-v"), (resource.RLIMIT_DATA, "-d"), (resource.RLIMIT_STACK, "-s")):
        limits[kind] -= 1
        with pytest.raises(HostError, match=rf"ulimit {option}"):
            libraries.check(libraries.RESULTS)
        limits[kind] = UNLIMITED
    libraries.check(libraries.RESULTS)


def test_libraries_map_less_where_that_is_limited_and_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = UNLIMITED
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (limit, UNLIMITED))
    environment = {"OMP_NUM_THREADS": "3"}
    libraries.be_frugal(environment)
    assert environment == {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1"}
    limit = 600 * MIB
    libraries.be_frugal(environment)
    assert environment == {**libraries.FRUGAL, "OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1"}
    environment = {"OPENBLAS_NUM_THREADS": "4"}
    libraries.be_frugal(environment)
    assert environment["OPENBLAS_NUM_THREADS"] == "4"


WHAT_IS_LOADED = """
import atexit, sys
atexit.register(lambda: print("pandas" in sys.modules, "pyarrow" in sys.modules, file=sys.stderr))
from sim.cli import main
main(sys.argv[1:])
"""
USES_PANDAS = """
def pandas_user(guest):
    import pandas
    guest.statistics["sum"] = int(pandas.Series([1, 2]).sum())
    yield 10**12
"""


def test_a_command_does_not_load_pandas_and_a_program_can(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(USES_PANDAS)
    for program, loaded in (("idle", "False True"), ("pandas_user", "True True")):
        file = tmp_path / f"{program}.toml"
        file.write_text(f'[run]\nengine = "virtual"\nduration_s = 0.01\n[machines.a]\nprogram = "{program}"\n')
        arguments = ["run", str(file), "--json", "--program", str(tmp_path / "program.py")]
        command = [sys.executable, "-c", WHAT_IS_LOADED, *arguments, "--runs", str(tmp_path / "runs")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert json.loads(done.stdout)["status"] == "finished", done.stderr
        assert done.stderr.splitlines()[-1] == loaded
