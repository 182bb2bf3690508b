"""Reads the events of a run directory, and the parts of them that a summary repeats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sim.results.store import files
from sim.results.store.manifest import MachineName

Event = dict[str, Any]
Statistics = dict[str, dict[str, int | float]]
"""By incarnation of a machine, then by the name that the program gave."""

LIMIT_BYTES = 1 << 30
REMARKS_SHOWN = 5
_NUMBER = re.compile(r"[0-9]+")


class _StatisticsEvent(msgspec.Struct):
    """The statistics that a machine's program had counted at its end."""

    machine: MachineName
    values: dict[Annotated[str, Meta(max_length=200)], int | float]


def read_events(path: Path) -> tuple[list[Event], int]:
    """The events of the run directory ``path``, and how many lines are none. Raises ``UsageError`` without a file."""
    events, damaged = [], 0
    decoder = msgspec.json.Decoder(Event)
    for line in files.read_bytes(path / files.EVENTS, LIMIT_BYTES).splitlines():
        try:
            events.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            damaged += 1
    return events, damaged


def statistics_of(events: Iterable[Event]) -> Statistics:
    """The statistics of programs, in the order of the reports; damaged ones are left out."""
    found: Statistics = {}
    for event in events:
        if event.get("kind") == "statistics":
            try:
                said = msgspec.convert(event, _StatisticsEvent)
            except msgspec.ValidationError:
                continue
            found[said.machine] = said.values
    return found


def remarks(events: Sequence[Event]) -> Iterator[str]:
    """In words, what of the timeline was not done, and what machines had to say (a malformed message, for instance)."""
    actions = [event for event in events if event.get("kind") == "action"]
    skipped = [event for event in actions if event.get("skipped")]
    if skipped:
        first = skipped[0]
        whom = f" {first['machine']}" if first.get("machine") else ""
        yield (
            f"{len(skipped)} of {len(actions)} actions of the timeline were not done; the first is "
            f"{first.get('do')}{whom} (line {first.get('line')}): {first['skipped']}"
        )
    alike: dict[str, list[str]] = {}
    for event in events:
        if event.get("kind") == "warning":
            said = f"{event.get('machine')}: {event.get('text')}"
            alike.setdefault(_NUMBER.sub("", said), []).append(said)
    for sayings in islice(alike.values(), REMARKS_SHOWN):
        yield sayings[0] + (f" (and {len(sayings) - 1} like it)" if len(sayings) > 1 else "")
    if len(alike) > REMARKS_SHOWN:
        yield f"{len(alike) - REMARKS_SHOWN} more kinds of warnings of machines stand in the events"
