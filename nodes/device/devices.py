"""The choice of a device for a profile: a second family is a class of its own."""

from __future__ import annotations

from collections.abc import Callable

from nodes.device.flat import IvshmemFlat
from nodes.device.ivshmem import Ivshmem
from nodes.device.profile import Profile
from nodes.device.v2.device import IvshmemV2
from nodes.device.v2.profiles import ProfileV2


def make_device(
    profile: Profile,
    *,
    vectors: int | None = None,
    ring: Callable[[int, int], object],
    role: str | None = None,
    size_bytes: int | None = None,
    on_decode: Callable[[], object] = lambda: None,
) -> Ivshmem:
    """Make the device of this profile; the arguments are those of `Ivshmem`.

    Raises:
        UsageError: as `Ivshmem`.
    """
    kind: type[Ivshmem] = Ivshmem if profile.pci else IvshmemFlat
    if isinstance(profile, ProfileV2):
        kind = IvshmemV2
    return kind(profile, vectors=vectors, ring=ring, role=role, size_bytes=size_bytes, on_decode=on_decode)
