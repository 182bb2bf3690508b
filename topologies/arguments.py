"""What a group's machines hand to their program: each keyword typed, checked, and names made indices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from topologies.positions import Path
from topologies.problems import nearest, show
from topologies.programs import OFFSET, Parameter, Program
from topologies.roster import Roster, Selection, UnknownNameError
from topologies.tables import Report
from topologies.values import MisfitError, convert, describe

__all__ = ["MAX_EDGES", "Arguments", "Guests", "check_offsets", "read_arguments"]

MAX_EDGES = 4 << 20
"""So many (machine, peer) pairs may all parameters together name: 2048 machines, each to all."""


class Guests:
    """Who can be named, and how many pairs of a machine and a named peer there are so far.

    The pairs are counted as the groups are read, before any of them is made: a thousand groups that each
    name 65536 machines stop at the first that is too many.
    """

    def __init__(self, roster: Roster, report: Report) -> None:
        self.roster = roster
        self.edges = 0
        self._report = report

    def select(self, value: object, path: Path) -> Selection | None:
        """The machines that ``value`` names, None when that was reported; ``path`` leads to it."""
        expected = 'the name of a group or machine, "others", "all", or an array of such names'
        if self.edges > MAX_EDGES:
            return None
        try:
            names = msgspec.convert(value, str | list[str], strict=True)
            selection = self.roster.select(names)
        except msgspec.ValidationError:
            self._report.add(path, expected, show(value))
            return None
        except UnknownNameError as unknown:
            place = () if isinstance(names, str) else (names.index(unknown.name),)
            groups = ", ".join(list(self.roster.groups)[:8])
            hint = nearest(unknown.name, self.roster.names) or f"the groups are {groups}"
            self._report.add((*path, *place), expected, show(unknown.name), hint)
            return None
        group = str(path[1])
        self.edges += len(selection.machines) * len(self.roster.groups[group])
        if self.edges > MAX_EDGES:
            expected = f"at most {MAX_EDGES} pairs of a machine and a peer it names, in all groups together"
            self._report.add(path, expected, f"{self.edges} with this group")
            return None
        return selection


@dataclass(slots=True)
class Arguments:
    """The keyword arguments of one group: ``values`` are the same for all its machines."""

    values: dict[str, Any] = field(default_factory=dict)
    selections: dict[str, Selection] = field(default_factory=dict)

    def of(self, index: int) -> dict[str, Any]:
        """The arguments of the machine ``index``."""
        return {**self.values, **{name: chosen.seen_by(index) for name, chosen in self.selections.items()}}


def read_arguments(
    program: Program, given: Mapping[str, object], group: Path, guests: Guests, report: Report
) -> Arguments:
    """``given``, the table ``parameters`` of the group at the path ``group``, as ``program`` wants it."""
    path = (*group, "parameters")
    known = {parameter.name: parameter for parameter in program.parameters}
    for key in given:
        if key not in known:
            report.unknown_key((*path, key), known)
    arguments = Arguments()
    for parameter in program.parameters:
        inner = (*path, parameter.name)
        if parameter.name in given:
            _read_one(parameter, given[parameter.name], inner, arguments, guests=guests, report=report)
        elif parameter.required:
            expected = "names of groups or machines" if parameter.names_peers else describe(parameter.annotation)
            report.add(inner, expected, f"nothing, and {program.name} has no default for it")
        elif parameter.names_peers and isinstance(parameter.default, str):
            # The default of the program's own signature: "others", or a name that this topology may lack.
            _read_one(parameter, parameter.default, inner, arguments, guests=guests, report=report)
        else:
            arguments.values[parameter.name] = parameter.default
    return arguments


def check_offsets(arguments: Mapping[str, Arguments], size_bytes: int, report: Report) -> None:
    """Whether every offset leaves room for a 64-bit word in a shared memory of that size."""
    for group, own in arguments.items():
        for name, value in own.values.items():
            if OFFSET.fullmatch(name) and isinstance(value, int) and value > size_bytes - 8:
                expected = f"an offset of at most {size_bytes - 8}, in a memory of {size_bytes} bytes"
                report.add(("machines", group, "parameters", name), expected, show(value))


def _read_one(
    parameter: Parameter, value: object, path: Path, arguments: Arguments, *, guests: Guests, report: Report
) -> None:
    """One argument, put into ``arguments`` when it fits and reported when not."""
    if parameter.names_peers:
        selection = guests.select(value, path)
        if selection is not None:
            arguments.selections[parameter.name] = selection
        return
    try:
        converted = convert(value, parameter.annotation)
    except MisfitError as misfit:
        report.add(path, misfit.expected, show(value), misfit.hint)
        return
    low, high = parameter.range or (None, None)
    if isinstance(converted, int | float) and not isinstance(converted, bool):
        # Written positively, so that nothing that compares oddly slips through.
        fits = (low is None or converted >= low) and (high is None or converted <= high)
        if not fits:
            limits = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            report.add(path, f"a number {limits}", show(value), "the name says its unit, and that its range")
            return
    arguments.values[parameter.name] = converted
