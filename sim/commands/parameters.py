"""Types of parameters: numbers, durations, names, lists of values."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import click

from nodes.errors import UsageError
from nodes.spelling import did_you_mean

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
STREAM = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
"""A file, or - for standard input or output."""
UNITS_NS = {"ms": 1_000_000, "s": 1_000_000_000, "": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000}
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|.', re.DOTALL)


class WholeNumber(click.IntRange):
    """A whole number within limits; a text that is none is answered with what is expected."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            int(value)
        except ValueError:
            self.fail(f"expected a whole number ({self._describe_range()}), got {value!r}", param, ctx)
        return int(super().convert(value, param, ctx))


class Number(click.FloatRange):
    """A number within limits; a text that is none is answered with what is expected."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            float(value)
        except ValueError:
            self.fail(f"expected a number ({self._describe_range()}), got {value!r}", param, ctx)
        return float(super().convert(value, param, ctx))


class NameChoice(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2
    """One of some names; the error for a misspelt one has the nearest.

    ``names`` are listed and completed. A name in ``known`` is accepted as well.
    """

    def __init__(self, names: Iterable[str], known: Collection[str] = ()) -> None:
        super().__init__(list(names))
        self._known = known or self.choices

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name. Raises ``click.BadParameter``."""
        if value in self._known:
            return value
        hint = did_you_mean(value, self.choices)
        raise click.BadParameter(f"expected one of {', '.join(self.choices)}, got {value!r}{hint}", ctx, param)


def duration_ns(_context: click.Context, _option: click.Parameter, given: str | None) -> int | None:
    """An option's callback: 5s, 250ms, 2m, 1h, or seconds alone."""
    if given is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|)", given)
    if match is None:
        raise click.BadParameter(f"expected a duration such as 5s, 250ms or 2m, got {given!r}")
    return round(float(match[1]) * UNITS_NS[match[2]])


def whole(given: str, digits_max: int = 20, hexadecimal_max: int = 16) -> int | None:
    """A number, decimal or 0x..., of so many digits at most; None for another text."""
    if not re.fullmatch(f"[0-9]{{1,{digits_max}}}|0[xX][0-9a-fA-F]{{1,{hexadecimal_max}}}", given):
        return None
    return int(given, 16 if given[:2] in ("0x", "0X") else 10)


def number(_context: click.Context, _option: click.Parameter, given: str | None) -> int | None:
    """A callback for a number, decimal or 0x..., of at most 64 bits."""
    if given is None:
        return None
    if (value := whole(given)) is None:
        raise click.BadParameter(f"expected a number, decimal or 0x..., got {given!r}")
    return value


def c_number(least: int, most: int) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """A callback for a number within limits, as strtoull(3) reads it with base 0: 8, 0x8, or 010, which is octal."""

    def convert(_context: click.Context, _option: click.Parameter, given: str | None) -> int | None:
        if given is None:
            return None
        match = re.fullmatch(r"\s*\+?(?:(0[xX][0-9a-fA-F]{1,16})|(0[0-7]{0,22})|([1-9][0-9]{0,19}))", given)
        if match is None:
            raise click.BadParameter(f"expected a number such as 8, 0x8 or 010 (octal), got {given!r}")
        value = int(match[1], 16) if match[1] else int(match[2], 8) if match[2] else int(match[3])
        if not least <= value <= most:
            raise click.BadParameter(f"{value} is not in the range {least}<=x<={most}")
        return value

    return convert


def split_values(text: str) -> list[str]:
    """``1,2,4`` to its parts; commas within quotes, brackets and braces separate nothing.

    Raises ``UsageError`` for an empty part, and for what is never closed.
    """
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += (token in "[{") - (token in "]}")
        if depth < 0 or token in "\"'":
            break
        if token == "," and not depth:
            parts.append("")
        else:
            parts[-1] += token
    else:
        parts = [part.strip() for part in parts]
        if depth == 0 and all(parts):
            return parts
    raise UsageError(f'expected values with commas between them, each whole (1,2 or [1,2],[3] or "a,b"), got {text!r}')
