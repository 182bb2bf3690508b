"""What each benchmark is given: the reference, CPUs, a directory, and how long it may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import sim
from sim.results import Run
from tests.bench.reference import Reference
from topologies import Topology

__all__ = ["Setting"]

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Setting:
    """``cpu`` is for benchmarks on one core; ``other_cpu`` is None on a host with one CPU.

    A ``tiny`` run tries each part once and measures nothing.
    """

    reference: Reference
    cpu: int
    other_cpu: int | None
    folder: Path
    tiny: bool = False

    def size(self, full: T, tiny: T) -> T:
        """A size of the benchmark: the full one, or the least one with ``--tiny``."""
        return tiny if self.tiny else full

    def run(
        self,
        topology: Topology | str,
        *,
        overrides: Mapping[str, str] | None = None,
        resources_every_s: float = 0.0,
    ) -> Run:
        """A finished run, in a temporary directory."""
        run = sim.run(topology, runs=self.folder, overrides=overrides, resources_every_s=resources_every_s)
        if run.status == "interrupted":
            raise KeyboardInterrupt
        if run.status != "finished":
            raise RuntimeError(f"the run for a benchmark {run.status}: {run.reason}")
        return run
