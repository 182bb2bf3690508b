"""The properties of the device of 2012, and the order in which its initialisation checks them.

``-device ivshmem,chardev=...,size=...,vectors=...,ioeventfd=...,msi=...,shm=...,role=...`` (ivshmem.c,
ivshmem_properties and pci_ivshmem_init). :data:`STEPS` is that order: of several errors, the first step that
finds one decides the outcome.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from msgspec import Struct

from nodes.device.ivshmem import Ivshmem
from nodes.device.profile import Profile, Quirk
from nodes.device.qemu_1_1.profiles import VARIANTS
from nodes.errors import ModelledFault, UsageError

ULONG_LONG_MAX = (1 << 64) - 1
SHIFTS = {"": 20, "M": 20, "m": 20, "G": 30, "g": 30}
SERVER_PREFIX = "unix:"


class DeviceExitError(UsageError):
    """The real device ends its process: ``status`` is its exit code, ``text`` what it prints."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text or f"exit {status}, without a message")
        self.status = status
        self.text = text


class Properties(Struct, frozen=True):
    """The options of ``-device ivshmem``; ``chardev`` is the file name of the character device."""

    chardev: str | None = None
    size: str | None = None
    vectors: int = 1
    ioeventfd: bool = False
    msi: bool = True
    shm: str | None = None
    role: str | None = None


class Plan(Struct):
    """A device during its initialisation; ``done`` names the steps that are completed."""

    profile: Profile
    properties: Properties
    size_bytes: int = 0
    role: str = "master"
    server: bool = False
    blocked: bool = False
    warnings: tuple[str, ...] = ()
    done: tuple[str, ...] = ()

    def device(self, ring: Callable[[int, int], object]) -> Ivshmem:
        """Make the device that this plan describes."""
        variant = VARIANTS[self.server, self.properties.msi]
        variant = variant.without(*(variant.quirks - self.profile.quirks))
        return Ivshmem(variant, vectors=self.properties.vectors, ring=ring, role=self.role, size_bytes=self.size_bytes)


def parse_size(text: str, *, zero_allowed: bool) -> int:
    """Parse a size: a number of MiB, or of GiB with G; only the first character after the digits counts.

    The number is read and shifted as an unsigned 64-bit one, without an overflow check (ivshmem_get_size).
    Returns bytes.

    Raises:
        DeviceExitError: another suffix, or not a power of two.
    """
    match = re.match(r"\s*([+-]?)(\d*)(.?)", text, re.ASCII | re.DOTALL)
    assert match is not None
    value = min(int(match[2] or 0), ULONG_LONG_MAX)
    if match[1] == "-":
        value = -value & ULONG_LONG_MAX
    # Without digits strtoull() converts nothing, and the first character of the text is taken for the suffix.
    suffix = match[3] if match[2] else text[:1]
    if suffix not in SHIFTS:
        raise DeviceExitError(1, f"qemu: invalid ram size: {text}")
    value = value << SHIFTS[suffix] & ULONG_LONG_MAX
    if value & (value - 1) or (value == 0 and not zero_allowed):
        raise DeviceExitError(1, "ivshmem: size must be power of 2")
    return value


def _size(plan: Plan) -> None:
    text = plan.properties.size
    zero_allowed = plan.profile.has(Quirk.ZERO_SIZE)
    default = plan.profile.memory_default_bytes
    plan.size_bytes = default if text is None else parse_size(text, zero_allowed=zero_allowed)


def _ioeventfd_needs_msi(plan: Plan) -> None:
    if plan.properties.ioeventfd and not plan.properties.msi:
        raise DeviceExitError(1, "ivshmem: ioeventfd/irqfd requires MSI")


def _role(plan: Plan) -> None:
    role = plan.properties.role
    if role not in (None, "peer", "master"):
        raise DeviceExitError(1, "ivshmem: 'role' must be 'peer' or 'master'")
    plan.role = plan.profile.default_role if role is None else role


def _blocker(plan: Plan) -> None:
    plan.blocked = plan.role == "peer"


def _ioeventfds(plan: Plan) -> None:
    if plan.properties.ioeventfd and plan.profile.has(Quirk.IOEVENTFD_INIT_FAULT):
        raise ModelledFault(Quirk.IOEVENTFD_INIT_FAULT, "ioeventfd=on reads a peer table that is not allocated yet")


def _nothing(plan: Plan) -> None:
    """A step that cannot fail and that the device itself does."""


def _mode(plan: Plan) -> None:
    properties = plan.properties
    plan.server = properties.chardev is not None and properties.chardev.startswith(SERVER_PREFIX)
    if plan.server:
        if properties.shm is not None:
            plan.warnings += ("WARNING: do not specify both 'chardev' and 'shm' with ivshmem",)
        limit = plan.profile.msix_limit
        if properties.msi and not 1 <= properties.vectors <= limit:
            raise DeviceExitError(1, "")
    elif properties.shm is None:
        text = "Must specify 'chardev' or 'shm' to ivshmem"
        if not plan.profile.has(Quirk.MODE_UNCHECKED):
            raise DeviceExitError(1, text)
        plan.warnings += (text,)


STEPS: tuple[tuple[str, Callable[[Plan], None]], ...] = (
    ("size", _size),
    ("savevm", _nothing),
    ("ioeventfd needs msi", _ioeventfd_needs_msi),
    ("role", _role),
    ("blocker", _blocker),
    ("configuration space", _nothing),
    ("BAR0", _nothing),
    ("ioeventfds", _ioeventfds),
    ("BAR2 container", _nothing),
    ("mode", _mode),
)


def realize(profile: Profile, properties: Properties) -> Plan:
    """Run the initialisation up to the point where it needs a server or a shared memory object.

    Raises:
        DeviceExitError: the real process ends here.
        ModelledFault: the real process crashes here.
    """
    plan = Plan(profile, properties)
    for name, step in STEPS:
        try:
            step(plan)
        except DeviceExitError as error:
            if plan.warnings:  # these were printed before
                text = "\n".join(filter(None, (*plan.warnings, error.text)))
                raise DeviceExitError(error.status, text) from None
            raise
        plan.done += (name,)
    return plan
