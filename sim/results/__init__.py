"""The run directory: written while a run lasts, finished, recovered, opened (``files`` draws it)."""

from sim.results.directory import RunDirectory
from sim.results.ending import Outcome
from sim.results.opening import open
from sim.results.run import Run

__all__ = ["Outcome", "Run", "RunDirectory", "open"]
