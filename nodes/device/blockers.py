"""Migration blockers: the reasons why a machine cannot be migrated, in QEMU's order and words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from nodes.device.migration_texts import MigrationError
from nodes.device.profile import Profile


class Migratable(Protocol):
    """The part of a device that a blocker depends on."""

    profile: Profile

    @property
    def master(self) -> bool: ...


class Blocker(Struct, frozen=True, eq=False):
    """Why a machine cannot be migrated: a feature of a device, or a reason that the user gave.

    Blockers with the same text are different blockers.
    """

    reason: str
    device: str = ""

    @property
    def text(self) -> str:
        """The message; that of a device is QEMU's (QERR_DEVICE_FEATURE_BLOCKS_MIGRATION)."""
        if not self.device:
            return self.reason
        return f"Migration is disabled when using feature '{self.reason}' in device '{self.device}'"


def blocker(device: Migratable) -> Blocker | None:
    """The blocker that this device registers; None for a master."""
    return None if device.master else Blocker("peer mode", "ivshmem")


class Blockers:
    """The blockers of one machine; a refused migration names the newest (QEMU, migrate_add_blocker).

    Args:
        only_migratable: every blocker is refused (QEMU's option --only-migratable).
        locked: no device and no blocker is added or removed during a migration (`Profile.migration_locks_devices`).
    """

    def __init__(self, *, only_migratable: bool = False, locked: bool = True) -> None:
        self._only_migratable, self._locked = only_migratable, locked
        self._blockers: list[Blocker] = []
        self._devices: list[tuple[Migratable, Blocker | None]] = []
        self.migrating = False

    def __iter__(self) -> Iterator[Blocker]:
        """Iterate over the blockers, the newest first."""
        return reversed(self._blockers)

    def add(self, blocker: Blocker) -> None:
        """Add a blocker.

        Raises:
            MigrationError: blockers are refused, or a migration runs.
        """
        refused = "disallowing migration blocker ({}) for: {}"
        if self._only_migratable:
            raise MigrationError(refused.format("--only-migratable", blocker.text))
        if self.migrating and self._locked:
            raise MigrationError(refused.format("migration/snapshot in progress", blocker.text))
        self._blockers.append(blocker)

    def remove(self, blocker: Blocker) -> None:
        """Remove this blocker.

        Raises:
            ValueError: it was not added.
        """
        self._blockers.remove(blocker)

    def plug(self, device: Migratable) -> None:
        """Add a device, and its blocker if it has one.

        Raises:
            MigrationError: a migration runs, or the device or its blocker is refused.
        """
        if self.migrating and self._locked:
            raise MigrationError("device_add not allowed while migrating")
        if self._only_migratable and not device.profile.stream:
            name = device.profile.name
            raise MigrationError(f"Device {name} is not migratable, but --only-migratable was specified")
        found = blocker(device)
        if found is not None:
            self.add(found)
        self._devices.append((device, found))

    def unplug(self, device: Migratable) -> None:
        """Remove a device, and its blocker if it has one.

        Raises:
            MigrationError: a migration runs.
            ValueError: the device was not added.
        """
        if self.migrating and self._locked:
            raise MigrationError("device_del not allowed while migrating")
        for at, (plugged, found) in enumerate(self._devices):
            if plugged is device:
                del self._devices[at]
                return self._blockers.remove(found) if found else None
        raise ValueError("this device is not plugged")

    def check(self) -> None:
        """Check that a migration can begin (QEMU, migrate_prepare).

        Raises:
            MigrationError: a migration runs, a device has no state to save, or there is a blocker (the newest one's
                text).
        """
        if self.migrating:
            raise MigrationError("There's a migration process in progress")
        for device, _ in self._devices:
            if not device.profile.stream:
                raise MigrationError(f"State blocked by non-migratable device '{device.profile.name}'")
        for found in self:
            raise MigrationError(found.text)

    def begin(self) -> None:
        """Begin a migration; raises as `check` does."""
        self.check()
        self.migrating = True

    def end(self) -> None:
        """End the migration, completed or not."""
        self.migrating = False
