"""The problems of a topology: one `Problem` for each fault, all of a file in one `TopologyError`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

from nodes.errors import UsageError

MAX_PROBLEMS = 100
"""The number of problems of a file that are printed; the rest is counted."""

_SHOWN_CHARACTERS = 60
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Problem(Struct, frozen=True):
    """One fault of one file.

    ``line`` counts from 1; it is 0 where there is no line (a missing file, an override). ``key`` is the full dotted
    key, "" for a fault of the file as a whole.
    """

    file: str
    line: int
    key: str
    expected: str
    got: str
    hint: str = ""

    def __str__(self) -> str:
        file = printable(self.file)
        where = f"{file}:{self.line}" if self.line else file
        lines = [
            f"{where}: {self.key}" if self.key else where,
            f"    expected: {self.expected}",
            f"    got:      {self.got}",
        ]
        if self.hint:
            lines.append(f"    hint:     {self.hint}")
        return "\n".join(lines)


class TopologyError(UsageError):
    """A topology that cannot be run; ``problems`` has all its problems, sorted by line."""

    problems: tuple[Problem, ...]

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.file, problem.line, problem.key)))
        super().__init__(self.problems)

    def __str__(self) -> str:
        blocks = [str(problem) for problem in self.problems[:MAX_PROBLEMS]]
        if len(self.problems) > MAX_PROBLEMS:
            blocks.append(f"... and {len(self.problems) - MAX_PROBLEMS} more problems")
        return "\n".join(blocks)


def show(value: object) -> str:
    """``value`` in the spelling of the file, on one short line of printable characters."""
    match value:
        case str():
            import json

            shown = printable(json.dumps(value[: _SHOWN_CHARACTERS + 1], ensure_ascii=False))
        case bool():
            shown = "true" if value else "false"
        case int() if value.bit_length() > 128:
            # Python refuses to convert an integer of more than 4300 digits.
            shown = f"an integer of {value.bit_length()} bits"
        case dict():
            shown = "a table" if value else "an empty table"
        case list():
            kind = "table" if value and all(isinstance(item, dict) for item in value) else "value"
            shown = f"an array of {len(value)} {kind}{'' if len(value) == 1 else 's'}"
            if len(value) <= 8 and all(isinstance(item, str | int | float) for item in value):
                shown = "[" + ", ".join(show(item) for item in value) + "]"
        case _:
            shown = printable(str(value))
    return shown if len(shown) <= _SHOWN_CHARACTERS + 2 else shown[:_SHOWN_CHARACTERS] + "..."


def show_key(path: Sequence[str | int]) -> str:
    """A path as a dotted key, with quotes where needed: ``machines.storm.parameters.to[2]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        if not _BARE_KEY.fullmatch(part):
            part = show(part)
        text += f".{part}" if text else part
    return text


def printable(text: str) -> str:
    """``text`` with every character that could control a terminal as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
