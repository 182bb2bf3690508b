"""Shared memory without a server: how the device of 2012 opens its named object (ivshmem.c, pci_ivshmem_init).

The first device creates the object and sets its size, all others take the object as it is. Nothing unlinks it.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from nodes.device.profile import Profile, Quirk
from nodes.device.qemu_1_1.properties import DeviceExitError
from nodes.errors import ModelledFault

OBJECT_MODE = 0o777  # before the umask


class MappingHost(Protocol):
    """The system calls that map a descriptor."""

    def size_bytes(self, descriptor: int) -> int:
        """The size of the file."""

    def map(self, descriptor: int, size_bytes: int) -> memoryview | None:
        """Map that many bytes, readable and writable; returns None when that is not possible."""


class ObjectHost(MappingHost, Protocol):
    """The system calls that open a named object; a negative descriptor is a failure."""

    def create(self, name: str, mode: int) -> int:
        """Create an object that does not exist yet (O_CREAT, O_EXCL)."""

    def open(self, name: str, mode: int) -> int:
        """Open an object; create it if it does not exist (O_CREAT)."""

    def truncate(self, descriptor: int, size_bytes: int) -> bool:
        """Set the size of the object."""


class SharedObject(Struct, frozen=True):
    """An open object: its descriptor, the bytes that BAR2 shows, and the warnings that were printed."""

    descriptor: int
    memory: memoryview
    warnings: tuple[str, ...]


def check_size(size_bytes: int, object_bytes: int) -> None:
    """Check that the object is at least as large as the device's size.

    Raises:
        DeviceExitError: it is smaller (check_shm_size).
    """
    if size_bytes > object_bytes:
        raise DeviceExitError(
            255, f"IVSHMEM ERROR: Requested memory size greater than shared object size ({size_bytes} > {object_bytes})"
        )


def map_checked(host: MappingHost, profile: Profile, descriptor: int, size_bytes: int) -> memoryview:
    """Map the first ``size_bytes``.

    Raises:
        ModelledFault: mapping failed, and the device does not check that.
        DeviceExitError: mapping failed, and the device checks that.
    """
    memory = host.map(descriptor, size_bytes)
    if memory is None:
        if profile.has(Quirk.MAPPING_UNCHECKED):
            raise ModelledFault(Quirk.MAPPING_UNCHECKED, "mapping failed, and BAR2 has no memory")
        raise DeviceExitError(255, "ivshmem: could not map shared memory")
    return memory


def open_object(host: ObjectHost, profile: Profile, name: str | None, size_bytes: int) -> SharedObject:
    """Create or open the object ``name`` and map ``size_bytes`` of it.

    Raises:
        DeviceExitError: it cannot be opened, or is too small.
        ModelledFault: there is no name, or mapping failed unchecked.
    """
    if name is None:
        raise ModelledFault(Quirk.MODE_UNCHECKED, "neither chardev nor shm: opens an object without a name")
    warnings: tuple[str, ...] = ()
    descriptor = host.create(name, OBJECT_MODE)
    if descriptor > 0:  # descriptor 0 counts as a failure
        if not host.truncate(descriptor, size_bytes):
            warnings = ("ivshmem: could not truncate shared file",)
    else:
        descriptor = host.open(name, OBJECT_MODE)
        if descriptor < 0:
            raise DeviceExitError(255, "ivshmem: could not open shared file")
    check_size(size_bytes, host.size_bytes(descriptor))
    return SharedObject(descriptor, map_checked(host, profile, descriptor, size_bytes), warnings)
