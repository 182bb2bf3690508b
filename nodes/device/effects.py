"""The effects of a device on its machine: a message, the level of its interrupt line, a line on stderr."""

from __future__ import annotations

from dataclasses import dataclass

from nodes.device.msix import MsixMessage

__all__ = ["DeviceWarning", "Effect", "IntxLevel", "IntxPulse", "MsixMessage"]


@dataclass(frozen=True, slots=True)
class IntxLevel:
    """The legacy interrupt line went up or down."""

    asserted: bool


@dataclass(frozen=True, slots=True)
class IntxPulse:
    """The legacy interrupt line of ivshmem v2 was pulsed: it has no status that holds it."""


@dataclass(frozen=True, slots=True)
class DeviceWarning:
    """A line that the real device prints on stderr."""

    text: str


Effect = MsixMessage | IntxLevel | IntxPulse | DeviceWarning
