"""The shared memory behind BAR2: whoever owns it, and whoever maps it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import stat
import tempfile
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from nodes.errors import HostError, RemoteProtocolError, UsageError

__all__ = ["Region", "map_region"]

SHM_DIRECTORY = "/dev/shm"
OURS = stat.S_ISVTX
"""Marks a segment whose owner holds a lock on it for as long as he lives; it means nothing on a file, inode(7)."""


class Region:
    """Owns the memory of one server. ``descriptor`` is what clients are sent, ``name`` where it can be opened.

    ``shared_memory``: a POSIX segment that other programs open by name. ``memfd``: nameless, and sealed against
    shrinking, so that no peer can make the others die of SIGBUS; for peers that are not trusted.
    """

    def __init__(self, descriptor: int, size_bytes: int, segment: SharedMemory | None, lock: int = -1) -> None:
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self._segment = segment
        self._lock = lock

    @property
    def name(self) -> str | None:
        return self._segment.name if self._segment else None

    @classmethod
    def create(cls, size_bytes: int, *, kind: str = "shared_memory", name: str | None = None) -> Region:
        """Make the memory and reserve its blocks.

        Raises ``HostError`` when there is no room, ``UsageError`` when the name is taken.
        """
        if kind == "memfd":
            return cls._create_memfd(size_bytes)
        try:
            segment = SharedMemory(name or f"ivsim-{os.getpid()}-{secrets.token_hex(4)}", create=True, size=size_bytes)
        except FileExistsError as error:
            raise UsageError(
                f"shared memory {name!r} exists already: another server uses it, or left it behind "
                f"(then remove {SHM_DIRECTORY}/{name})"
            ) from error
        except OSError as error:
            raise HostError(f"shared memory of {size_bytes} bytes cannot be made: {error.strerror}") from error
        descriptor = os.open(f"{SHM_DIRECTORY}/{segment.name}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        region = cls(descriptor, size_bytes, segment)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            region.close()
            raise HostError(
                f"{SHM_DIRECTORY} has no room for {size_bytes} bytes of shared memory: {error.strerror}"
            ) from error
        return region

    @classmethod
    def create_owned(cls, size_bytes: int, name: str) -> Region:
        """As ``create``, under a name that can be recovered when this process dies without cleaning up.

        Raises ``UsageError`` when there is such a segment and its owner is not provably dead.
        """
        _recover(name)
        region = cls.create(size_bytes, name=name)
        # Not the descriptor that clients are sent: a lock belongs to the description, and they would hold it too.
        region._lock = os.open(f"{SHM_DIRECTORY}/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        fcntl.flock(region._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(region._lock, 0o600 | OURS)
        return region

    @classmethod
    def create_in(cls, directory: Path, size_bytes: int) -> Region:
        """A nameless file in a directory, a mounted hugetlbfs for one, with its blocks reserved.

        Raises ``UsageError`` when no file can be made there, ``HostError`` when there is no room.
        """
        try:
            descriptor, path = tempfile.mkstemp(prefix="ivshmem.", dir=directory)
        except OSError as error:
            raise UsageError(f"no file can be made in {directory}: {error.strerror}") from error
        try:
            os.unlink(path)
            os.ftruncate(descriptor, size_bytes)
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EINVAL:  # hugetlbfs
                page_bytes = os.statvfs(directory).f_bsize
                raise UsageError(f"{directory}: {size_bytes} bytes are not whole pages of {page_bytes}") from error
            raise HostError(f"{directory} has no room for {size_bytes} bytes: {error.strerror}") from error
        return cls(descriptor, size_bytes, None)

    @classmethod
    def open(cls, name: str, size_bytes: int) -> Region:
        """Memory that is there already and stays there when this is closed.

        Raises ``UsageError`` when there is none of that name and size, or it is not to be written.
        """
        path = f"{SHM_DIRECTORY}/{name}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise UsageError(f"{path} cannot be opened: {error.strerror}") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size_bytes:
            os.close(descriptor)
            raise UsageError(f"{path} has {found.st_size} bytes, expected {size_bytes}: say so with -l")
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            os.close(descriptor)
            raise HostError(f"{SHM_DIRECTORY} has no room for {size_bytes} bytes: {error.strerror}") from error
        return cls(descriptor, size_bytes, None)

    @classmethod
    def _create_memfd(cls, size_bytes: int) -> Region:
        # A memfd has no file system with a size to refuse this: the kernel would end somebody for it.
        host_bytes = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
        if size_bytes > host_bytes:
            raise HostError(f"no room for {size_bytes} bytes of shared memory: this host has {host_bytes}")
        descriptor = os.memfd_create("ivshmem", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            os.close(descriptor)
            raise HostError(f"no room for {size_bytes} bytes of shared memory: {error.strerror}") from error
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return cls(descriptor, size_bytes, None)

    def close(self) -> None:
        """Close and, for a named segment, remove it; mappings that others hold live on."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if self._segment is not None:
            segment, self._segment = self._segment, None
            segment.close()
            with contextlib.suppress(FileNotFoundError):
                segment.unlink()
        if self._lock >= 0:  # last: until here nobody takes it for left behind
            os.close(self._lock)
            self._lock = -1


def _recover(name: str) -> None:
    """Remove a segment that ``create_owned`` made and whose owner is dead: its lock is free.

    Raises ``UsageError`` when there is one whose owner lives, or that is not known to be such.
    """
    path = f"{SHM_DIRECTORY}/{name}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path} exists already, and cannot be looked at: {error.strerror}") from error
    try:
        if not os.fstat(descriptor).st_mode & OURS:
            raise UsageError(
                f"shared memory {name!r} exists already, and who made it is not known: "
                f"take another name, remove {path}, or keep what is in it with --reuse-memory"
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"shared memory {name!r} exists already: another server uses it") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), os.fstat(descriptor)):  # two may be at this together
                os.unlink(path)
    finally:
        os.close(descriptor)


def map_region(descriptor: int) -> mmap.mmap:
    """Map all of the memory that a server sent; the descriptor stays the caller's.

    Raises ``RemoteProtocolError`` for what no device could put behind BAR2: the size of a PCI region is a power
    of two, and whole pages (PCI 3.0, 6.2.5.1; a real QEMU exits or aborts).
    """
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes < mmap.PAGESIZE:
        raise RemoteProtocolError(
            f"memory size {size_bytes:#x} must be equal to or larger than page size {mmap.PAGESIZE:#x}"
        )
    if size_bytes & (size_bytes - 1):
        raise RemoteProtocolError(f"memory size {size_bytes:#x} is not a power of two")
    try:
        return mmap.mmap(descriptor, size_bytes)
    except (OSError, ValueError) as error:  # ValueError: it has shrunk meanwhile
        raise RemoteProtocolError(f"the server's shared memory cannot be mapped: {error}") from error
