"""Topologies: which machines exist, what they run, and for how long; read from TOML, checked, frozen.

The names are loaded when they are first used: `ivsim list` needs no schema. What they are is declared in
``__init__.pyi``.
"""

import importlib

_NAMES = {
    "actions": ("Action",),
    "domain": ("Domain", "Memory"),
    "language.problems": ("Problem", "TopologyError"),
    "language.schema": ("json_schema",),
    "language.starter": ("starter_text",),
    "loader": ("load", "loads"),
    "model": ("Chaos", "Group", "Machine", "Machines", "RunSettings", "Scheduling", "Topology", "Trace"),
    "resolve.programs": ("Parameter", "Program", "ProgramError", "resolve_program", "shipped_programs"),
    "scenario_files": ("shipped",),
    "schedule": ("Condition", "Expectation", "Invariant", "Phase", "TimelineEntry"),
}
_HOMES = dict(sorted((name, f"topologies.{module}") for module, names in _NAMES.items() for name in names))

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'topologies' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
