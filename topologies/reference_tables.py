"""The reference tables, generated from the declarations: topologies that ship, actions, metrics, programs, profiles;
and what a server must not do, with what each QEMU does then.

`ivsim list` prints them; the documentation holds them as Markdown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nodes.device.profile import Profile
from nodes.device.profiles import PROFILES
from nodes.qemu_versions import COMPARED_VERSIONS
from nodes.wire.rules import RULES
from topologies.actions import ACTIONS, MachineAction, fields_of
from topologies.language.problems import show
from topologies.language.tables import required_keys_of
from topologies.metrics import LATENCIES, METRICS, POINTS
from topologies.model import MAX_VECTORS
from topologies.resolve.programs import Parameter, resolve_program, shipped_programs
from topologies.schedule import UNITS_NS
from topologies.text_tables import Reference, topologies_table


def _actions() -> Reference:
    rows = []
    for do, action in ACTIONS.items():
        required = required_keys_of(do)
        keys = [*(("machines",) if issubclass(action, MachineAction) else ()), *fields_of(action)]
        shown = ", ".join(f"`{key}`" if key in required else f"[`{key}`]" for key in keys)
        rows.append((do, shown, (action.__doc__ or "").partition("\n")[0]))
    return Reference(("action", "keys", "meaning"), tuple(rows))


def _metrics() -> Reference:
    rows = []
    for metric in METRICS.values():
        if metric.name.partition(".")[0] not in LATENCIES:
            doc = metric.doc + (f"; also `{'`, `'.join(metric.aliases)}`" if metric.aliases else "")
            row = (metric.name, metric.unit, ", ".join(metric.of), metric.source, "yes" if metric.live else "", doc)
            rows.append(row)
    every = ", ".join(METRICS["rung"].of)
    for name, doc in LATENCIES.items():
        rows.append((f"{name}.POINT_UNIT", "UNIT", every, f"latency_ns.{name}.POINT", "", f"the time {doc}"))
    points, units = (", ".join(f"`{value}`" for value in some) for some in (POINTS, UNITS_NS))
    rows.append(("POINT_UNIT", "UNIT", every, "", "", f"the same as total.POINT_UNIT. POINT: {points}; UNIT: {units}"))
    of = ", ".join(METRICS["up"].of)
    rows.append(("statistics.NAME", "", of, "statistics", "", "what programs count under NAME, added up"))
    return Reference(("metric", "unit", "of", "summary", "live", "meaning"), tuple(rows))


def _programs() -> Reference:
    rows = []
    for name in shipped_programs():
        program = resolve_program(name)
        rows.append((name, "", "", program.summary))
        rows += [
            (f"{name}.{parameter.name}", _takes(parameter), _default(parameter), "") for parameter in program.parameters
        ]
    return Reference(("program", "takes", "default", "meaning"), tuple(rows))


def _takes(parameter: Parameter) -> str:
    if parameter.names_peers:
        return f"{parameter.expected}, or a pattern"
    return parameter.expected + (f", {parameter.limits}" if parameter.limits and not parameter.reads_trace else "")


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    value: Any = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    return "" if value is None else show(value)


def _interrupts(profile: Profile) -> str:
    if not profile.server:
        return "none"
    if not profile.pci:
        return "a line"
    return "MSI-X" if profile.msix else "INTx" if profile.intx else "none"


def _vectors(profile: Profile) -> str:
    """How many vectors a device with this profile can have."""
    if not profile.server:
        return "0"
    most = profile.vectors_limit or MAX_VECTORS
    return str(profile.fixed_vectors or f"{int(profile.msix)} to {most}")


def _profiles() -> Reference:
    rows = [
        (name, _interrupts(profile), _vectors(profile), profile.default_role, profile.summary)
        for name, profile in PROFILES.items()
    ]
    return Reference(("profile", "interrupts", "vectors", "role", "meaning"), tuple(rows))


def _rules() -> Reference:
    """What each compared QEMU does when a server violates a rule; a version that does as the one before says so."""
    rows = []
    for name, rule in RULES.items():
        outcomes = [rule.outcome(version) for version in COMPARED_VERSIONS]
        told = [
            outcome if outcome != before else "the same"
            for before, outcome in zip([None, *outcomes], outcomes, strict=False)
        ]
        rows.append((name, rule.expected, *told))
    return Reference(("rule", "expected", *map(str, COMPARED_VERSIONS)), tuple(rows))


REFERENCES: dict[str, Callable[[], Reference]] = {
    "topologies": topologies_table,
    "actions": _actions,
    "metrics": _metrics,
    "programs": _programs,
    "profiles": _profiles,
    "rules": _rules,
}
