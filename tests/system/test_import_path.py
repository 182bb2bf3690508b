"""`ivsim` never imports what lies in the current directory; programs are found where the README says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONSOLE_SCRIPT = Path(sys.executable).with_name("ivsim")
DEPENDENCIES = {"nodes", "topologies", "sim", "zmq", "psutil", "msgspec", "numpy", "pyarrow", "rich", "click"}
QUICK = ["--set", "run.duration_s=0.2", "--set", "run.warmup_s=0.0"]
TOPOLOGY = '[run]\nduration_s = 0.2\nwarmup_s = 0.0\n[machines.a]\nprogram = "{program}"\n'
PROGRAM = "from beside import PERIOD_NS\n\ndef mine(guest):\n    while True:\n        yield guest.clock() + PERIOD_NS\n"
FORK_SERVER_AND_WORKER = """
WRONG = WorkerConfiguration(
    name='a', kind='simulated', machine=0, vectors='none', role='peer', profiles=(), program='idle', parameters={},
    peers={}, traces={}, seed='1', sample_every=0, load=(), cpus=(), policy='other', priority=0, nice=0, devices=(),
)
with adopting_orphans(), contextlib.closing(ForkServer(Loop(), pathlib.Path(sys.argv[1]), lambda: None)) as server:
    ours, theirs = Control.pair()
    server.fork(WRONG, theirs)
    assert readable_within(ours.fileno(), 90), server.state()
    assert ours.receive().summary.startswith('ValidationError'), server.state()
"""


def run(command: list[object], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``folder``; only ``environment`` steers Python's import path."""
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=plain | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def set_traps(folder: Path, names: set[str]) -> Path:
    """Put modules of these names into ``folder``; each that is executed is listed in the file returned."""
    folder.mkdir()
    told = folder.parent / "executed"
    for name in names:
        text = (
            f"open({str(told)!r}, 'a').write({name!r} + chr(10))\nraise ImportError('this module is the trap {name}')\n"
        )
        (folder / f"{name}.py").write_text(text)
    return told


def test_the_console_script_imports_nothing_from_the_current_directory(tmp_path: Path) -> None:
    told = set_traps(tmp_path / "here", set(sys.stdlib_module_names) | DEPENDENCIES)
    done = run([CONSOLE_SCRIPT, "run", "ping_pong", "-q", *QUICK], tmp_path / "here")
    assert not told.exists(), told.read_text()
    assert done.returncode == 0, done.stderr


def test_python_m_sim_imports_nothing_from_the_current_directory(tmp_path: Path) -> None:
    """Except what Python itself imports before ``sim``, and ``sim``: that is the meaning of ``-m``."""
    told = set_traps(tmp_path / "here", {"random", "socket", "tempfile", "signal", "json", *DEPENDENCIES} - {"sim"})
    done = run([sys.executable, "-m", "sim", "run", "ping_pong", "-q", *QUICK], tmp_path / "here")
    assert not told.exists(), told.read_text()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", [[], ["-E"], ["-I"]])
def test_no_helper_looks_in_the_current_directory(flags: list[str], tmp_path: Path, short_path: Path) -> None:
    """Of a caller whose own path begins there: the fork server and the worker that it forks."""
    traps = set(sys.stdlib_module_names) | DEPENDENCIES
    told = set_traps(tmp_path / "here", traps)
    # The caller has loaded what it needs before it goes there: what is executed, a helper has executed.
    loaded = (
        "import contextlib, os, pathlib, sys\n"
        "from sim.engines.process.control import Control\n"
        "from sim.engines.process.forkserver import ForkServer\n"
        "from sim.engines.shared.configuration import WorkerConfiguration\n"
        "from sim.kernel.loop import Loop\n"
        "from sim.kernel.processes import adopting_orphans\n"
        "from sim.kernel.waiting import readable_within\n"
    )
    there = "os.chdir('here'); sys.path.insert(0, '')\n"
    done = run([sys.executable, *flags, "-c", loaded + there + FORK_SERVER_AND_WORKER, short_path], tmp_path)
    assert not told.exists(), told.read_text()
    assert done.returncode == 0, done.stderr


def test_a_script_s_own_modules_are_found_by_its_machines(tmp_path: Path) -> None:
    """``sim.run`` in a script: programs that the script can import are found in the workers, too."""
    (tmp_path / "beside.py").write_text("PERIOD_NS = 1_000_000\n")
    (tmp_path / "own.py").write_text(PROGRAM)
    (tmp_path / "t.toml").write_text(TOPOLOGY.format(program="own:mine"))
    (tmp_path / "script.py").write_text("import sim\nprint(sim.run('t.toml').status)\n")
    for command in (["script.py"], ["-c", (tmp_path / "script.py").read_text()]):
        done = run([sys.executable, *command], tmp_path)
        assert done.stdout == "finished\n", done.stderr


def test_a_module_is_found_where_pythonpath_says_and_not_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("PERIOD_NS = 1_000_000\n")
    (tmp_path / "own.py").write_text(PROGRAM)
    (tmp_path / "t.toml").write_text(TOPOLOGY.format(program="own:mine"))
    for command in ([CONSOLE_SCRIPT], [sys.executable, "-m", "sim"]):
        refused = run([*command, "run", "t.toml", "-q"], tmp_path)
        assert refused.returncode == 2
        assert "name its folder in PYTHONPATH, or give its file with --program FILE" in refused.stderr
        done = run([*command, "run", "t.toml", "-q"], tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr


def test_a_file_of_programs_imports_what_lies_beside_it_and_hides_nothing(tmp_path: Path) -> None:
    told = set_traps(tmp_path / "programs", {"random", "nodes", "sim", "numpy"})
    (tmp_path / "programs" / "beside.py").write_text("PERIOD_NS = 1_000_000\n")
    (tmp_path / "programs" / "own.py").write_text(PROGRAM)
    (tmp_path / "t.toml").write_text(TOPOLOGY.format(program="mine"))
    done = run([CONSOLE_SCRIPT, "run", "t.toml", "-q", "--program", "programs/own.py"], tmp_path)
    assert not told.exists(), told.read_text()
    assert done.returncode == 0, done.stderr
