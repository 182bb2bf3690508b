"""``[[phases]]`` and ``[[timeline]]``: the parts and the entries of a file, checked as far as the file can tell."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import Struct

from nodes.device.profiles import PROFILES
from nodes.spelling import nearest
from topologies.actions import ACTIONS, Action, Join, MachineAction, Migrate, ServerAction, fields_of, refers_to
from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.language.tables import keys_of, required_keys_of
from topologies.language.toml_positions import Path
from topologies.language.values import describe
from topologies.model import RunSettings
from topologies.resolve.conditions import read_condition
from topologies.resolve.references import References
from topologies.schedule import Condition, Phase, TimelineEntry

MAX_ACTIONS = 1_000_000
"""The limit of actions on single machines, those of all entries and their repetitions together."""

MISSING = "nothing: this key is missing"


class Timeline(Struct, frozen=True):
    """The context in which the entries of one file are read."""

    references: References
    domains: Collection[str]
    end_s: float
    report: Report

    def read(self, tables: Sequence[Mapping[str, Any]]) -> tuple[TimelineEntry, ...]:
        """The entries of the file, in its order; what is wrong with them is reported."""
        entries: list[TimelineEntry] = []
        paths: list[Path] = []
        total = 0
        for place, table in enumerate(tables):
            path: Path = ("timeline", place)
            entry = self.entry(table, path)
            if entry is None:
                continue
            total += max(1, entry.pick or len(entry.machines)) * entry.repeat
            if total > MAX_ACTIONS:
                key = "repeat" if entry.repeat > 1 else "do"
                self.report.add(
                    (*path, key), f"at most {MAX_ACTIONS} actions in all of the timeline", f"{total} with this"
                )
                break
            entries.append(entry)
            paths.append(path)
        self.check_presence(entries, paths)
        self.check_migrations(entries, paths)
        return tuple(entries)

    def entry(self, table: Mapping[str, Any], path: Path) -> TimelineEntry | None:
        """One entry; None when anything about it was reported."""
        before = len(self.report.problems)
        kind = ACTIONS.get(table.get("do", ""))  # None: reported; the rest of the entry is checked all the same
        allowed = table.keys() if kind is None else keys_of(table["do"])
        for key in table:
            if key not in allowed:
                expected = f"for {table['do']}: {', '.join(allowed)}"
                self.report.add((*path, key), expected, "a key that it does not take")
        when = self._moment(table, path)
        machines: tuple[int, ...] = ()
        if kind is None:
            if "machines" in table:
                self._selected(table["machines"], (*path, "machines"))
            return None
        if issubclass(kind, MachineAction):
            machines = self._machines(kind, table, path)
        own = self._own(kind, table, path)
        if len(self.report.problems) > before or not own.keys() | {"machines"} >= set(required_keys_of(table["do"])):
            return None
        given = {
            key: table[key] for key in ("at_s", "console", "pick", "every_s", "repeat", "period_s") if key in table
        }
        return TimelineEntry(
            action=kind(**own), when=when, machines=machines, line=self.report.document.lines.get(path, 0), **given
        )

    def _moment(self, table: Mapping[str, Any], path: Path) -> Condition | None:
        missing = not any(key in table or self.report.has((*path, key)) for key in ("at_s", "when", "console"))
        if missing:
            self.report.add((*path, "at_s"), "a time in seconds, or a condition `when`", "neither")
        if "console" in table:
            self._check_console(table["console"], (*path, "console"))
        if (at_s := table.get("at_s", 0.0)) >= self.end_s:
            expected = f"a time before the run's end, {self.end_s:g} s after its start"
            self.report.add((*path, "at_s"), expected, f"{at_s:g}")
        if table.get("repeat", 1) > 1 and not table.get("period_s"):
            self.report.add((*path, "period_s"), "a time above 0 between the repetitions", "none")
        if "of" in table and "when" not in table and not self.report.has((*path, "when")):
            self.report.add((*path, "of"), "a condition `when`, whose metric this is", "none")
            return None
        return read_condition(table, "when", path, self.references, self.report, live=True)

    def _check_console(self, pattern: str, path: Path) -> None:
        """Whether the regular expression is one, and there is a guest."""
        self.report.check_pattern(path, pattern)
        if not any(settings.says("guest") for settings in self.references.settings):
            self.report.add(path, "a machine with a guest, which has a console", "none")

    def _machines(self, kind: type[MachineAction], table: Mapping[str, Any], path: Path) -> tuple[int, ...]:
        inner = (*path, "machines")
        if self.report.has(inner):
            return ()
        if "machines" not in table:
            expected = f'the machines to {table["do"]}: a group, a machine, an array of such names, or "all"'
            self.report.add(inner, expected, "nothing")
            return ()
        machines = self._selected(table["machines"], inner)
        if machines and table.get("pick", 1) > len(machines):
            self.report.add((*path, "pick"), f"at most {len(machines)}, as many as are named", show(table["pick"]))
        if issubclass(kind, Migrate):
            self._check_kinds(machines, table, path)
        if "vectors" in map(refers_to, fields_of(kind).values()):
            self._check_devices(kind, machines, table, path)
        return machines

    def _selected(self, names: str | Sequence[str], path: Path) -> tuple[int, ...]:
        chosen = self.references.select(names if isinstance(names, str) else list(names), path, 1)
        if chosen is not None and not chosen.machines:
            self.report.add(path, "at least one machine", "none")
        return () if chosen is None else chosen.machines

    def _check_kinds(self, machines: Sequence[int], table: Mapping[str, Any], path: Path) -> None:
        """Whether the run can migrate the machines: it starts the process or the QEMU that they continue in."""
        names, settings = self.references.names.names_of, self.references.settings
        for index in machines:
            own, name = settings[index], show(names[index])
            if own.values["kind"] == "external":
                self.report.add((*path, "machines"), "machines that the run starts", f"{name}, of kind external")
            elif own.says("guest") and own.values["guest"].get("disk"):
                found = f"{name}, whose guest has a disk"
                hint = "what it has written there is with the QEMU that it would leave"
                self.report.add((*path, "machines"), "machines whose state is in their memory", found, hint)
            elif own.says("guest") and table.get("hand_over"):
                hint = f"{name} has a guest, and its QEMU has the connection itself: give a to_domain"
                self.report.add((*path, "hand_over"), "no hand_over", "true", hint)
            else:
                continue
            return

    def _check_devices(
        self, kind: type[MachineAction], machines: Sequence[int], table: Mapping[str, Any], path: Path
    ) -> None:
        """Whether the devices of the machines have the vectors that the action works on."""
        settings = {id(each): each for each in (self.references.settings[index] for index in machines)}.values()
        for own in settings:
            values, profile = own.values, PROFILES.get(own.values["profile"])
            for at, vector in enumerate(table.get("vectors", ())):
                if vector >= values["vectors"]:
                    expected = f"vectors that all of the machines have: there are {values['vectors']}"
                    self.report.add((*path, "vectors", at), expected, show(vector))
            if not values["vectors"]:
                expected = f"machines that have vectors to {table['do']}"
                self.report.add((*path, "machines"), expected, show(table["machines"]))
            elif kind.needs_msix and profile is not None and not profile.msix:
                expected = f"machines whose device has MSI-X, whose vectors can be {table['do']}ed"
                self.report.add((*path, "machines"), expected, profile.name)

    def _own(self, kind: type[Action], table: Mapping[str, Any], path: Path) -> dict[str, Any]:
        own = {}
        for field, annotation in zip(kind.__struct_fields__, fields_of(kind).values(), strict=True):
            inner, names_domain = (*path, field), refers_to(annotation) == "domains"
            known = f"one of {', '.join(map(show, self.domains))}"
            if field in table:
                own[field] = table[field]
                if names_domain and table[field] not in self.domains:
                    self.report.add(inner, known, show(table[field]), nearest(table[field], self.domains))
            elif self.report.has(inner):
                continue
            elif field in required_keys_of(table["do"]):
                self.report.add(inner, describe(annotation), MISSING)
            elif names_domain and issubclass(kind, ServerAction):
                if len(self.domains) > 1:
                    self.report.add(inner, known, MISSING)
                own[field] = next(iter(self.domains))
        return own

    def check_presence(self, entries: Sequence[TimelineEntry], paths: Sequence[Path]) -> None:
        """Whether machines that join can be absent by then, and machines of other actions present.

        As far as times tell: a condition may hold at any moment from the entry's ``at_s`` on.
        """
        absent = {index for index, settings in enumerate(self.references.settings) if settings.values["absent"]}
        steps: list[tuple[float, int, int]] = []
        for place, entry in enumerate(entries):
            first, last, action = entry.at_s, math.inf, entry.action
            if not entry.waits:
                last = entry.at_s + (entry.repeat - 1) * entry.period_s + len(entry.machines) * entry.every_s
            if isinstance(action, Join) or action.removes or getattr(action, "fault", None) == "source_dies":
                steps.append((first, place, 0))
            if entry.machines:
                steps.append((last, place, 1))
        # Machines that can be absent, and those that can be present, at the moment that the loop has reached.
        away, there = set(absent), set(range(len(self.references.settings))) - absent
        for _, place, judged in sorted(steps):
            entry = entries[place]
            joins = isinstance(entry.action, Join)
            if not judged:
                (there if joins else away).update(entry.machines)
                continue
            possible = away if joins else there
            wrong = next((index for index in entry.machines if index not in possible), -1)
            if wrong >= 0:
                name = self.references.names.names_of[wrong]
                expected = "machines that can be absent by then" if joins else "machines that can be present by then"
                got = f"{name}, which is present from the start" if joins else f"{name}, which never joins before"
                hint = "`absent = true` lets it begin absent" if joins else '`do = "join"` brings it'
                self.report.add((*paths[place], "machines"), expected, got, hint)

    def check_migrations(self, entries: Sequence[TimelineEntry], paths: Sequence[Path]) -> None:
        """Report migrations that can never begin; a run may be meant to show one that is refused or fails."""
        moves = [
            (entry, entry.action, path)
            for entry, path in zip(entries, paths, strict=True)
            if isinstance(entry.action, Migrate)
        ]
        reached = {action.to_domain for _, action, _ in moves if not action.hand_over}
        for entry, action, path in moves:
            domains = {index: self.references.settings[index].values["domains"] for index in entry.machines}
            if (bridge := next((index for index, names in domains.items() if len(names) > 1), None)) is not None:
                its = " and ".join(map(show, domains[bridge]))
                got = f"{self.references.names.names_of[bridge]}, which has devices in {its}"
                self.report.add((*path, "machines"), "machines with a device in one domain", got)
            elif action.hand_over and action.to_domain and action.to_domain not in reached:
                others = [domain[0] for domain in domains.values() if domain[0] != action.to_domain]
                if others:
                    expected = f"none but {show(others[0])}: a connection that is handed over stays with its server"
                    hint = "leave out to_domain, or hand_over"
                    self.report.add((*path, "to_domain"), expected, show(action.to_domain), hint)
            if action.fault == "late_memory":
                self._check_late_memory(entry, action, path)

    def _check_late_memory(self, entry: TimelineEntry, action: Migrate, path: Path) -> None:
        """Only the device of 2012 runs before the server has sent the memory (QEMU 3a55fc0f24 waits for it)."""
        if action.hand_over:
            expected = "another fault: a connection that is handed over has its memory already"
            self.report.add((*path, "fault"), expected, "late_memory with hand_over")
            return
        for index in entry.machines:
            profile = PROFILES.get(self.references.settings[index].values["profile"])
            if profile is not None and profile.waits_for_memory:
                early = ", ".join(profile.name for profile in PROFILES.values() if not profile.waits_for_memory)
                expected = f"machines that run before their server has sent the memory: {early}"
                why = "which waits for it" if profile.server else "which gets none from a server"
                got = f"{self.references.names.names_of[index]}, a {profile.name}, {why}"
                self.report.add((*path, "machines"), expected, got)
                return


_LONGEST_S = 604_800


def read_phases(
    tables: Sequence[Mapping[str, Any]], run: Mapping[str, Any], given: Mapping[str, Any], report: Report
) -> tuple[tuple[Phase, ...], dict[str, Any]]:
    """The phases, and ``run`` with their times; ``given`` is the table ``[run]`` of the file."""
    before = len(report.problems)
    if not tables:
        return (), dict(run)
    for key in ("duration_s", "warmup_s"):
        if key in given:
            report.add(("run", key), "no time: the phases set the duration of the run", show(given[key]))
    seen: set[str] = set()
    for place, table in enumerate(tables):
        name = table.get("name")
        if name in seen:
            report.add(("phases", place, "name"), "a name that no other phase has", show(name))
        seen.add(str(name))
    total = sum(table.get("duration_s", 0.0) for table in tables)
    if total > _LONGEST_S:
        report.add(("phases",), f"at most {_LONGEST_S} seconds in all", f"{total:g}")
    if not any(table.get("measured", True) for table in tables):
        report.add(("phases",), "at least one phase that is measured", "none")
    if len(report.problems) > before or any("name" not in t or "duration_s" not in t for t in tables):
        return (), dict(run)
    phases = tuple(Phase(**{**table, "load": _load(table.get("load", 1.0))}) for table in tables)
    leading = next(place for place, phase in enumerate(phases) if phase.measured)
    warmup_s = sum(phase.duration_s for phase in phases[:leading])
    rest_s = sum(phase.duration_s for phase in phases[leading:])
    return phases, {**run, "warmup_s": float(warmup_s), "duration_s": float(rest_s)}


def _load(load: float | tuple[float, float]) -> tuple[float, float]:
    return (load, load) if isinstance(load, float) else load


def end_of(run: Mapping[str, Any]) -> float:
    """The duration of the programs, warm-up included, in seconds; defaults for keys that were reported."""
    settings = RunSettings()
    return float(run.get("warmup_s", settings.warmup_s) + run.get("duration_s", settings.duration_s))
