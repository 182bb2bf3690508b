"""Deterministic simulation testing: many seeds of a topology under virtual time, with invariants and shrinking."""

from sim.explore.many import Exploration, explore
from sim.explore.outcome import Broken, Outcome
from sim.explore.replay_file import Replay, read_replay, write_replay
from sim.explore.seed import run_seed
from sim.explore.shrink import shrink
from sim.explore.state import RunState

__all__ = [
    "Broken",
    "Exploration",
    "Outcome",
    "Replay",
    "RunState",
    "explore",
    "read_replay",
    "run_seed",
    "shrink",
    "write_replay",
]
