"""The explanation of a recorded connection: its meaning, entry by entry, and the rules that it violates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nodes.qemu_versions import NEWEST, QemuVersion
from nodes.wire.capture import Entry
from nodes.wire.protocol import LEGACY, Dialect
from nodes.wire.rules import RULES, RULES_V2, Rule


@dataclass(frozen=True)
class Problem:
    """A rule that an entry violates."""

    name: str
    line: int
    got: str

    @property
    def rule(self) -> Rule:
        return (RULES_V2 if self.name in RULES_V2 else RULES)[self.name]

    def is_seeds(self, dialect: Dialect) -> bool:
        """Whether `outcome` describes the device of 2012: it speaks that dialect, and is known to differ."""
        return dialect is LEGACY and bool(self.rule.seed)

    def outcome(self, dialect: Dialect, version: QemuVersion = NEWEST) -> str:
        """The reaction of a device that speaks ``dialect``, as QEMU of ``version`` has it."""
        return self.rule.seed if self.is_seeds(dialect) else self.rule.outcome(version)


@dataclass(frozen=True)
class ExplainedEntry:
    entry: Entry
    meaning: str
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """One connection.

    Attributes:
        connection: its number in the session.
        dialect: what the server speaks; None if that is unknown.
        named: the same in words.
        judged_by: the dialect of the device that judges.
        peer: the ID of the client; None if it never came.
        memory_bytes: the size of the shared memory; None if it never came.
        entries: each entry with its meaning and the rules that it violates.
        notes: what is worth knowing and no violation.
    """

    connection: int
    dialect: Dialect | None
    named: str
    judged_by: Dialect
    peer: int | None
    memory_bytes: int | None
    entries: tuple[ExplainedEntry, ...]
    notes: tuple[str, ...]

    @property
    def problems(self) -> list[Problem]:
        return [problem for explained in self.entries for problem in explained.problems]


def problems_of(names: Iterable[str], line: int, got: str) -> tuple[Problem, ...]:
    """The rules that an entry violates, up to the one that ends the device."""
    problems: list[Problem] = []
    for name in names:
        problems.append(Problem(name, line, got))
        if problems[-1].rule.ends:
            break
    return tuple(problems)
