"""Very many machines under virtual time: CPU time until they are up and until their run has ended, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import sim
from tests.bench.figure import Bar, Figure
from tests.bench.programs import resident_gib
from tests.bench.setting import Setting
from topologies import loads

__all__ = ["measure_scale"]

UP_65536_S = Bar(30.0, 20.0)
MEMORY_65536 = Bar(2.0, 1.7)
PATTERNS = {
    "virtual_ring": ("node", 65_535),
    "virtual_star": ("node", 65_535),
    "virtual_random": ("node", 65_535),
    "virtual_hotspot": ("sender", 65_519),
    "virtual_all_to_all": ("node", 4_095),
}
"""The topology, and the group whose number is given here: one machine more has the program below."""
WATCH = """
[machines.watch]
program = "tests.bench.programs:watch_start"
parameters = { path = "" }
"""


def measure_scale(setting: Setting) -> Iterator[Figure]:
    """Each of the included topologies once, in a process of its own."""
    for topology, (group, count) in PATTERNS.items():
        count = setting.size(count, 20)
        command = [sys.executable, "-m", "tests.bench.scale", topology, group, str(count)]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        found = json.loads(told.stdout)
        name = topology.removeprefix("virtual_")
        is_large = topology != "virtual_all_to_all"
        for key, unit, bar in (
            ("up", "CPU s", UP_65536_S if is_large else None),
            ("memory", "GiB", MEMORY_65536 if is_large else None),
            ("whole", "CPU s", None),
            ("peak", "GiB", None),
        ):
            yield Figure("scale", f"{name} of {count + 1:,}: {key}", unit, [(found[key], 0.0)], bar, absolute=True)


def main(topology: str, group: str, count: str) -> None:
    """Run a topology and print the CPU time in seconds and the memory in GiB that it took."""
    begin_s = time.process_time()
    text = resources.files("topologies").joinpath(f"scenarios/{topology}.toml").read_text() + WATCH
    with tempfile.TemporaryDirectory(prefix="ivsim-bench-") as folder:
        path = Path(folder, "start")
        settings = {f"machines.{group}.count": count, "machines.watch.parameters.path": json.dumps(str(path))}
        run = sim.run(loads(text, overrides=settings), runs=folder, resources_every_s=0)
        assert run.figures.balanced
        up_s, memory_gib = map(float, path.read_text().split())
    whole_s = time.process_time() - begin_s
    print(json.dumps({"up": up_s - begin_s, "memory": memory_gib, "whole": whole_s, "peak": resident_gib("VmHWM")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
