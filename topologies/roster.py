"""All machines of a topology by name, before any of them exists, and who is meant by ``to = "storm"``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from topologies.model import Machines, machine_name

__all__ = ["RESERVED_NAMES", "Roster", "Selection", "UnknownNameError"]

RESERVED_NAMES = ("all", "others")


class UnknownNameError(Exception):
    """No group and no machine has this name; ``name`` it is."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Selection:
    """The machines that some names stand for: indices in the order named, none twice.

    A machine that did not name itself (``itself``) is left out of what it selects.
    """

    machines: Machines
    itself: frozenset[int]

    def seen_by(self, index: int) -> Machines:
        """What remains for the machine ``index``; shared by all machines that are not selected."""
        if index in self.itself or index not in self.machines:
            return self.machines
        place = self.machines.index(index)
        return Machines(self.machines[:place] + self.machines[place + 1 :])


class Roster:
    """Names to indices. ``groups`` are (name, count) in the file's order; ``clashes`` names used twice."""

    def __init__(self, groups: Iterable[tuple[str, int]]) -> None:
        self.groups: dict[str, range] = {}
        self.machines: dict[str, int] = {}
        self.clashes: list[tuple[str, str]] = []
        total = 0
        for group, count in groups:
            self.groups[group] = range(total, total + count)
            total += count
        # Each index is one object, whoever names it: a million pairs then cost 8 bytes each.
        self._indices = Machines(range(total))
        self._everyone = frozenset(self._indices)
        for group, members in self.groups.items():
            for place, index in enumerate(members):
                name = machine_name(group, place, len(members))
                if name in self.machines or (name != group and name in self.groups):
                    self.clashes.append((group, name))
                self.machines.setdefault(name, index)

    @property
    def names(self) -> Sequence[str]:
        """What may be named, for spelling hints: groups first, and not every machine of a large topology."""
        return [*islice(self.groups, 64), *RESERVED_NAMES, *islice(self.machines, 64)]

    def select(self, names: str | Sequence[str]) -> Selection:
        """Who is meant; raises `UnknownNameError`.

        A group and "others" leave the machine that asks out; "all" and its own name keep it.
        """
        names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        if names in (["all"], ["others"]):  # by far the most frequent, and the largest
            return Selection(self._indices, self._everyone if names == ["all"] else frozenset())
        machines: dict[int, None] = {}
        itself: set[int] = set()
        for name in names:
            if name in RESERVED_NAMES:
                found: tuple[int, ...] = self._indices
            elif name in self.groups:
                members = self.groups[name]
                found = self._indices[members.start : members.stop]
            elif name in self.machines:
                found = (self._indices[self.machines[name]],)
            else:
                raise UnknownNameError(name)
            # A group of one bears its machine's name: whoever writes it there means that machine.
            if name in self.machines:
                itself.update(found)
            machines.update(dict.fromkeys(found))
        return Selection(Machines(machines), self._everyone if "all" in names else frozenset(itself))
