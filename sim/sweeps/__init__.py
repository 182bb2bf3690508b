"""Sweeps: the same topology with every combination of some values."""

from sim.sweeps.directory import INTERRUPTED, Sweep
from sim.sweeps.plan import Cell, Plan, make_plan
from sim.sweeps.table import Row, hosts_are_comparable, make_table

__all__ = [
    "INTERRUPTED",
    "Cell",
    "Plan",
    "Row",
    "Sweep",
    "hosts_are_comparable",
    "make_plan",
    "make_table",
]
