"""A run under virtual time is the same to the byte, whatever the order of sets and dictionaries of strings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.engines.virtual.execution import Execution

OF_THE_HOST = {"started", "started_ns", "owner", "host", "argv", "access"}
"""What a manifest says of the process and the host that ran the topology."""
SHORT = {"run.warmup_s": "0.0", "run.duration_s": "0.3"}
ROOT = Path(__file__).parents[2]
BY_THE_BYTE = 8
"""Tables, histograms, status, summary and topology."""


INTERPRETERS = [sys.executable, *filter(None, os.environ.get("IVSIM_PYTHONS", "").split(os.pathsep))]
"""This Python, and others that have the same dependencies: IVSIM_PYTHONS=/path/to/python3.12:/path/to/python3.13."""


def run(name: str, runs: Path, *, hash_seed: int, interpreter: str = sys.executable) -> Path:
    command = [interpreter, "-m", "sim", "run", name, "--engine", "virtual", "--quiet", "--runs", str(runs)]
    command += ["--resources-every", "0"]  # these are of the host
    command += [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, capture_output=True, timeout=100, env=environment)
    (path,) = runs.iterdir()
    return path


def of_the_run(path: Path) -> dict[str, Any]:
    """The manifest and the events without what they say of the host and its time."""
    manifest = json.loads((path / "manifest.json").read_text())
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    return {
        "manifest": {key: value for key, value in manifest.items() if key not in OF_THE_HOST},
        "events": [{key: value for key, value in event.items() if key != "utc"} for event in events],
    }


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("name", ["ping_pong", "hotspot"])
def test_the_same_seed_gives_the_same_bytes_whatever_the_hash_seed(name: str, interpreter: str, tmp_path: Path) -> None:
    compare(run(name, tmp_path / "0", hash_seed=0), run(name, tmp_path / "1", hash_seed=1, interpreter=interpreter))


def compare(first: Path, second: Path) -> None:
    """Both run directories are the same to the byte, but for what they say of the host."""
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    same = [name for name in names if name not in ("manifest.json", "events.jsonl")]
    assert len(same) >= BY_THE_BYTE
    for each in same:
        assert (first / each).read_bytes() == (second / each).read_bytes(), each
    assert of_the_run(first) == of_the_run(second)


@pytest.mark.parametrize("name", ["hotspot", "ping_pong"])
def test_a_plain_slice_does_what_any_slice_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sim.engines.virtual.plain_slice` is the fast way, `Execution.step` the general one."""
    paths = []
    for runs in (tmp_path / "plain", tmp_path / "general"):
        overrides = {"run.engine": "virtual", "run.warmup_s": 0.0, "run.duration_s": 0.05, "run.sample_every": 1}
        paths.append(sim.run(name, runs=runs, overrides=overrides, resources_every_s=0).path)
        monkeypatch.setattr(Execution, "is_plain", False)
    compare(*paths)
