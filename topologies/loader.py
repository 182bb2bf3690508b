"""From the text of a topology to a `Topology`, or to all problems of the text at once.

Sums are checked before machines are made, so that ``count = 1000000000`` costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from nodes.spelling import nearest
from topologies.domain import MAIN_DOMAIN, Domain, Memory
from topologies.guest_image import GUEST_PROGRAM
from topologies.hosts import check_hosts
from topologies.language.document import Document, override_texts, parse, read_text
from topologies.language.matrix import read_matrix, try_values
from topologies.language.problems import Problem, TopologyError, show
from topologies.language.reader import Report, TooManyProblemsError, read_table
from topologies.language.sizes import MEMORY_SIZE_MAX_BYTES, MEMORY_SIZE_MIN_BYTES, parse_size, power_of_two, show_size
from topologies.language.tables import File, Size
from topologies.language.toml_positions import Path
from topologies.language.values import describe
from topologies.model import Chaos, Group, Machine, RunSettings, Topology
from topologies.resolve.arguments import Arguments, check_offsets, read_arguments
from topologies.resolve.conditions import read_expectations, read_invariants
from topologies.resolve.guests import check_guests, read_guest
from topologies.resolve.machines import ResolvedMachines, read_machines
from topologies.resolve.programs import ProgramFiles
from topologies.resolve.references import References
from topologies.resolve.settings import Settings
from topologies.resolve.timeline import Timeline, end_of, read_phases
from topologies.resolve.versions import read_version, settle_versions
from topologies.scenario_files import FOLDER, scenario_names

_MAX_DOMAINS = 64


def load(
    source: str | FilePath, overrides: Mapping[str, object] | None = None, programs: Sequence[str | FilePath] = ()
) -> Topology:
    """The topology in a file, or the shipped one of that name (``"ping_pong"``).

    Args:
        source: a path, or a name of `topologies.shipped`.
        overrides: dotted keys and values: ``{"machines.sender.count": 64}``. A text is read as on the command line: as
            TOML (``"64"``), else as a string.
        programs: files of Python whose generator functions the topology may name like shipped ones; their code runs,
            with full trust.

    Raises:
        TopologyError: with all problems.
        UsageError: an override that TOML cannot write.
    """
    file = _find(source)
    known = ProgramFiles(programs)
    return _build(parse(read_text(file), str(file), override_texts(overrides)), file.parent, known)


def loads(
    text: str,
    name: str = "<string>",
    overrides: Mapping[str, object] | None = None,
    programs: Sequence[str | FilePath] = (),
) -> Topology:
    """The topology in ``text``; messages use ``name`` as the name of the file. Otherwise as `load`.

    The files that it names are relative to the current directory.
    """
    return _build(parse(text, name, override_texts(overrides)), FilePath(), ProgramFiles(programs))


def _find(source: str | FilePath) -> FilePath:
    """A bare word is a shipped topology, else a file; anything else is a path."""
    if isinstance(source, FilePath):
        return source
    names = scenario_names()
    if source in names:
        return FOLDER / f"{source}.toml"
    file, is_path = FilePath(source), "/" in source or source.endswith(".toml")
    try:
        if file.exists() or (is_path and file.stem not in names):
            return file
    except (OSError, ValueError):
        return file  # reading it reports what is wrong with the path
    hint = nearest(file.stem if is_path else source, names) or "`ivsim list` shows the topologies that ship"
    raise TopologyError([Problem(show(source), 0, "", "a topology file or the name of a shipped one", "neither", hint)])


def _build(document: Document, folder: FilePath, programs: ProgramFiles) -> Topology:
    report = Report(document)
    topology = _read_all(document, folder, programs, report)
    if topology is not None and topology.matrix and not report.problems:

        def problems_of(cell: Document) -> Sequence[Problem]:
            inner = Report(cell)
            _read_all(cell, folder, programs, inner)
            return inner.problems

        try_values(topology.matrix, document, len(topology.machines), problems_of, report)
    if topology is None or report.problems:
        raise TopologyError(report.problems)
    return topology


def _read_all(document: Document, folder: FilePath, programs: ProgramFiles, report: Report) -> Topology | None:
    try:
        return _read(document, folder, programs, report)
    except TooManyProblemsError:
        return None


def _read(document: Document, folder: FilePath, programs: ProgramFiles, report: Report) -> Topology | None:
    """The topology; None when problems were reported."""
    if not document.values:
        report.add((), "a topology", "no table and no key", "`ivsim init` writes one to start from")
        return None
    fields = read_table(File, document.values, (), report)
    if not (title := fields.get("title", "")).isprintable():
        report.add(("title",), "one line of printable characters", show(title))
    domains = _domains(fields, document, report)
    given_run = document.values.get("run")
    given_run = given_run if isinstance(given_run, dict) else {}
    phases, run = read_phases(fields.get("phases", ()), fields["run"], given_run, report)
    resolved = read_machines(fields, list(domains), programs, report)
    if resolved is None:
        return None
    settle_versions(resolved, domains, report)
    seed = fields.get("seed", 1)
    references = References(resolved.names, resolved.settings, seed=seed, folder=folder, report=report)
    arguments = _arguments(resolved, references, domains, report)
    timeline = Timeline(references, list(domains), end_of(run), report).read(fields.get("timeline", ()))
    expectations = read_expectations(fields.get("expect", ()), references, report)
    invariants = read_invariants(fields.get("invariant", ()), programs, report)
    matrix = read_matrix(fields.get("matrix", {}), report)
    check_guests(resolved, run, report)
    if run.get("stop_above") and run.get("sample_every", 1) == 0:
        expected = "no stop_above with sample_every = 0: only doorbells with a time stamp are held against it"
        report.add(("run", "stop_above"), expected, show(run["stop_above"]), "sample_every = 1 takes all of them")
    if report.problems:
        return None
    topology = Topology(
        title=title or FilePath(document.name).stem,
        seed=seed,
        run=RunSettings(**run),
        domains=tuple(domain for domain in domains.values() if domain is not None),
        groups=tuple(_group(name, fields["machines"][name], base) for name, base in resolved.bases.items()),
        machines=tuple(_machine(resolved, index, arguments, folder) for index in range(len(resolved.settings))),
        phases=phases,
        timeline=timeline,
        expectations=expectations,
        invariants=invariants,
        chaos=Chaos(**fields["chaos"]) if "chaos" in document.values else None,
        matrix=matrix,
        files={name: str((folder / name).absolute()) for name in references.traces},
        source_text=document.text,
        source_name=document.name,
        overrides=document.overrides,
    )
    check_hosts(topology, report)
    return topology


def _domains(fields: Mapping[str, Any], document: Document, report: Report) -> dict[str, Domain | None]:
    """The domains by name; None for one with a problem."""
    named = fields.get("domains", {})
    if "domains" not in document.values:
        return {MAIN_DOMAIN: _domain(MAIN_DOMAIN, fields.get("memory", {}), ("memory",), report)}
    if "memory" in document.values:
        report.add(("memory",), "no [memory] beside [domains]: each domain has its own", "both")
    if len(named) > _MAX_DOMAINS:
        report.add(("domains",), f"at most {_MAX_DOMAINS} domains", str(len(named)))
        named = dict(list(named.items())[:_MAX_DOMAINS])
    segments: dict[str, str] = {}
    for name, table in named.items():
        segment = table.get("name", "")
        if segment and segment in segments:
            got = f"{show(segment)}, as domain {segments[segment]} has"
            report.add(("domains", name, "name"), "a segment of its own for each domain", got)
        segments[segment] = name
    # A file without a valid domain is still checked, as one with a single domain.
    return {name: _domain(name, table, ("domains", name), report) for name, table in named.items()} or {
        MAIN_DOMAIN: None
    }


def _domain(name: str, table: Mapping[str, Any], path: Path, report: Report) -> Domain | None:
    if table.get("name") and table.get("kind") == "memfd":
        hint = 'kind = "shared_memory" has a name'
        report.add((*path, "name"), 'no name for kind = "memfd", which has none', show(table["name"]), hint)
    if "size" in table:
        size_bytes = parse_size(table["size"])
        fitting = min(max(MEMORY_SIZE_MIN_BYTES, power_of_two(size_bytes)), MEMORY_SIZE_MAX_BYTES)
        if size_bytes != fitting:
            report.add((*path, "size"), describe(Size), show(table["size"]), f"take {show_size(fitting)}")
            return None
    if not {"size", "kind", "name"} <= table.keys() or report.has((*path, "name")):
        return None
    memory = Memory(size_bytes=size_bytes, kind=table["kind"], name=table["name"])
    return read_version(name, table, path, memory, report)


def _arguments(
    resolved: ResolvedMachines, references: References, domains: Mapping[str, Domain | None], report: Report
) -> dict[int, Arguments]:
    """The arguments by the identity of the settings: machines with the same settings share them."""
    arguments: dict[int, Arguments] = {}
    pairs = []
    for members in resolved.members:
        for settings, indices in members.kinds():
            program = resolved.programs.get(settings.values.get("program", ""))
            if program is not None:
                own = read_arguments(program, settings, indices, references, report)
                arguments[id(settings)] = own
                pairs.append((settings, own))
    references.check_traces()
    sizes = {name: domain.memory.size_bytes for name, domain in domains.items() if domain is not None}
    check_offsets(pairs, sizes, report)
    return arguments


def _group(name: str, table: Mapping[str, Any], base: Settings) -> Group:
    keys = ("kind", "vectors", "role", "profile")
    return Group(
        name=name,
        count=table.get("count", 1),
        pattern=table.get("name", ""),
        parameters=base.parameters,
        program=GUEST_PROGRAM if base.says("guest") else base.values["program"],
        **{key: base.values[key] for key in keys},
    )


def _machine(resolved: ResolvedMachines, index: int, arguments: Mapping[int, Arguments], folder: FilePath) -> Machine:
    settings = resolved.settings[index]
    values = settings.values
    guest = read_guest(settings, folder)
    keys = ("kind", "ready_timeout_s", "vectors", "role", "profile", "domains", "scheduling", "blockers")
    return Machine(
        index=index,
        name=resolved.names.names_of[index],
        group=resolved.group_of(index),
        program=resolved.programs[values["program"]].name if guest is None else GUEST_PROGRAM,
        parameters=arguments[id(settings)].of(index) if guest is None else {},
        foreign=arguments[id(settings)].foreign if guest is None else frozenset(),
        profiles=values.get("profiles", ()),
        present=not values["absent"],
        guest=guest,
        **{key: values[key] for key in keys},
    )
