"""The settings of a machine: override over group over ``[defaults]``, and the place of each value in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct, field

from nodes.spelling import nearest
from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.language.tables import MachineTable
from topologies.language.toml_positions import Path
from topologies.resolve.names import Names

_OF_GROUPS = ("count", "name", "override")
_BASE = {
    each.name: each.default if each.default_factory is msgspec.NODEFAULT else each.default_factory()
    for each in msgspec.structs.fields(MachineTable)
}
del _BASE["program"], _BASE["parameters"]


class Settings(Struct):
    """The settings of the machines of the table at ``path``; ``program`` only if the file has it."""

    path: Path
    above: tuple[Path, ...] = ()
    values: dict[str, Any] = field(default_factory=lambda: dict(_BASE))
    parameters: dict[str, object] = field(default_factory=dict)
    _places: dict[str, Path] = field(default_factory=dict)
    """By key, and by ``parameters.NAME``."""

    def at(self, key: str) -> Path:
        """The place of ``key`` in the file, or where it belongs."""
        return self._places.get(key, (*self.path, key))

    def says(self, key: str) -> bool:
        """Whether the file has ``key``."""
        return key in self._places

    def faulty(self, key: str, report: Report) -> bool:
        """Whether a value of ``key`` was reported."""
        return any(report.has((*path, key)) for path in (self.path, *self.above))

    def parameter_at(self, name: str) -> Path:
        """The place of a parameter of the program in the file, or where it belongs."""
        return self._places.get(f"parameters.{name}", (*self.path, "parameters", name))

    def under(self, path: Path, table: Mapping[str, Any]) -> Settings:
        """These settings overridden by those of ``table`` at ``path``.

        Parameters are merged one by one, unless the table names another program.
        """
        own = {key: value for key, value in table.items() if key not in _OF_GROUPS and key != "parameters"}
        stays = own.get("program") in (None, self.values.get("program"))
        parameters = table.get("parameters", {})
        return Settings(
            path,
            (*self.above, self.path),
            {**self.values, **own},
            {**(self.parameters if stays else {}), **parameters},
            {
                **{key: place for key, place in self._places.items() if stays or not key.startswith("parameters.")},
                **{key: (*path, key) for key in own},
                **{f"parameters.{name}": (*path, "parameters", name) for name in parameters},
            },
        )


class Members(Struct):
    """The settings of one group: of all machines, and of those with overrides, by their place."""

    name: str
    indices: range
    base: Settings
    different: dict[int, Settings] = field(default_factory=dict)

    def of(self, place: int) -> Settings:
        return self.different.get(place, self.base)

    def kinds(self) -> Iterator[tuple[Settings, list[int] | range]]:
        """Each settings object of the group with the indices of its machines, if it has any."""
        if len(self.different) < len(self.indices):
            same = [index for place, index in enumerate(self.indices) if place not in self.different]
            yield self.base, same if self.different else self.indices
        for place, settings in self.different.items():
            yield settings, [self.indices[place]]


def base_settings(defaults: Mapping[str, Any]) -> Settings:
    """The settings of ``[defaults]``."""
    return Settings(("defaults",)).under(("defaults",), defaults)


def group_settings(name: str, table: Mapping[str, Any], defaults: Settings, names: Names, report: Report) -> Members:
    """The settings of one group; problems of its overrides are reported."""
    path: Path = ("machines", name)
    members = Members(name, names.groups[name], defaults.under(path, table))
    for key, own in table.get("override", {}).items():
        inner = (*path, "override", key)
        place = _place(key, members.indices, names)
        if place is None:
            if not report.has((*path, "count")):
                expected = f"a place from 0 to {len(members.indices) - 1}, or the name of a machine of the group"
                known = [names.names_of[index] for index in members.indices[:64]]
                report.add(inner, expected, show(key), nearest(key, known))
        elif place in members.different:
            report.add(inner, "each machine once", f"{show(names.names_of[members.indices[place]])} again")
        else:
            members.different[place] = members.base.under(inner, own)
    return members


def _place(key: str, indices: range, names: Names) -> int | None:
    index = names.machines.get(key)
    if index is not None and index in indices:
        return index - indices.start
    if key.isascii() and key.isdigit() and int(key) < len(indices):
        return int(key)
    return None
