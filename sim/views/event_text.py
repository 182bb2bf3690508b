"""The events of a run as sentences: live views, the time line of a report and the instants of a trace say the same.

Events come from a file, whose content is not trusted: an event of another shape is shown field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.views.units import short_ns as time

Event = Mapping[str, Any]

LENGTH_MAX = 200
UNTOLD = frozenset({"time_ns", "utc", "kind", "traceback"})
# The state of a machine after an event, by the kind of the event.
BECAME = {
    "machine_joined": "joined",
    "machine_left": "left",
    "machine_died": "died",
    "machine_killed": "killed",
    "migrated": "moved",
    "migration_failed": "did not move",
    "left_behind": "left doorbells behind",
    "warning": "warns",
    "failure": "failed",
    "console": "printed a line",
}
# The fields of an action that are not listed as details.
TOLD_OF_ACTIONS = frozenset({"do", "machine", "line", "domain", "to_domain", "skipped", "refused"})


def brief(event: Event) -> str:
    """An event in two or three words: ``stall tx-0``."""
    match event:
        case {"kind": "action", "do": str(do)}:
            return _deed(event, do)[:LENGTH_MAX]
        case {"kind": str(kind), "machine": str(machine)} if kind in BECAME:
            return f"{machine} {BECAME[kind]}"[:LENGTH_MAX]
        case {"kind": "peer_left", "peer": int(peer)}:
            return f"peer {peer} left"
    return str(event.get("kind")).replace("_", " ")[:LENGTH_MAX]


def sentence(event: Event) -> str:
    """All that an event says, on one line: ``stall tx-0 (line 14)``."""
    match event:
        case {"kind": "action", "do": str(do)}:
            said = _action(event, do)
        case {"machine": str(machine)}:
            said = _of_machine(event, machine)
        case _:
            said = _of_run(event)
    return " ".join((said or _as_it_stands(event)).split())[:LENGTH_MAX]


def _deed(event: Event, do: str) -> str:
    server, whom = do.removesuffix("_server"), event.get("machine")
    if server != do:
        return f"{server} the server" + (f" of domain {event['domain']}" if event.get("domain") else "")
    return f"{do} {whom}" if whom else do


def _action(event: Event, do: str) -> str:
    details = []
    for name, value in event.items():
        if name in UNTOLD | TOLD_OF_ACTIONS:
            continue
        match name, value:
            case "life", _ if value == event.get("machine"):
                continue
            case "delay_us", int() | float():
                details.append(f"by {time(value * 1e3)}")
            case "vectors", list() | tuple():
                details.append(f"vectors {_listed(value)}" if value else "all vectors")
            case "hand_over", True:
                details.append("handing over its connection")
            case _, None | "" | False:
                continue
            case "waits_until", _:
                details.append(f"when {value}")
            case _:
                details.append(f"{name.replace('_', ' ')} {_listed(value)}")
    to = f" to domain {event['to_domain']}" if event.get("to_domain") and not event.get("hand_over") else ""
    said = ", ".join([_deed(event, do) + to, *details])
    said += f" (line {event['line']})" if event.get("line") else ""
    for what, word in (("skipped", "not done"), ("refused", "refused")):
        said += f": {word}, {event[what]}" if event.get(what) else ""
    return said


def _of_machine(event: Event, machine: str) -> str:
    """The event of a machine in words; empty for other events."""
    said = ""
    match event:
        case {"kind": "migrated"}:
            said = _moved(event, machine)
        case {"kind": "migration_failed"}:
            stood = event.get("downtime_ms")
            paused = f" after a pause of {time(stood * 1e6)}" if isinstance(stood, int | float) and stood else ""
            said = f"migration of {machine} failed{paused}: {event.get('reason')}"
        case {"kind": "left_behind", "doorbells": int(doorbells)}:
            said = f"{doorbells:,} doorbells left behind by {machine} at ID {_place(event, 'domain', 'peer')}"
        case {"kind": "machine_joined", "peers": list(peers) | tuple(peers)}:
            said = f"{machine} joined with ID {_listed(peers)}"
        case {"kind": "machine_left"}:
            how, after = event.get("how"), f", after {event['action']}" if event.get("action") else ""
            said = f"{machine} left{after}" + (f" ({how})" if how not in (None, "", "left") else "")
        case {"kind": "machine_died"}:
            said = f"{machine} died: {event.get('how')}" + (f", {event['failure']}" if event.get("failure") else "")
        case {"kind": "machine_killed"}:
            said = f"{machine} was killed: {event.get('reason')}"
        case {"kind": "warning"}:
            said = f"{machine} warns: {event.get('text')}"
        case {"kind": "failure"}:
            said = f"{event.get('at_fault')} of {machine} failed: {event.get('summary')}"
        case {"kind": "console"}:
            said = f"{machine} printed a line with {event.get('pattern')!r}"
    return said


def _moved(event: Event, machine: str) -> str:
    before, after = _place(event, "from_domain", "from_peer"), _place(event, "to_domain", "to_peer")
    if before == after:
        said = f"{machine} moved and kept its ID {event.get('to_peer')}"
    elif event.get("from_domain") == event.get("to_domain"):
        said = f"{machine} moved from ID {event.get('from_peer')} to {event.get('to_peer')}"
    else:
        said = f"{machine} moved to domain {event.get('to_domain')}"
    stood, bits = event.get("downtime_ms"), event.get("pending_vectors")
    said += f", {time(stood * 1e6)}" if isinstance(stood, int | float) else ""
    return said + (f", {bits} vectors pending" if bits else "")


def _place(event: Event, domain: str, peer: str) -> str:
    return f"{event.get(peer)} of domain {event.get(domain)}"


def _of_run(event: Event) -> str:
    match event:
        case {"kind": "peer_left", "peer": peer}:
            reason = event.get("reason")
            return f"peer {peer} left" + (f": {reason}" if reason not in (None, "", "left") else "")
        case {"kind": "foreign_peer_joined"}:
            who = f"process {event.get('pid')} of user {event.get('uid')}"
            known_as = f" as peer {event['peer']}" if "peer" in event else ""
            return f"{who} joined domain {event.get('domain')}{known_as}"
        case {"kind": "stopped_above", "reached_ns": int(reached), "limit_ns": int(limit)}:
            edge = f"{event.get('source')} -> {event.get('target')}:{event.get('vector')}"
            return f"the run is ended: {event.get('metric')} is {time(reached)}, above {time(limit)}: {edge}"
        case {"kind": "aborted"}:
            return f"the run is ended: expected {event.get('expected')}, got {event.get('got')}"
    return ""


def _as_it_stands(event: Event) -> str:
    rest = {name: value for name, value in event.items() if name not in UNTOLD}
    words = [f"{name} {_listed(value)}" for name, value in rest.items() if value not in (None, "", [], {})]
    kind = str(event.get("kind")).replace("_", " ")
    return f"{kind}: {', '.join(words)}" if words else kind


def _listed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
