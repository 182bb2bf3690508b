"""The shared memory behind BAR2: making, naming, recovering and mapping it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import secrets
import stat
import tempfile
from pathlib import Path

from nodes.errors import HostError, RemoteProtocolError, UsageError
from sim.kernel import segments
from sim.kernel.segments import OPENING, PRIVATE, SHM_DIRECTORY
from sim.kernel.shortage import why_no_room

MREMAP_MAYMOVE_FIXED = 1 | 2
MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mremap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 2, ctypes.c_int, ctypes.c_void_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Region:
    """Owns the memory of one server. ``descriptor`` is sent to clients, ``name`` is where others can open it.

    ``shared_memory``: a POSIX segment with a name in /dev/shm. ``memfd``: no name, and sealed against shrinking, so
    that no peer can end the others with SIGBUS; for peers that are not trusted.

    A named segment has two locks. The owner holds one (flock) on a file description of its own: when that lock is
    free, the owner has ended. The description that clients are sent holds the other (F_OFD_SETLK); it lasts while
    any process has that descriptor or a mapping of it. No process has to clean up for either, so a segment whose
    server was killed is recognised, and so is whether clients still use it. Python's resource tracker does not know
    the segment: the tracker would remove the name when the server is killed.
    """

    def __init__(self, descriptor: int, size_bytes: int, name: str | None = None, lock: int = -1) -> None:
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self.name = name
        self.adopted = False
        """Whether clients of a server that was killed share this memory, with its content."""
        self._lock = lock

    @classmethod
    def create(
        cls,
        size_bytes: int,
        *,
        kind: str = "shared_memory",
        name: str | None = None,
        mode: int = PRIVATE,
        group: int | None = None,
        adopt: bool = False,
    ) -> Region:
        """Make the memory and reserve its blocks. Without ``name``, a named segment gets a name with this process's ID.

        A segment of that name that a killed owner left behind is replaced when no process uses it. When clients still
        use it, ``adopt`` shares it with them, with its content.

        Raises:
            HostError: the host has no room for it.
            UsageError: the name is taken, or the rights cannot be given.
        """
        if kind == "memfd":
            return cls._create_memfd(size_bytes)
        name = name or f"ivsim-{os.getpid()}-{secrets.token_hex(4)}"
        lock = segments.take_over(name, size_bytes, adopt=adopt)
        adopted = lock >= 0
        if adopted:
            segments.give_or_close(lock, mode, group)
        while lock < 0:
            lock = segments.make_segment(name, size_bytes, mode, group)
        try:
            # The lock belongs to a description, not to the file: clients must not have the owner's.
            descriptor = os.open(f"{SHM_DIRECTORY}/{name}", OPENING)
        except BaseException:
            os.close(lock)
            raise
        segments.mark_used(descriptor)
        region = cls(descriptor, size_bytes, name, lock)
        region.adopted = adopted
        return region

    @classmethod
    def create_in(cls, directory: Path, size_bytes: int) -> Region:
        """Make a nameless file in a directory, a mounted hugetlbfs for example, with its blocks reserved.

        Raises:
            HostError: there is no room.
            UsageError: no file can be made there.
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
            raise HostError(why_no_room(error, str(directory), size_bytes)) from error
        return cls(descriptor, size_bytes)

    @classmethod
    def open(cls, name: str, size_bytes: int) -> Region:
        """Open memory that exists, and that stays when this is closed.

        Raises:
            UsageError: there is none of that name and size, or it cannot be written.
        """
        path = f"{SHM_DIRECTORY}/{name}"
        try:
            descriptor = os.open(path, OPENING)
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
            raise HostError(why_no_room(error, SHM_DIRECTORY, size_bytes)) from error
        segments.mark_used(descriptor)
        return cls(descriptor, size_bytes)

    @classmethod
    def _create_memfd(cls, size_bytes: int) -> Region:
        # A memfd has no file system with a size to refuse this: the kernel would end some process for it.
        host_bytes = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
        if size_bytes > host_bytes:
            raise HostError(f"this host has no room for {size_bytes} bytes of shared memory: it has {host_bytes}")
        descriptor = os.memfd_create("ivshmem", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            os.close(descriptor)
            raise HostError(why_no_room(error, "this host", size_bytes)) from error
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return cls(descriptor, size_bytes)

    def close(self) -> None:
        """Close and, for a named segment that this process owns, remove the name. Mappings of others stay valid."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            segments.unlink(f"{SHM_DIRECTORY}/{self.name}", lock)
            os.close(lock)  # last: until here no other process takes it for left behind
        self.name = None


def made_smaller(descriptor: int, size_bytes: int) -> str:
    """A sentence if memory has fewer bytes than ``size_bytes``; "" if not."""
    return _smaller_in_words(size_bytes, os.fstat(descriptor).st_size)


def check_mapped(memory: memoryview) -> None:
    """Raise ``RemoteProtocolError`` when touching a mapping would end this process, as the memory was made smaller.

    A process that touches what is missing dies of SIGBUS (mmap(2)), which no handler in Python can survive.
    """
    mapping = memory.obj
    if isinstance(mapping, mmap.mmap) and (smaller := _smaller_in_words(len(mapping), mapping.size())):
        raise RemoteProtocolError(smaller)


def _smaller_in_words(size_bytes: int, now_bytes: int) -> str:
    if now_bytes >= size_bytes:
        return ""
    return (
        f"the shared memory was made smaller, from {size_bytes} to {now_bytes} bytes: a process that touches the rest "
        "dies of SIGBUS (memory of the kind memfd is sealed against this)"
    )


def map_region(descriptor: int) -> mmap.mmap:
    """Map all of the memory that a server sent; the descriptor stays the caller's.

    Raises ``RemoteProtocolError`` for memory that no device could put behind BAR2: the size of a PCI region is a power
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


def map_file(descriptor: int, size_bytes: int) -> mmap.mmap:
    """Map a file, shared and writable, without a descriptor of the mapping's own.

    ``mmap.mmap`` duplicates the descriptor that it is given, for ``size`` and ``resize``, and keeps the duplicate as
    long as the mapping (``trackfd``, which prevents it, is new in Python 3.13).

    Raises:
        OSError: the kernel does not map it.
    """
    mapping = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        map_in_place(mapping, descriptor)
    except BaseException:
        mapping.close()
        raise
    return mapping


def map_in_place(mapping: mmap.mmap, descriptor: int) -> None:
    """Map a file where another mapping is: every view of that shows the file from now on.

    The file is mapped elsewhere first, and moved: a mapping at a fixed address that fails leaves a hole (mmap(2)).

    Raises:
        OSError: the kernel does not map it.
    """
    view, size_bytes = ctypes.c_char.from_buffer(mapping), len(mapping)
    address = ctypes.addressof(view)
    del view
    elsewhere = _libc.mmap(None, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    if elsewhere == MAP_FAILED:
        raise _last_error()
    if _libc.mremap(elsewhere, size_bytes, size_bytes, MREMAP_MAYMOVE_FIXED, address) != address:
        error = _last_error()
        _libc.munmap(elsewhere, size_bytes)
        raise error


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def release_mapping(memory: memoryview) -> None:
    """Release a view of a mapping, and the mapping: views that were made of it, and are still used, keep it."""
    mapping = memory.obj
    with contextlib.suppress(BufferError):
        memory.release()
        if isinstance(mapping, mmap.mmap):
            mapping.close()
