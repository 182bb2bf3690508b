"""The names of all machines of a topology, and the machines that ``to = "storm"`` names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby, islice

from msgspec import Struct

from topologies.model import Machines, machine_name

RESERVED_NAMES = ("all", "others")
FOREIGN = "foreign"
"""All peers that are no machines of the topology, unless a group or a machine has that name."""
_NAMES_SHOWN, _KINDS_SHOWN = 3, 8
_LAST_NUMBER = re.compile(r"[0-9]+(?=[^0-9]*\Z)")


class UnknownNameError(Exception):
    """No group and no machine has the name ``name``."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Selection(Struct, frozen=True):
    """The machines that some names stand for: indices in the order of the names, each once.

    A machine is not in its own selection, unless it is in ``itself`` because its own name or "all" selected it.
    """

    machines: Machines
    itself: frozenset[int]

    def seen_by(self, index: int) -> Machines:
        """The selection of the machine ``index``; one object for all machines that are not selected."""
        if index in self.itself or index not in self.machines:
            return self.machines
        place = self.machines.index(index)
        return Machines(self.machines[:place] + self.machines[place + 1 :])


class Names:
    """Names to indices. ``groups`` are (name, count, pattern of the machines' names, or "") in the file's order.

    ``clashes`` are the names that are used twice, each with its group.
    """

    def __init__(self, groups: Iterable[tuple[str, int, str]]) -> None:
        self.groups: dict[str, range] = {}
        self.machines: dict[str, int] = {}
        self.names_of: list[str] = []
        self.clashes: list[tuple[str, str]] = []
        patterns = {}
        total = 0
        for group, count, pattern in groups:
            self.groups[group] = range(total, total + count)
            total += count
            patterns[group] = pattern
        # Every selection shares the objects of the indices: a million pairs cost 8 bytes each.
        self.everyone = Machines(range(total))
        self._everyone = frozenset(self.everyone)
        for group, members in self.groups.items():
            for place, index in enumerate(members):
                name = machine_name(group, place, len(members), patterns[group])
                self.names_of.append(name)
                if name in self.machines or (name != group and name in self.groups):
                    self.clashes.append((group, name))
                self.machines.setdefault(name, index)

    @property
    def names(self) -> Sequence[str]:
        """The names for spelling hints: groups first, and not every machine of a large topology."""
        return [*islice(self.groups, 64), *RESERVED_NAMES, FOREIGN, *islice(self.machines, 64)]

    def members(self, name: str) -> Machines:
        """The machines of a group, or the one machine, of that name; raises `UnknownNameError`."""
        if name in self.groups:
            indices = self.groups[name]
            return Machines(self.everyone[indices.start : indices.stop])
        if name in self.machines:
            return Machines((self.everyone[self.machines[name]],))
        raise UnknownNameError(name)

    def is_foreign(self, name: str) -> bool:
        """Whether a name stands for the peers that are no machines of the topology."""
        return name == FOREIGN and name not in self.groups and name not in self.machines

    def select(self, names: str | Sequence[str]) -> Selection:
        """The machines that ``names`` stand for. Raises `UnknownNameError`.

        A group and "others" leave out the machine that names them; "all" and its own name include it.
        """
        names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        if names in (["all"], ["others"]):  # the most frequent ones, and the largest
            return Selection(self.everyone, self._everyone if names == ["all"] else frozenset())
        machines: dict[int, None] = {}
        itself: set[int] = set()
        for name in names:
            if self.is_foreign(name):
                continue
            found = self.everyone if name in RESERVED_NAMES else self.members(name)
            # A group of one machine has the same name as the machine: the name stands for the machine.
            if name in self.machines:
                itself.update(found)
            machines.update(dict.fromkeys(found))
        return Selection(Machines(machines), self._everyone if "all" in names else frozenset(itself))


def several(names: Sequence[str]) -> str:
    """Names for a reader: a few in full; of many that differ in a number the first, the last and the count."""
    if len(names) <= _NAMES_SHOWN:
        return ", ".join(names)
    alike = [list(its) for _, its in groupby(names, key=lambda name: _LAST_NUMBER.sub("", name))]
    if len(alike) > _KINDS_SHOWN:
        return f"{', '.join(names[:_NAMES_SHOWN])} and {len(names) - _NAMES_SHOWN} others"
    return ", ".join(f"{its[0]} ... {its[-1]} ({len(its)})" if len(its) > 2 else ", ".join(its) for its in alike)
