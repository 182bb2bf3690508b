"""`ivsim` answers at once: what it loads before it does, by modules and not by time, which a busy host stretches."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CLICK = "import click"
IVSIM = "import sys; sys.argv[0] = 'ivsim'; from sim.__main__ import main; main()"
LOADED = """
import atexit, json, os, sys
out = os.dup(1)
def tell():
    sys.stdout.flush()
    os.write(out, b"\\n" + json.dumps(sorted(sys.modules)).encode())
atexit.register(tell)
"""
NOT_FOR_CHECKING = {"socket", "dataclasses", "subprocess", "difflib", "fractions", "csv"}
"""Modules that take more time to load or to use at import than all of the language's structs."""
HEAVY = {"numpy", "pyarrow", "zmq", "psutil", "rich", "asyncio", "multiprocessing", "concurrent", "ssl", "pandas"}
LIGHT = {
    "--version": ([], HEAVY | {"topologies", "msgspec", "dataclasses", "socket"}),
    "--help": ([], HEAVY | {"topologies", "msgspec", "dataclasses", "socket"}),
    "list": ([], HEAVY | {"msgspec", "socket"}),
    "validate": (["ping_pong"], HEAVY | NOT_FOR_CHECKING),
    "schema": ([], HEAVY | NOT_FOR_CHECKING),
    "init": (["-"], HEAVY | NOT_FOR_CHECKING),
}


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules that a process has loaded when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED + code, *arguments],
        stdout=subprocess.PIPE,
        timeout=100,
        check=False,
    )
    return set(json.loads(done.stdout.rpartition(b"\n")[2]))


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("command", LIGHT)
def test_a_command_without_a_run_loads_no_library_of_runs(command: str) -> None:
    arguments, foreign = LIGHT[command]
    assert not packages(loaded(IVSIM, command, *arguments)) & foreign


def test_what_is_loaded_stays_near_click_itself() -> None:
    """In modules; with their bytecode at hand, a module takes some 0.5 ms of a quiet CPU."""
    click = len(loaded(CLICK))
    for command, most in (
        ("--version", 30),
        ("--help", 40),
        ("list", 60),
        ("validate", 170),
        ("schema", 150),
        ("init", 80),
    ):
        modules = len(loaded(IVSIM, command, *LIGHT[command][0]))
        assert modules <= click + most, command


COMPLETING = """
from click.shell_completion import ZshComplete
from sim.cli import ivsim
from sim.commands.catalogue import COMMANDS
completion = ZshComplete(ivsim, {}, "ivsim", "_IVSIM_COMPLETE")
for name in COMMANDS:
    assert completion.get_completions([name], "--"), name
assert completion.get_completions(["run"], "pi"), "topologies"
assert completion.get_completions(["run", "ping_pong", "--set"], "machines.ping.co"), "keys"
"""


def test_completion_loads_no_library_of_runs() -> None:
    """Of any command: each declares its options without the libraries that it uses."""
    assert not packages(loaded(COMPLETING)) & HEAVY - {"multiprocessing"}  # `attach` and `serve` are about memory


def test_the_process_that_workers_are_forked_from_loads_little() -> None:
    """Each fork with `threading` repairs its locks, and writes pages that it shared until then."""
    added = loaded("from sim.engines.process import zygote") - loaded("pass")
    assert "sim.engines.process.worker" in added
    assert not packages(added) & (HEAVY | {"threading", "topologies", "subprocess", "logging"})
