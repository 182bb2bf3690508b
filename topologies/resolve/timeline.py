"""``[[timeline]]``: what happens to machines and servers, checked as far as a file can tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nodes.device.profiles import PROFILES
from topologies.language.problems import nearest, show
from topologies.language.reader import Report
from topologies.language.toml_positions import Path
from topologies.language.values import MisfitError
from topologies.metrics import check_of, parse_condition
from topologies.resolve.references import Guests
from topologies.schedule import ACTIONS, FAULTS, GARBLES, SERVER_ACTIONS, Action, Condition

__all__ = ["MAX_ACTIONS", "keys_of", "read_condition", "read_timeline"]

MAX_ACTIONS = 1_000_000
"""So often may something be done to a machine, all actions and their repetitions together."""

_TIMES = ("do", "at_s", "when", "of", "repeat", "period_s")
_ON_MACHINES = ("machines", "pick", "every_s")
_REMOVE = frozenset({"leave", "kill", "unplug"})


def keys_of(do: str) -> list[str]:
    """The keys that an action takes, in order."""
    return [*_TIMES, *(() if do in SERVER_ACTIONS else _ON_MACHINES), *sorted(ACTIONS[do][1])]


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the actions of one file are read with."""

    guests: Guests
    domains: Collection[str]
    end_s: float
    lines: Callable[[Path], int]
    report: Report

    def action(self, table: Mapping[str, Any], path: Path) -> Action | None:
        """One action; None when anything about it was reported."""
        before = len(self.report.problems)
        do = table.get("do")
        if do is None:
            return None  # reported
        allowed = keys_of(do)
        for key in table:
            if key not in allowed:
                self.report.add((*path, key), f"for {do}: {', '.join(allowed)}", "a key that it does not take")
        when = self._moment(table, path)
        machines: tuple[int, ...] = ()
        if do not in SERVER_ACTIONS:
            machines = self._machines(do, table, path)
        self._words(do, table, path)
        if do == "slow" and "delay_us" not in table and not self.report.has((*path, "delay_us")):
            expected = "how much later interrupts are taken, in microseconds; 0 makes a machine fast again"
            self.report.add((*path, "delay_us"), expected, "nothing: this key is missing")
        if len(self.report.problems) > before:
            return None
        plain = {key: table[key] for key in table if key not in ("when", "of", "machines")}
        if do in SERVER_ACTIONS:
            plain.setdefault("domain", next(iter(self.domains)))
        return Action(**plain, when=when, machines=machines, line=self.lines(path))

    def _moment(self, table: Mapping[str, Any], path: Path) -> Condition | None:
        missing = not any(key in table or self.report.has((*path, key)) for key in ("at_s", "when"))
        if missing:
            self.report.add((*path, "at_s"), "a time in seconds, or a condition `when`", "neither")
        if (at_s := table.get("at_s", 0.0)) >= self.end_s:
            expected = f"a time before the run's end, {self.end_s:g} s after its start"
            self.report.add((*path, "at_s"), expected, f"{at_s:g}")
        if table.get("repeat", 1) > 1 and not table.get("period_s"):
            self.report.add((*path, "period_s"), "a time above 0, for what is done again and again", "none")
        if "when" in table:
            return read_condition(table, "when", path, self.guests, self.report, live=True)
        if "of" in table:
            self.report.add((*path, "of"), "a condition `when`, whose figure this is", "none")
        return None

    def _machines(self, do: str, table: Mapping[str, Any], path: Path) -> tuple[int, ...]:
        inner = (*path, "machines")
        if self.report.has(inner):
            return ()
        if "machines" not in table:
            self.report.add(inner, f'whom to {do}: a group, a machine, an array of such names, or "all"', "nothing")
            return ()
        names = table["machines"]
        chosen = self.guests.select(names if isinstance(names, str) else list(names), inner, 1)
        if chosen is None:
            return ()
        machines = chosen.machines
        if not machines:
            self.report.add(inner, "at least one machine", "none")
        elif table.get("pick", 1) > len(machines):
            self.report.add((*path, "pick"), f"at most {len(machines)}, as many as are named", show(table["pick"]))
        self._devices(do, machines, table, path)
        return machines

    def _devices(self, do: str, machines: Sequence[int], table: Mapping[str, Any], path: Path) -> None:
        """Whether the devices of the machines have what the action works on."""
        if "vectors" not in ACTIONS[do][1]:
            return
        settings = {id(each): each for each in (self.guests.settings[index] for index in machines)}.values()
        for own in settings:
            values, profile = own.values, PROFILES.get(own.values["profile"])
            for at, vector in enumerate(table.get("vectors", ())):
                if vector >= values["vectors"]:
                    expected = f"vectors that all of the machines have: there are {values['vectors']}"
                    self.report.add((*path, "vectors", at), expected, show(vector))
            if not values["vectors"]:
                self.report.add((*path, "machines"), f"machines that have vectors to {do}", show(table["machines"]))
            elif do != "fill" and profile is not None and not profile.msix:
                expected = f"machines whose device has MSI-X, whose vectors can be {do}ed"
                self.report.add((*path, "machines"), expected, profile.name)

    def _words(self, do: str, table: Mapping[str, Any], path: Path) -> None:
        """The keys whose values are one of a few words."""
        choices = (("message", GARBLES), ("fault", FAULTS), ("domain", self.domains), ("to_domain", self.domains))
        for key, known in choices:
            if key in table and table[key] not in known:
                expected = f"one of {', '.join(show(word) for word in known)}"
                self.report.add((*path, key), expected, show(table[key]), nearest(table[key], known))
        if do in SERVER_ACTIONS and "domain" not in table and len(self.domains) > 1:
            expected = f"one of {', '.join(show(word) for word in self.domains)}"
            self.report.add((*path, "domain"), expected, "nothing: this key is missing")

    def check_presence(self, actions: Sequence[Action], paths: Sequence[Path]) -> None:
        """Who joins was away before; who is done something to had come. As far as times tell: a condition may hold
        at any moment from its ``at_s`` on.
        """
        absent = {index for index, each in enumerate(self.guests.settings) if each.values["absent"]}
        steps: list[tuple[float, int, int]] = []
        for place, action in enumerate(actions):
            first, last = action.at_s, math.inf
            if action.when is None:
                last = action.at_s + (action.repeat - 1) * action.period_s + len(action.machines) * action.every_s
            if action.do == "join" or action.do in _REMOVE or action.fault == "source_dies":
                steps.append((first, place, 0))
            if action.machines:
                steps.append((last, place, 1))
        # Machines that can be away, and those that can be there, at the moment that the loop has reached.
        away, there = set(absent), set(range(len(self.guests.settings))) - absent
        for _, place, judged in sorted(steps):
            action = actions[place]
            if not judged:
                (there if action.do == "join" else away).update(action.machines)
                continue
            possible = away if action.do == "join" else there
            wrong = next((index for index in action.machines if index not in possible), -1)
            if wrong >= 0:
                name = self.guests.roster.names_of[wrong]
                joins = action.do == "join"
                expected = "machines that are away by then" if joins else "machines that are there by then"
                got = f"{name}, which is there from the beginning" if joins else f"{name}, which never joins before"
                hint = "`absent = true` lets it begin without" if joins else '`do = "join"` brings it'
                self.report.add((*paths[place], "machines"), expected, got, hint)

    def check_migrations(self, actions: Sequence[Action], paths: Sequence[Path]) -> None:
        """Migrations that can never begin. One that is refused, or fails, may be what the run is to show."""
        moves = [(action, path) for action, path in zip(actions, paths, strict=True) if action.do == "migrate"]
        reached = {action.to_domain for action, _ in moves if not action.hand_over}
        for action, path in moves:
            domains = {index: self.guests.settings[index].values["domains"] for index in action.machines}
            if (bridge := next((index for index, its in domains.items() if len(its) > 1), None)) is not None:
                its = " and ".join(map(show, domains[bridge]))
                got = f"{self.guests.roster.names_of[bridge]}, which has devices in {its}"
                self.report.add((*path, "machines"), "machines with a device in one domain", got)
            elif action.hand_over and action.to_domain and action.to_domain not in reached:
                others = [its[0] for its in domains.values() if its[0] != action.to_domain]
                if others:
                    expected = f"none but {show(others[0])}: a connection that is handed over leads where it led before"
                    hint = "leave out to_domain, or hand_over"
                    self.report.add((*path, "to_domain"), expected, show(action.to_domain), hint)
            if action.fault == "late_memory":
                self._check_late_memory(action, path)

    def _check_late_memory(self, action: Action, path: Path) -> None:
        """Only the device of 2012 goes on before the server has sent the memory (QEMU 3a55fc0f24 waits for it)."""
        if action.hand_over:
            got = "late_memory with hand_over"
            self.report.add((*path, "fault"), "another fault: who is handed over has its memory already", got)
            return
        for index in action.machines:
            profile = PROFILES.get(self.guests.settings[index].values["profile"])
            if profile is not None and (profile.revision > 0 or not profile.server):
                expected = "machines that go on before their server has sent the memory: qemu-1.1, qemu-1.1-intx"
                why = "which waits for it" if profile.server else "which gets none from a server"
                got = f"{self.guests.roster.names_of[index]}, a {profile.name}, {why}"
                self.report.add((*path, "machines"), expected, got)
                return


def read_timeline(
    tables: Sequence[Mapping[str, Any]],
    guests: Guests,
    *,
    domains: Collection[str],
    end_s: float,
    lines: Callable[[Path], int],
    report: Report,
) -> tuple[Action, ...]:
    """The actions of the file, in its order; what is wrong with them is reported."""
    timeline = Timeline(guests, domains, end_s, lines, report)
    actions: list[Action] = []
    paths: list[Path] = []
    total = 0
    for place, table in enumerate(tables):
        path: Path = ("timeline", place)
        action = timeline.action(table, path)
        if action is None:
            continue
        total += max(1, action.pick or len(action.machines)) * action.repeat
        if total > MAX_ACTIONS:
            key = "repeat" if action.repeat > 1 else "do"
            report.add((*path, key), f"at most {MAX_ACTIONS} actions in all of the timeline", f"{total} with this")
            break
        actions.append(action)
        paths.append(path)
    timeline.check_presence(actions, paths)
    timeline.check_migrations(actions, paths)
    return tuple(actions)


def read_condition(
    table: Mapping[str, Any], key: str, path: Path, guests: Guests, report: Report, *, live: bool
) -> Condition | None:
    """The condition written under ``key``, with its ``of``; None when that was reported."""
    try:
        condition = parse_condition(table[key], live=live)
    except MisfitError as misfit:
        report.add((*path, key), misfit.expected, show(table[key]), misfit.hint)
        return None
    if not table.get("of"):
        return condition
    try:
        return check_of(condition, table["of"], guests)
    except MisfitError as misfit:
        report.add((*path, "of"), misfit.expected, show(table["of"]), misfit.hint)
        return None
