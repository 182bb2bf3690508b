"""All machines of a file with their settings, checked against their devices and against each other."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from nodes.device.blockers import Blocker, Blockers
from nodes.device.ivshmem import Ivshmem
from nodes.device.migration_texts import MigrationError
from nodes.device.profile import Profile
from nodes.device.profiles import PROFILES
from nodes.device.variants import VARIANT_CELLS, make_variant
from nodes.errors import UsageError
from nodes.spelling import nearest
from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.language.tables import parse_cpus
from topologies.language.toml_positions import Path
from topologies.language.validated import NAME_PATTERN
from topologies.language.values import describe
from topologies.model import MAX_MACHINES, MAX_NAME, ProgramName, Scheduling, machine_name
from topologies.resolve.names import RESERVED_NAMES, Names
from topologies.resolve.programs import Program, ProgramError, ProgramFiles
from topologies.resolve.settings import Members, Settings, base_settings, group_settings

_REALTIME = ("fifo", "rr")
REAL_PROFILES = ("qemu-doorbell",)
"""The profiles that a real QEMU of the host can be."""
REAL_DEVICES_MAX = 28
"""The slots of bus 0 that a QEMU without other devices has free, from 4 to 31."""
_SERVERLESS = frozenset(profile.name for profile in PROFILES.values() if not profile.server)


class ResolvedMachines(Struct):
    """The groups; ``settings`` of each machine, by its index; ``programs`` by their names in the file."""

    names: Names
    members: list[Members]
    settings: list[Settings]
    programs: dict[str, Program] = field(default_factory=dict)

    @property
    def bases(self) -> dict[str, Settings]:
        """The settings of each group without overrides; of a group with overrides only, those of its first machine."""
        return {members.name: next(members.kinds())[0] for members in self.members}

    def group_of(self, index: int) -> str:
        """The name of the group of a machine."""
        place = bisect_right(self.members, index, key=lambda members: members.indices.start) - 1
        return self.members[place].name

    def kinds(self) -> Iterator[tuple[Settings, Sequence[int]]]:
        """Each settings object, with the indices of its machines."""
        for members in self.members:
            yield from members.kinds()


def read_machines(
    fields: Mapping[str, Any], domains: Sequence[str], programs: ProgramFiles, report: Report
) -> ResolvedMachines | None:
    """The machines of a file; None when there are too many."""
    groups: dict[str, dict[str, Any]] = fields.get("machines", {})
    counts = [(name, group.get("count", 1), _pattern(name, group, report)) for name, group in groups.items()]
    total = sum(count for _, count, _ in counts)
    if total > MAX_MACHINES:
        report.add(("machines",), f"at most {MAX_MACHINES} machines in all groups together", str(total))
        return None
    names = Names(counts)
    _check_names(names, {name: pattern for name, _, pattern in counts}, report)
    defaults = base_settings(fields.get("defaults", {}))
    members = [group_settings(name, group, defaults, names, report) for name, group in groups.items()]
    resolved = ResolvedMachines(
        names, members, [member.of(place) for member in members for place in range(len(member.indices))]
    )
    run = fields.get("run", {})
    for settings, _ in resolved.kinds():
        _settle_domains(settings, domains, report)
        _settle_scheduling(settings, report)
        _settle_device(settings, report)
        _check_kind(settings, run.get("engine", "process"), report)
    first = _first(resolved)
    _check_masters(resolved, domains, first, report)
    if run.get("only_migratable", False):
        for settings, indices in resolved.kinds():
            _check_migratable(settings, indices, first, report)
    _find_programs(resolved, programs, report)
    return resolved


# Names


def _pattern(group: str, table: Mapping[str, Any], report: Report) -> str:
    """The pattern of the names of a group's machines; "" if it has none, or an invalid one."""
    pattern: str = table.get("name", "")
    count = table.get("count", 1)
    if not pattern:
        return ""
    if "{n" not in pattern and count > 1:
        report.add(
            ("machines", group, "name"), f"a pattern with {{n}}, because the group has {count} machines", show(pattern)
        )
        return ""
    for place in (0, count - 1):
        name = machine_name(group, place, count, pattern)
        if len(name) <= MAX_NAME and not re.match(NAME_PATTERN, name):
            report.add(("machines", group, "name"), "a pattern that results in names of machines", show(name))
            return ""
    return pattern


def _check_names(names: Names, patterns: Mapping[str, str], report: Report) -> None:
    """Report names that are reserved, too long, or used twice."""
    for group, members in names.groups.items():
        key = ("machines", group, "name") if patterns[group] else ("machines", group)
        longest = names.names_of[members[-1]]
        reserved = next((name for name in (group, longest, names.names_of[members[0]]) if name in RESERVED_NAMES), None)
        if reserved is not None:
            report.add(key, "a name that is not reserved", show(reserved))
        elif len(longest) > MAX_NAME:
            expected = f"machine names of at most {MAX_NAME} characters"
            report.add(key, expected, f"{show(longest)} of {len(longest)}")
    for group, name in names.clashes[:1]:
        key = ("machines", group, "name") if patterns[group] else ("machines", group)
        expected = "a name that no other machine or group has"
        report.add(key, expected, f"a machine named {show(name)}")


# Settings of each machine


def _settle_domains(settings: Settings, domains: Sequence[str], report: Report) -> None:
    """The domains of a machine: those it names, or the only one."""
    names, path = settings.values["domains"], settings.at("domains")
    known = ", ".join(show(name) for name in domains)
    if not names:
        if len(domains) > 1 and not settings.faulty("domains", report):
            report.add(path, f"an array of the domains {known}", "nothing: this key is missing")
        settings.values["domains"] = tuple(domains[:1])
        return
    for place, name in enumerate(names):
        if name not in domains:
            report.add((*path, place), f"one of the domains {known}", show(name), nearest(name, domains))
        elif name in names[:place]:
            report.add((*path, place), "each domain once", f"{show(name)} again")
    # Without the names that were reported, so that the rest can be checked.
    settings.values["domains"] = tuple(dict.fromkeys(name for name in names if name in domains)) or tuple(domains[:1])


def _settle_scheduling(settings: Settings, report: Report) -> None:
    values = settings.values
    cpus = parse_cpus(values["cpus"])
    if cpus is None:
        expected = 'an array of CPU numbers from 0 to 8191, or a list like "0-3,6" whose ranges run upwards'
        report.add(settings.at("cpus"), expected, show(values["cpus"]))
    policy, priority = values["policy"], values["priority"]
    if any(settings.faulty(key, report) for key in ("policy", "priority", "nice")):
        return
    is_realtime, is_nice = policy in _REALTIME, bool(values["nice"]) and policy not in ("other", "batch")
    if is_realtime and not priority:
        got = show(priority) if settings.says("priority") else "nothing: this key is missing"
        report.add(settings.at("priority"), f"a priority from 1 to 99, for the policy {policy}", got)
    elif priority and not is_realtime:
        hint = "the policies fifo and rr have one"
        report.add(settings.at("priority"), f"no priority, for the policy {policy}", show(priority), hint)
    if is_nice:
        report.add(settings.at("nice"), f"no niceness, for the policy {policy}", show(values["nice"]))
    elif is_realtime == (priority > 0):
        values["scheduling"] = Scheduling(cpus=cpus or (), policy=policy, priority=priority, nice=values["nice"])


def _settle_device(settings: Settings, report: Report) -> None:
    """Check the profile and the number of vectors; without a role, set the profile's default."""
    values = settings.values
    name, vectors = values["profile"], values["vectors"]
    profile = PROFILES.get(name)
    if profile is None:
        expected = f"one of the profiles {', '.join(PROFILES)}"
        report.add(settings.at("profile"), expected, show(name), nearest(name, PROFILES))
        return
    if values["variant"]:
        profile = _variant(profile, settings, report)
        if profile is None:
            return
        name = values["profile"] = profile.name
    if profile.fixed_vectors:
        values["vectors"] = profile.fixed_vectors
        if settings.says("vectors") and vectors != profile.fixed_vectors:
            report.add(settings.at("vectors"), f"{profile.fixed_vectors}, as every {name} has", show(vectors))
    elif profile.vectors_limit is not None and vectors > profile.vectors_limit:
        report.add(settings.at("vectors"), f"at most {profile.vectors_limit}, as {name} has", show(vectors))
    elif vectors == 0 and profile.msix:
        hint = 'profile = "qemu-plain" has no interrupts'
        report.add(settings.at("vectors"), f"at least 1: {name} has MSI-X, which has at least one vector", "0", hint)
    if values["role"] is None:
        values["role"] = profile.default_role
    elif values["role"] not in profile.roles and not settings.faulty("role", report):
        expected = f"{' or '.join(map(show, profile.roles))}: {name} does not choose by its ID"
        report.add(settings.at("role"), expected, show(values["role"]))


def _variant(profile: Profile, settings: Settings, report: Report) -> Profile | None:
    """The profile with the cells of the machine's table ``variant`` changed; None if a problem was reported."""
    cells, place = settings.values["variant"], settings.at("variant")
    unknown = [cell for cell in cells if cell not in VARIANT_CELLS]
    for cell in unknown:
        expected = f"one of the cells {', '.join(VARIANT_CELLS)}"
        report.add((*place, cell), expected, show(cell), nearest(cell, VARIANT_CELLS))
    if unknown:
        return None
    try:
        return make_variant(profile, cells)
    except UsageError as error:
        text, _, got = str(error).rpartition(", got ")
        where, _, expected = text.rpartition(": expected ")
        report.add((*place, where) if where in cells else place, expected or text.removeprefix("expected "), got)
        return None


def _check_kind(settings: Settings, engine: str, report: Report) -> None:
    """Report what a real QEMU cannot be: another device than its own, or a machine under virtual time."""
    values = settings.values
    if values["kind"] == "simulated":
        return
    if values["variant"]:
        expected = f"no variant, for machines of the kind {values['kind']}: QEMU has no options for its cells"
        report.add(settings.at("variant"), expected, ", ".join(values["variant"]))
    elif values["profile"] not in REAL_PROFILES and not settings.faulty("profile", report):
        expected = f"{' or '.join(map(show, REAL_PROFILES))}, for machines of the kind {values['kind']}"
        report.add(settings.at("profile"), expected, show(values["profile"]))
    if len(values["domains"]) > REAL_DEVICES_MAX:
        expected = f"at most {REAL_DEVICES_MAX} domains, for machines of the kind {values['kind']}"
        report.add(settings.at("domains"), expected, str(len(values["domains"])))
    if values["kind"] == "external":
        _settle_external(settings, report)
    if engine != "process":
        hint = 'engine = "process" runs machines of every kind'
        report.add(settings.at("kind"), f'"simulated", for run.engine = {show(engine)}', show(values["kind"]), hint)


def _settle_external(settings: Settings, report: Report) -> None:
    """An external machine has one device, and no program but what its guest runs."""
    if settings.values.get("program") is not None and settings.at("program")[0] != "defaults":
        report.add(settings.at("program"), 'no program, for kind = "external"', show(settings.values["program"]))
    settings.values["program"] = "idle"
    settings.parameters.clear()
    if len(settings.values["domains"]) > 1:
        report.add(settings.at("domains"), 'one domain, for kind = "external"', str(len(settings.values["domains"])))


def _check_migratable(settings: Settings, indices: Sequence[int], first: Mapping[str, int], report: Report) -> None:
    """Report what QEMU started with --only-migratable refuses (migration.json)."""
    values = settings.values
    profile = PROFILES.get(values["profile"])
    expected = "machines that can migrate, for run.only_migratable"
    if profile is not None and not profile.stream:
        report.add(
            settings.at("profile"),
            expected,
            f"Device {profile.name} is not migratable, but --only-migratable was specified",
        )
    elif values["role"] == "peer" or (
        values["role"] == "auto"  # which is a peer unless its ID is 0
        and profile is not None
        and profile.server
        and any(first.get(name, indices[0]) != index for index in indices for name in values["domains"])
    ):
        _refuse(settings, "role", Blocker("peer mode", "ivshmem"), report)
    for reason in values["blockers"][:1]:
        _refuse(settings, "blockers", Blocker(reason), report)


def _refuse(settings: Settings, key: str, blocker: Blocker, report: Report) -> None:
    try:
        Blockers(only_migratable=True).add(blocker)
    except MigrationError as error:
        hint = 'role = "master" can migrate' if key == "role" else ""
        report.add(settings.at(key), "machines that can migrate, for run.only_migratable", str(error), hint)


def _first(resolved: ResolvedMachines) -> dict[str, int]:
    """The machine (it may have no server) that gets ID 0 of each domain, if one is present from the start."""
    first: dict[str, int] = {}
    for index, settings in enumerate(resolved.settings):
        if not settings.values["absent"]:
            for name in settings.values["domains"]:
                first.setdefault(name, index)
    return first


def _check_masters(
    resolved: ResolvedMachines, domains: Sequence[str], first: Mapping[str, int], report: Report
) -> None:
    """Report masters of today that are not the first to connect in each of their domains."""
    where = "of the file" if len(domains) == 1 else "of each of its domains"
    for settings, indices in resolved.kinds():
        profile = PROFILES.get(settings.values["profile"])
        if profile is None or settings.values["role"] != "master" or not profile.master_is_first:
            continue
        if len(indices) > 1 or any(first.get(name) != indices[0] for name in settings.values["domains"]):
            expected = f"one machine, the first {where} ({_refusal_of_second(profile)})"
            names = [resolved.names.names_of[index] for index in indices]
            got = f"{len(names)} machines" if len(names) > 1 else f"{names[0]}, which is not"
            ahead = {first[name] for name in settings.values["domains"] if name in first} - set(indices)
            plain = [index for index in ahead if resolved.settings[index].values["profile"] in _SERVERLESS]
            hint = (
                "in a run, devices without a server connect too, for their memory: the master comes first in the file"
            )
            report.add(settings.at("role"), expected, f'"master" for {got}', hint if plain else "")


def _refusal_of_second(profile: Profile) -> str:
    """The error of the device when a master is not peer 0."""
    try:
        Ivshmem(profile, role="master", ring=lambda *_: None).set_peer(1)
    except UsageError as error:
        return str(error).partition(": it is peer")[0]
    return ""


def _find_programs(resolved: ResolvedMachines, programs: ProgramFiles, report: Report) -> None:
    """Find each program once; report machines without one."""
    failed: dict[str, ProgramError] = {}
    for settings, _ in resolved.kinds():
        name = settings.values.get("program")
        if settings.says("guest"):
            if name is not None and settings.at("program")[0] != "defaults":
                hint = "what its image does is its program"
                report.add(settings.at("program"), "no program beside [guest]", show(name), hint)
            continue
        if name is None:
            if not settings.faulty("program", report) and not report.has(("machines", settings.path[1])):
                path: Path = ("machines", settings.path[1], "program")
                report.add(path, describe(ProgramName), "nothing: this key is missing")
            continue
        if name not in resolved.programs and name not in failed:
            try:
                resolved.programs[name] = programs.find(name)
            except ProgramError as error:
                failed[name] = error
        if (fault := failed.get(name)) is not None:
            report.add(settings.at("program"), fault.expected, fault.got, fault.hint)
