from sim.results import Run as Run
from sim.results import open as open
from sim.runner import run as run

__all__ = ["Run", "open", "run"]
