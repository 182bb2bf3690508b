"""The machines that parameters of programs and the timeline name, and the number of pairs so far."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path as FilePath

import msgspec

from nodes.spelling import nearest
from topologies.language.problems import TopologyError, printable, show
from topologies.language.reader import Report
from topologies.language.toml_positions import Path
from topologies.model import MAX_NAME, Machines
from topologies.resolve.names import RESERVED_NAMES, Names, Selection, UnknownNameError
from topologies.resolve.patterns import DEGREE, PATTERNS, MachineChoice, apply_pattern, draw
from topologies.resolve.settings import Settings
from topologies.resolve.traces import TraceFile, read_trace

MAX_EDGES = 16 << 20
"""The most (machine, peer) pairs of all parameters together: 4096 machines, each to all."""

MAX_TRACES = 16

_NAMES = 'the name of a group or machine, "others", "all", "foreign", or an array of such names'
_NUMBERED = re.compile(r"(.*?)[-_. ]?[0-9]+")
_FIXED_NAMES = 'the name of a group or machine, "all", or an array of such names'


class Reach:
    """Which machines share a domain. Machines with the same domains form a class."""

    def __init__(self, settings: Sequence[Settings]) -> None:
        classes: dict[tuple[str, ...], int] = {}
        self.class_of = [classes.setdefault(setting.values["domains"], len(classes)) for setting in settings]
        self._reached = [
            frozenset(other for names, other in classes.items() if not set(own).isdisjoint(names)) for own in classes
        ]
        self.is_total = len(classes) <= 1

    def seen_by(self, index: int, machines: Machines) -> Machines:
        """Those of ``machines`` that share a domain with the machine ``index``."""
        reached, class_of = self._reached[self.class_of[index]], self.class_of
        return Machines(other for other in machines if class_of[other] in reached)


class References:
    """Resolves names of machines. ``settings`` are those of each machine, by its index.

    Pairs of a machine and a peer are counted before they are made: a thousand groups that each name 65536 machines end
    at the first one beyond the limit.
    """

    def __init__(
        self, names: Names, settings: Sequence[Settings], *, seed: int, folder: FilePath, report: Report
    ) -> None:
        self.names = names
        self.settings = settings
        self.edges = 0
        self.traces: dict[str, TraceFile] = {}
        self._players: dict[str, set[int]] = {}
        self._most_vectors: dict[str, int] = {}
        self._seed, self._folder, self._report = seed, folder, report
        self._reach = Reach(settings)
        first = {group: members.start for group, members in names.groups.items()}
        self._places = [index - first[group] for group, members in names.groups.items() for index in members]

    def choose(self, value: object, path: Path, members: Sequence[int]) -> MachineChoice | None:
        """The machines that a parameter's ``value`` names for ``members``; None when it was reported.

        With several domains, each member only gets machines that share a domain with it.
        """
        found: Selection | dict[int, Machines] | None
        if isinstance(value, dict):
            found = self._pattern(value, path, members)
        else:
            found = self.select(value, path, len(members), _NAMES)
        if found is None:
            return None
        chosen = found.seen_by if isinstance(found, Selection) else found.__getitem__
        if self._reach.is_total:
            return chosen
        if isinstance(found, Selection) and found.machines and value not in RESERVED_NAMES:
            for index in {self._reach.class_of[index]: index for index in members}.values():
                if not self._reach.seen_by(index, found.machines):
                    name = self.names.names_of[index]
                    self._report.add(path, f"machines that share a domain with {name}", show(value))
                    return None
        return lambda index: self._reach.seen_by(index, chosen(index))

    def reaches_foreign(self, value: object) -> bool:
        """Whether a parameter's value stands for foreign peers, too."""
        if isinstance(value, dict):
            value = value.get("all")
        names = value if isinstance(value, list) else [value]
        return any(isinstance(name, str) and (name == "others" or self.names.is_foreign(name)) for name in names)

    def select(self, value: object, path: Path, times: int, expected: str = _FIXED_NAMES) -> Selection | None:
        """The machines that ``value`` names, for ``times`` machines; None when it was reported."""
        if self.edges > MAX_EDGES:
            return None
        try:
            names = msgspec.convert(value, str | list[str], strict=True)
            for name in [names] if isinstance(names, str) else names:
                if expected is _FIXED_NAMES and (name == "others" or self.names.is_foreign(name)):
                    raise UnknownNameError(name)
            selection = self.names.select(names)
        except msgspec.ValidationError:
            self._report.add(path, expected, show(value))
            return None
        except UnknownNameError as unknown:
            place = () if isinstance(names, str) else (names.index(unknown.name),)
            if not self.is_missing(unknown.name):
                self._report.add((*path, *place), expected, show(unknown.name), self.hint_of(unknown.name))
            return None
        return selection if self._count(len(selection.machines) * times, path) else None

    def hint_of(self, name: str) -> str:
        """A hint on an unknown name."""
        numbered = _NUMBERED.fullmatch(name[:MAX_NAME])
        members = self.names.groups.get(numbered[1], range(0)) if numbered else range(0)
        if numbered and len(members) > 1:
            first, last = (self.names.names_of[index] for index in (members[0], members[-1]))
            return f"the machines of {numbered[1]} are {first} to {last}"
        known = [known for known in self.names.names if known != name]
        return nearest(name, known) or f"the groups are {', '.join(list(self.names.groups)[:8])}"

    def is_missing(self, name: str) -> bool:
        """Whether the name may be unknown only because its group, or the count of that, was reported."""
        document = self._report.document
        if self._report.has(("machines",)):
            return True
        numbered = _NUMBERED.fullmatch(name[:MAX_NAME])
        group = numbered[1] if numbered else name
        if self._report.has(("machines", group)) or self._report.has(("machines", group, "count")):
            return True
        unread = [key for key in document.values if self._report.has((key,))]
        return any(
            name in (key, *table) or group in (key, *table) for key in unread if (table := _keys(document.values[key]))
        )

    def _count(self, pairs: int, path: Path) -> bool:
        self.edges += pairs
        if self.edges > MAX_EDGES:
            expected = f"at most {MAX_EDGES} pairs of a machine and a peer it names, in all of the file together"
            self._report.add(path, expected, f"{self.edges} with this")
            return False
        return True

    def _pattern(
        self, value: dict[str, object], path: Path, members: Sequence[int]
    ) -> Selection | dict[int, Machines] | None:
        kinds = [key for key in value if key in PATTERNS]
        for key in value if kinds else ():
            if key not in PATTERNS and not (key == DEGREE and "random" in kinds):
                self._report.unknown_key((*path, key), [*PATTERNS, *((DEGREE,) if "random" in kinds else ())])
        if len(kinds) != 1:
            expected = f"a table with one of the keys {', '.join(PATTERNS)}"
            self._report.add(path, expected, " and ".join(kinds) or "none of them")
            return None
        kind, inner = kinds[0], (*path, kinds[0])
        if kind == "all":
            return self.select(value[kind], inner, len(members), _NAMES)
        chosen = self.select(value[kind], inner, 1)
        if chosen is None:
            return None
        placed = [(index, self._places[index]) for index in members]
        if kind == "random":
            return self._draw(value, path, chosen.machines, placed)
        # The hub of a star rings all other machines; every other machine in a pattern rings one.
        if not self._count(len(members) + len(chosen.machines), inner):
            return None
        pattern = PATTERNS[kind]
        assert pattern is not None
        laid = apply_pattern(pattern, chosen.machines, placed)
        if laid is None:
            outside = next(index for index in members if index not in set(chosen.machines))
            expected = f"a selection that has every machine of this group: a {kind} is only for machines in it"
            self._report.add(inner, expected, f"{show(value[kind])}, without {self.names.names_of[outside]}")
        return laid

    def _draw(
        self, value: dict[str, object], path: Path, machines: Machines, members: list[tuple[int, int]]
    ) -> dict[int, Machines] | None:
        degree, inner = value.get(DEGREE), (*path, DEGREE)
        expected = "a whole number from 1 to the number of other machines in it"
        if isinstance(degree, bool) or not isinstance(degree, int) or not 1 <= degree <= len(machines):
            self._report.add(inner, expected, "nothing: this key is missing" if degree is None else show(degree))
            return None
        if not self._count(degree * len(members), inner):
            return None
        laid = draw(machines, members, degree, f"{self._seed}/{path[-1]}")
        if laid is None:
            self._report.add(inner, expected, f"{degree} of {len(machines) - 1}")
        return laid

    def trace(self, value: object, path: Path, members: Sequence[int]) -> TraceFile | None:
        """The trace in the file ``value``; None when it was reported."""
        if not isinstance(value, str) or not 1 <= len(value) <= 1024:
            self._report.add(path, "the name of a trace's file, relative to this file", show(value))
            return None
        trace = self.traces.get(value)
        if trace is None:
            if len(self.traces) >= MAX_TRACES:
                self._report.add(path, f"at most {MAX_TRACES} files of traces", "another one")
                return None
            try:
                trace = read_trace(self._folder / value, self.names.machines, self._vectors_between)
            except TopologyError as error:
                (problem,) = error.problems
                name = printable(problem.file)
                hint = f"in {name}, line {problem.line}" if problem.line else f"looked for as {name}"
                self._report.add(path, problem.expected, problem.got, hint)
                return None
            self.traces[value] = trace
            for problem in trace.problems:
                self._report.take(problem)
        self._players.setdefault(value, set()).update(members)
        return trace

    def _vectors_between(self, source: int, target: int) -> int:
        """The number of vectors that a machine can ring of another: a device knows no more than it has itself."""
        if not self._reach.seen_by(source, Machines((target,))):
            return 0
        return min(int(self.settings[index].values["vectors"]) for index in (source, target))

    def most_vectors(self, name: str) -> int:
        """The most vectors of a machine of the group, or of the machine, with that name."""
        if name not in self._most_vectors:
            members = self.names.members(name)
            self._most_vectors[name] = max(int(self.settings[index].values["vectors"]) for index in members)
        return self._most_vectors[name]

    def check_traces(self) -> None:
        """Report rows whose source does not use the trace; after all groups have been read."""
        for value, trace in self.traces.items():
            for index, line in trace.first_line.items():
                if index not in self._players[value]:
                    name = self.names.names_of[index]
                    trace.report(line, "a source that uses this trace", show(name), "source")
                    self._report.take(trace.problems[-1])
                    break


def _keys(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []
