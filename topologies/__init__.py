"""Topologies: which machines exist, what they run, for how long - read from TOML, checked, frozen."""

from topologies.loader import load, loads, shipped
from topologies.model import Group, Machine, Memory, RunSettings, Topology
from topologies.problems import Problem, TopologyError
from topologies.programs import Parameter, Program, ProgramError, resolve_program, shipped_programs
from topologies.schema import json_schema
from topologies.starter import starter_text

__all__ = [
    "Group",
    "Machine",
    "Memory",
    "Parameter",
    "Problem",
    "Program",
    "ProgramError",
    "RunSettings",
    "Topology",
    "TopologyError",
    "json_schema",
    "load",
    "loads",
    "resolve_program",
    "shipped",
    "shipped_programs",
    "starter_text",
]
