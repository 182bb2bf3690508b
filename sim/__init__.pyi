from sim.results import Run as Run
from sim.results import open as open
from sim.results.compare import compare as compare
from sim.runner import run as run

__all__ = ["Run", "compare", "open", "run"]
