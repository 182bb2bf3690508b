"""Durations and numbers on the command line."""

from __future__ import annotations

import re

import click

__all__ = ["duration_ns", "number"]

UNITS_NS = {"ms": 1_000_000, "s": 1_000_000_000, "": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000}


def duration_ns(_context: click.Context, _option: click.Parameter, given: str | None) -> int | None:
    """An option's callback: 5s, 250ms, 2m, 1h, or seconds alone."""
    if given is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|)", given)
    if match is None:
        raise click.BadParameter(f"expected a duration such as 5s, 250ms or 2m, got {given!r}")
    return round(float(match[1]) * UNITS_NS[match[2]])


def number(_context: click.Context, _option: click.Parameter, given: str | None) -> int | None:
    """A callback for a number, decimal or 0x..., of at most 64 bits."""
    if given is None:
        return None
    if not re.fullmatch(r"[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}", given):
        raise click.BadParameter(f"expected a number, decimal or 0x..., got {given!r}")
    return int(given, 16 if given[:2] in ("0x", "0X") else 10)
