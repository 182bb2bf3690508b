"""Every scenario that ships runs, balances, and shows what its comment claims (its own expectations say what)."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim import cli
from sim.exit_codes import MISSED
from tests.system.slower import SCALES, scaled
from topologies import load, loader, shipped

NAMES = [name for name, _ in shipped()]
# `tests/qemu/test_guest.py`, `tests/system/test_hosts_run.py` and `tests/sim/engines/test_virtual.py` have the others.
ELSEWHERE = ("linux_guest", "two_hosts")
OF_PROCESSES = [name for name in NAMES if name not in ELSEWHERE and not name.startswith("virtual_")]
SMALL = {
    "storm_256": {"machines.storm.count": "24", "run.duration_s": "0.6", "run.warmup_s": "0.1"},
    "storm_64": {"machines.storm.count": "16", "run.duration_s": "0.6", "run.warmup_s": "0.1"},
    "thousand_peers": {"machines.crowd.count": "60", "run.duration_s": "1.0"},
    "doorbell_storm": {"machines.storm.count": "8", "run.duration_s": "0.6", "run.warmup_s": "0.1"},
    "ping_pong": {"run.duration_s": "0.6", "run.warmup_s": "0.1"},
    "fan_in": {"run.duration_s": "1.0"},
    "hotspot": {"run.duration_s": "1.5"},
    "ring": {"run.duration_s": "1.5"},
    "legacy_2012": {"run.duration_s": "1.0"},
    "two_domains": {"run.duration_s": "1.0"},
    "unequal_vectors": {"run.duration_s": "1.0"},
    "lost_intx": {"run.duration_s": "1.5"},
}
"""What makes them quick; where the timeline says when what happens, they run as they are."""


SEEN: dict[str, Callable[[dict[str, Any]], bool]] = {
    "hotspot": lambda its: its["first"]["rung"] > 6 * its["last"]["rung"],
    "slow_reader": lambda its: its["slow"]["interrupts"] < its["quick"]["interrupts"] / 2,
    "stuck_peer": lambda its: [name for name, group in its.items() if group["refused"]] == ["stuck"],
    "lost_intx": lambda its: its["receiver"]["interrupts"] < its["receiver"]["drained"]["samples"],
    "migrate_master_under_storm": lambda its: its["kept"]["latency_ns"]["delivery"]["max"] > 1e6,
    "peer_churn": lambda its: [name for name, group in its.items() if group["refused"]] == ["guest"],
}
"""What a comment says that the rows of the result's groups show, beyond what the scenario itself expects."""


def comment_of(name: str) -> str:
    """The comment of a scenario's file. Not by `load`: those of 65,536 machines take half a second each."""
    return "\n".join(line for line in source_of(name).splitlines() if line.startswith("#"))


def in_time(name: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a scenario; again and slower while it misses what it expects, for its timeline is that of a quiet host."""
    done = ivsim(name, name, place / "runs")
    for scale in SCALES[1:]:
        if done.returncode != MISSED:
            break
        file = place / f"{name}.toml"
        file.write_text(scaled(source_of(name), scale))
        done = ivsim(name, str(file), place / str(scale))
    return done


def source_of(name: str) -> str:
    return (Path(loader.__file__).with_name("scenarios") / f"{name}.toml").read_text()


def ivsim(name: str, file: str, runs: Path) -> subprocess.CompletedProcess[str]:
    settings = [part for key, value in SMALL.get(name, {}).items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "sim", "run", file, "--json", "--runs", str(runs), *settings]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.sample(9)
@pytest.mark.parametrize("name", OF_PROCESSES)
def test_it_runs_balances_and_shows_what_it_claims(name: str, tmp_path: Path) -> None:
    done = in_time(name, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary: dict[str, Any] = json.loads(done.stdout)
    assert summary["status"] in ("finished", "degraded")
    assert summary["balanced"]
    assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"] > 0
    assert set(summary["groups"]) >= {group.name for group in load(name).groups}
    if name in SEEN:
        assert SEEN[name](summary["groups"]), summary["groups"]


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_a_scenario_s_comment_work(name: str) -> None:
    comment = comment_of(name)
    commands = [*re.findall(r"(?m)^#   (ivsim .*)", comment), *re.findall(r"`(ivsim [^`]*)`", comment)]
    for command in commands:
        said, _, _ = command.partition("   ")
        _, verb, *arguments = shlex.split(said.replace("\n# ", " "))
        assert verb in cli.COMMANDS
        if verb in ("run", "migrate"):
            (target,) = (each for each in arguments if each in NAMES)
            assert target == name
            settings = [value for option, value in itertools.pairwise(arguments) if option == "--set"]
            load(name, dict(setting.split("=", 1) for setting in settings))


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_to_look_at(name: str) -> None:
    assert "What to look at:" in comment_of(name)
