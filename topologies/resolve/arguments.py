"""The arguments of programs: each keyword typed and checked, names of machines resolved to indices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.language.toml_positions import Path
from topologies.language.values import MisfitError, convert
from topologies.model import Machines, Trace
from topologies.resolve.patterns import MachineChoice
from topologies.resolve.programs import OFFSET, Parameter, Program
from topologies.resolve.references import References
from topologies.resolve.settings import Settings
from topologies.resolve.traces import TraceFile


class Arguments(Struct):
    """The keyword arguments of machines with the same settings; ``values`` are the same for all of them."""

    values: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, MachineChoice] = field(default_factory=dict)
    traces: dict[str, TraceFile] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    """The parameters in ``chosen`` that stand for foreign peers, too."""

    def of(self, index: int) -> dict[str, Any]:
        """The arguments of the machine ``index``."""
        peers: dict[str, Machines] = {name: chosen(index) for name, chosen in self.chosen.items()}
        traces: dict[str, Trace] = {name: trace.of(index) for name, trace in self.traces.items()}
        return {**self.values, **peers, **traces}


def read_arguments(
    program: Program, settings: Settings, members: Sequence[int], references: References, report: Report
) -> Arguments:
    """The parameters in ``settings``, converted for ``program`` and the machines ``members``."""
    given = settings.parameters
    known = {parameter.name: parameter for parameter in program.parameters}
    for key in given:
        if key not in known:
            report.unknown_key(settings.parameter_at(key), known)
    arguments = Arguments()
    for parameter in program.parameters:
        path = settings.parameter_at(parameter.name)
        if parameter.name in given:
            _read_one(parameter, given[parameter.name], path, arguments, members, references=references, report=report)
        elif parameter.required:
            if not report.has(path):
                report.add(path, parameter.expected, f"nothing, and {program.name} has no default for it")
        elif parameter.names_peers and isinstance(parameter.default, str):
            # The default in the program's signature: "others", or a name that this topology may not have.
            _read_one(parameter, parameter.default, path, arguments, members, references=references, report=report)
        else:
            arguments.values[parameter.name] = parameter.default
    return arguments


def check_offsets(
    arguments: Iterable[tuple[Settings, Arguments]], size_bytes: Mapping[str, int], report: Report
) -> None:
    """Report offsets without room for a 64-bit word in the shared memories of their machines."""
    for settings, own in arguments:
        smallest = min((size_bytes[name] for name in settings.values["domains"] if name in size_bytes), default=2**63)
        for name, value in own.values.items():
            if OFFSET.fullmatch(name) and isinstance(value, int) and value > smallest - 8:
                expected = f"an offset of at most {smallest - 8}, in a memory of {smallest} bytes"
                report.add(settings.parameter_at(name), expected, show(value))


def _read_one(
    parameter: Parameter,
    value: object,
    path: Path,
    arguments: Arguments,
    members: Sequence[int],
    *,
    references: References,
    report: Report,
) -> None:
    """Put one argument into ``arguments`` if it fits, else report it."""
    if parameter.names_peers:
        chosen = references.choose(value, path, members)
        if chosen is not None:
            arguments.chosen[parameter.name] = chosen
            if references.reaches_foreign(value):
                arguments.foreign |= {parameter.name}
        return
    if parameter.reads_trace:
        trace = references.trace(value, path, members)
        if trace is not None:
            arguments.traces[parameter.name] = trace
        return
    try:
        converted = convert(value, parameter.annotation)
    except MisfitError as misfit:
        report.add(path, misfit.expected, show(value), misfit.hint)
        return
    low, high = parameter.range or (None, None)
    if isinstance(converted, int | float) and not isinstance(converted, bool):
        # Positive comparisons, so that NaN does not fit.
        fits = (low is None or converted >= low) and (high is None or converted <= high)
        if not fits:
            report.add(path, f"a number {parameter.limits}", show(value), "the unit in the name sets the range")
            return
    arguments.values[parameter.name] = converted
