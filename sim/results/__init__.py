"""The run directory: written while a run lasts, finished, recovered, opened (``files`` draws it)."""

from sim.results.ending import Ending
from sim.results.run import Run
from sim.results.store.directory import RunDirectory
from sim.results.store.opening import open

__all__ = ["Ending", "Run", "RunDirectory", "open"]
