"""From a topology's text to a `Topology`: everything that is wrong with it is said at once.

Sums are checked before anything is made of them, so that ``count = 1000000000`` costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from nodes.device.profiles import PROFILES
from topologies.arguments import Arguments, Guests, check_offsets, read_arguments
from topologies.document import Document, parse, read_text
from topologies.language import File, parse_size, show_size
from topologies.model import (
    MAX_MACHINES,
    MAX_NAME,
    Domain,
    Group,
    Machine,
    Memory,
    RunSettings,
    Topology,
    machine_name,
)
from topologies.problems import Problem, TopologyError, nearest, show
from topologies.programs import Program, ProgramError, resolve_program
from topologies.roster import RESERVED_NAMES, Roster
from topologies.tables import Report, TooManyProblemsError, read_table

__all__ = ["load", "loads", "shipped"]

_SHIPPED_FOLDER = FilePath(__file__).parent


def load(source: str | FilePath, overrides: Mapping[str, str] | None = None) -> Topology:
    """The topology in a file, or the shipped one of that name (``"ping_pong"``).

    ``overrides`` maps dotted keys to TOML values: ``{"machines.sender.count": "64"}``; a value that is
    no TOML is taken as a string. Raises `TopologyError` with all problems.
    """
    file = _find(source)
    return _build(parse(read_text(file), str(file), overrides))


def loads(text: str, name: str = "<string>", overrides: Mapping[str, str] | None = None) -> Topology:
    """The topology in ``text``; ``name`` stands for the file's in messages. Raises `TopologyError`."""
    return _build(parse(text, name, overrides))


def shipped() -> list[tuple[str, str]]:
    """(name, title) of each topology that ships, by name."""
    found = []
    for file in sorted(_SHIPPED_FOLDER.glob("*.toml")):
        title = parse(read_text(file), str(file)).values.get("title", "")
        found.append((file.stem, str(title)))
    return found


def _find(source: str | FilePath) -> FilePath:
    """A bare word is a shipped topology first, then a file; anything else is a path."""
    if isinstance(source, FilePath):
        return source
    if "/" in source or source.endswith(".toml"):
        return FilePath(source)
    names = [file.stem for file in _SHIPPED_FOLDER.glob("*.toml")]
    if source in names:
        return _SHIPPED_FOLDER / f"{source}.toml"
    file = FilePath(source)
    try:
        if file.is_file():
            return file
    except ValueError:
        pass  # a path with a NUL in it: there is no such file
    hint = nearest(source, names) or "`ivsim list` shows the topologies that ship"
    raise TopologyError([Problem(show(source), 0, "", "a topology file or the name of a shipped one", "neither", hint)])


def _build(document: Document) -> Topology:
    report = Report(document)
    try:
        topology = _read(document, report)
    except TooManyProblemsError:
        topology = None
    if topology is None or report.problems:
        raise TopologyError(report.problems)
    return topology


def _read(document: Document, report: Report) -> Topology | None:
    """The topology, or None when problems were reported."""
    fields = read_table(File, document.values, (), report)
    title = fields.get("title", "")
    if not title.isprintable():
        report.add(("title",), "one line of printable characters", show(title))
    memory = _memory(fields["memory"], report)
    groups: dict[str, dict[str, Any]] = fields.get("machines", {})
    _check_profiles(groups, report)
    programs = _programs(groups, report)
    counts = [(name, group.get("count", 1)) for name, group in groups.items()]
    total = sum(count for _, count in counts)
    if total > MAX_MACHINES:
        report.add(("machines",), f"at most {MAX_MACHINES} machines in all groups together", str(total))
        return None
    roster = Roster(counts)
    _check_names(roster, report)
    _settle_roles(groups, roster, report)
    guests = Guests(roster, report)
    arguments = {
        name: read_arguments(program, groups[name].get("parameters", {}), ("machines", name), guests, report)
        for name, program in programs.items()
    }
    if memory is not None:
        check_offsets(arguments, memory.size_bytes, report)
    if report.problems or memory is None:
        return None
    made = tuple(Group(name=name, **group) for name, group in groups.items())
    machines = tuple(machine for group in made for machine in _machines(group, roster, arguments[group.name]))
    return Topology(
        title=title or FilePath(document.name).stem,
        seed=fields["seed"],
        run=RunSettings(**fields["run"]),
        domains=(Domain(memory=memory),),
        groups=made,
        machines=machines,
        source_text=document.text,
        source_name=document.name,
        overrides=document.overrides,
    )


def _memory(table: dict[str, Any], report: Report) -> Memory | None:
    """The shared memory, or None when the size or the kind was reported."""
    if "size" in table:
        size_bytes = parse_size(table["size"])
        expected = "a power of two, from 4096 bytes to 1024G"
        if not 4096 <= size_bytes <= 2**40 or size_bytes & (size_bytes - 1):
            below = 1 << max(12, min(39, size_bytes.bit_length() - 1))
            hint = f"{show_size(below)} and {show_size(2 * below)} are such"
            report.add(("memory", "size"), expected, show(table["size"]), hint)
            return None
    if len(table) < 2:
        return None
    return Memory(size_bytes=size_bytes, kind=table["kind"])


def _check_profiles(groups: Mapping[str, Mapping[str, Any]], report: Report) -> None:
    """Every device is one that `nodes.device.profiles` describes, with no more vectors than such a device has."""
    for group, table in groups.items():
        profile = PROFILES.get(name := table.get("profile", "qemu-doorbell"))
        if profile is None:
            expected = f"one of the profiles {', '.join(PROFILES)}"
            report.add(("machines", group, "profile"), expected, show(name), nearest(name, PROFILES))
        elif table.get("vectors", 1) > profile.msix_limit:
            expected = f"at most {profile.msix_limit}, as {name} has"
            report.add(("machines", group, "vectors"), expected, show(table["vectors"]))


def _settle_roles(groups: Mapping[str, dict[str, Any]], roster: Roster, report: Report) -> None:
    """A group that does not say its role has its device's default; today's master must be the first to connect."""
    for group, table in groups.items():
        profile = PROFILES.get(table.get("profile", "qemu-doorbell"))
        if profile is None:
            continue  # reported
        if table.get("role") is None:
            table["role"] = profile.default_role
        if table["role"] == "master" and profile.master_is_first and list(roster.groups[group]) != [0]:
            expected = f"one machine, the first of the file ({profile.name} refuses a master that is not peer 0)"
            report.add(("machines", group, "role"), expected, f'"master" for {len(roster.groups[group])} machines')


def _programs(groups: Mapping[str, Mapping[str, Any]], report: Report) -> dict[str, Program]:
    """For each group whose program can be found: that program."""
    found: dict[str, Program | ProgramError] = {}
    programs: dict[str, Program] = {}
    for group, table in groups.items():
        name = table.get("program")
        if name is None:
            continue  # reported: missing, or no string
        if name not in found:
            try:
                found[name] = resolve_program(name)
            except ProgramError as error:
                found[name] = error
        answer = found[name]
        if isinstance(answer, Program):
            programs[group] = answer
        else:
            report.add(("machines", group, "program"), answer.expected, answer.got, answer.hint)
    return programs


def _check_names(roster: Roster, report: Report) -> None:
    """Every machine is called by one name, and every name calls one machine or one group."""
    for group, members in roster.groups.items():
        longest = machine_name(group, len(members) - 1, len(members))
        if group in RESERVED_NAMES:
            report.add(("machines", group), "a name that has no meaning yet", show(group))
        elif len(longest) > MAX_NAME:
            expected = f"machine names of at most {MAX_NAME} characters"
            report.add(("machines", group), expected, f"{show(longest)} of {len(longest)}")
    for group, name in roster.clashes[:1]:
        expected = "a name that no other machine or group has"
        report.add(("machines", group), expected, f"a machine called {show(name)}")


def _machines(group: Group, roster: Roster, arguments: Arguments) -> Iterator[Machine]:
    for place, index in enumerate(roster.groups[group.name]):
        yield Machine(
            index=index,
            name=machine_name(group.name, place, group.count),
            group=group.name,
            vectors=group.vectors,
            role=group.role,
            profile=group.profile,
            program=group.program,
            parameters=arguments.of(index),
        )
