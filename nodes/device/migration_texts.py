"""What a QEMU prints when it refuses a migration stream, line by line, by version.

Observed on QEMU 7.2.22, 10.0.13 and 11.1.3 (tests/golden/migration.json; tests/qemu/test_migration.py). Up to 10.0 each
layer adds a line; 11.1 has one line with the reason at its end. Devices are named without their place on the bus.
"""

from __future__ import annotations

from msgspec import Struct

from nodes.errors import UsageError
from nodes.qemu_versions import NEWEST, QemuVersion

ONE_LINE_SINCE = NEWEST
INVALID = "load of migration failed: Invalid argument"
CUT = "load of migration failed: Input/output error"


class LoadLog(Struct, frozen=True):
    """The lines of a refusal: of the versions up to 10.0, and of those since 11.1."""

    before: tuple[str, ...] = ()
    since: tuple[str, ...] = ()

    def lines(self, version: QemuVersion) -> tuple[str, ...]:
        """What QEMU of ``version`` prints."""
        return self.since if version >= ONE_LINE_SINCE else self.before


NOTHING = LoadLog()


class MigrationError(UsageError):
    """The real machine refuses this migration, with this message and EINVAL.

    ``log`` has the lines that a destination prints; a source tells its refusal to QMP only.
    """

    def __init__(self, text: str, log: LoadLog = NOTHING) -> None:
        super().__init__(text)
        self.log = log


def _while_loading(section: str) -> str:
    return f"error while loading state for instance 0x0 of device '{section}'"


def _layers(section: str, member: str) -> list[str]:
    """The lines of the structures around a member, from the innermost outwards."""
    if ":" not in member:
        return [f"Failed to load {section}:{member}"]
    return [f"Failed to load {member}", f"Failed to load {section}:parent_obj"]


def bad_element(section: str, member: str, reason: str, kind: str) -> LoadLog:
    """A field that its own code refuses, which prints the reason itself; ``kind`` is its type in QEMU's words."""
    at = member.partition(":")[2]
    return LoadLog(
        (reason, *_layers(section, member), _while_loading(section), INVALID),
        (reason, f"{INVALID}: {_while_loading(section)}: Failed to load element of type {kind} for {at}"),
    )


def bad_version(section: str, member: str, reason: str) -> LoadLog:
    """A version field with a value that is not known."""
    return LoadLog(
        (reason, *_layers(section, member), _while_loading(section), INVALID),
        (f"{INVALID}: {_while_loading(section)}: {reason}",),
    )


def cut_short(section: str, member: str) -> LoadLog:
    """A stream that ends in a field."""
    structure = member.partition(":")[0] if ":" in member else section
    return LoadLog(
        (*_layers(section, member), _while_loading(section), CUT),
        (f"{INVALID}: {_while_loading(section)}: Failed to load {structure} state: stream error: -5",),
    )


def bad_header(reason: str) -> LoadLog:
    """A section of another name, instance or version; ``reason`` begins as up to 10.0."""
    return LoadLog((reason, INVALID), (f"{INVALID}: {reason.removeprefix('savevm: ').replace('savevm ', '')}",))


def no_footer(section: str) -> LoadLog:
    """Something else where the section should end. QEMU adds the section's number, which no device knows."""
    reason = f"Missing section footer for {section}"
    return LoadLog((reason, INVALID), (reason, f"{INVALID}: Section footer error"))


def wrong_role(section: str, reason: str) -> LoadLog:
    """A device that is no master."""
    hook = f"pre load hook failed for: '{section}', version_id: 0, minimum version_id: 0, ret: -22"
    return LoadLog(
        (reason, _while_loading(section), INVALID), (reason, f"{INVALID}: {_while_loading(section)}: {hook}")
    )


def wrong_memory(reason: str) -> LoadLog:
    """A RAM block that the destination lacks, or has in another size."""
    state = "Failed to load vmstate version_id: 4, ret: -22"
    return LoadLog((reason, _while_loading("ram"), INVALID), (reason, f"{INVALID}: {_while_loading('ram')}: {state}"))
