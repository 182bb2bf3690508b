"""Topologies: which machines exist, what they run, and for how long; read from TOML, checked, frozen.

The names are loaded when they are first used: `ivsim list` needs no schema. What they are is declared in
``__init__.pyi``.
"""

import importlib

_HOMES = {
    "Action": "topologies.actions",
    "Chaos": "topologies.model",
    "Condition": "topologies.schedule",
    "Domain": "topologies.domain",
    "Expectation": "topologies.schedule",
    "Group": "topologies.model",
    "Invariant": "topologies.schedule",
    "Machine": "topologies.model",
    "Machines": "topologies.model",
    "Memory": "topologies.domain",
    "Parameter": "topologies.resolve.programs",
    "Phase": "topologies.schedule",
    "Problem": "topologies.language.problems",
    "Program": "topologies.resolve.programs",
    "ProgramError": "topologies.resolve.programs",
    "RunSettings": "topologies.model",
    "Scheduling": "topologies.model",
    "TimelineEntry": "topologies.schedule",
    "Topology": "topologies.model",
    "TopologyError": "topologies.language.problems",
    "Trace": "topologies.model",
    "json_schema": "topologies.language.schema",
    "load": "topologies.loader",
    "loads": "topologies.loader",
    "resolve_program": "topologies.resolve.programs",
    "shipped": "topologies.scenario_files",
    "shipped_programs": "topologies.resolve.programs",
    "starter_text": "topologies.language.starter",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'topologies' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
