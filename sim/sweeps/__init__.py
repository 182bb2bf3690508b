"""Sweeps: the same topology with every combination of some values."""

from sim.sweeps.directory import INTERRUPTED, Row, Sweep, hosts_are_comparable, make_table
from sim.sweeps.plan import Cell, Plan, make_plan

__all__ = ["INTERRUPTED", "Cell", "Plan", "Row", "Sweep", "hosts_are_comparable", "make_plan", "make_table"]
