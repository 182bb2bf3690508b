"""Topologies: which machines exist, what they run, and for how long; read from TOML, checked, frozen."""

from topologies.actions import Action
from topologies.domain import Domain, Memory
from topologies.language.problems import Problem, TopologyError
from topologies.language.schema import json_schema
from topologies.language.starter import starter_text
from topologies.loader import load, loads, shipped
from topologies.model import Chaos, Group, Machine, Machines, RunSettings, Scheduling, Topology, Trace
from topologies.resolve.programs import Parameter, Program, ProgramError, resolve_program, shipped_programs
from topologies.schedule import Condition, Expectation, Invariant, Phase, TimelineEntry

__all__ = [
    "Action",
    "Chaos",
    "Condition",
    "Domain",
    "Expectation",
    "Group",
    "Invariant",
    "Machine",
    "Machines",
    "Memory",
    "Parameter",
    "Phase",
    "Problem",
    "Program",
    "ProgramError",
    "RunSettings",
    "Scheduling",
    "TimelineEntry",
    "Topology",
    "TopologyError",
    "Trace",
    "json_schema",
    "load",
    "loads",
    "resolve_program",
    "shipped",
    "shipped_programs",
    "starter_text",
]
