from topologies.actions import Action as Action
from topologies.domain import Domain as Domain
from topologies.domain import Memory as Memory
from topologies.language.problems import Problem as Problem
from topologies.language.problems import TopologyError as TopologyError
from topologies.language.schema import json_schema as json_schema
from topologies.language.starter import starter_text as starter_text
from topologies.loader import load as load
from topologies.loader import loads as loads
from topologies.model import Chaos as Chaos
from topologies.model import Group as Group
from topologies.model import Machine as Machine
from topologies.model import Machines as Machines
from topologies.model import RunSettings as RunSettings
from topologies.model import Scheduling as Scheduling
from topologies.model import Topology as Topology
from topologies.model import Trace as Trace
from topologies.resolve.programs import Parameter as Parameter
from topologies.resolve.programs import Program as Program
from topologies.resolve.programs import ProgramError as ProgramError
from topologies.resolve.programs import resolve_program as resolve_program
from topologies.resolve.programs import shipped_programs as shipped_programs
from topologies.scenario_files import shipped as shipped
from topologies.schedule import Condition as Condition
from topologies.schedule import Expectation as Expectation
from topologies.schedule import Invariant as Invariant
from topologies.schedule import Phase as Phase
from topologies.schedule import TimelineEntry as TimelineEntry

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
