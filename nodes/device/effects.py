"""The effects of a device on its machine: a message, the level of its interrupt line, a line on stderr."""

from __future__ import annotations

from msgspec import Struct

from nodes.device.msix import MsixMessage


class IntxLevel(Struct, frozen=True):
    """The legacy interrupt line went up or down."""

    asserted: bool


class IntxPulse(Struct, frozen=True):
    """The legacy interrupt line of ivshmem v2 was pulsed: it has no status that holds it."""


class DeviceWarning(Struct, frozen=True):
    """A line that the real device prints on stderr."""

    text: str


Effect = MsixMessage | IntxLevel | IntxPulse | DeviceWarning
