"""The shared memory behind BAR2: making, naming, recovering and mapping it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import secrets
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nodes.errors import HostError, RemoteProtocolError, UsageError

__all__ = ["Region", "made_smaller", "map_region", "mappings", "remove_orphaned"]

SHM_DIRECTORY = "/dev/shm"
PRIVATE = 0o600
OURS = stat.S_ISVTX
"""Marks a segment whose owner holds a lock on it while it runs. The bit has no meaning on a file, inode(7)."""
_GENERATED = re.compile(r"ivsim-[0-9]+-[0-9a-f]{8}")
_OPENING = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LOCK = struct.Struct("@hhqqi0q")  # struct flock, fcntl(2): type, whence, start, length, pid


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
        lock = _take_over(name, size_bytes, adopt=adopt)
        adopted = lock >= 0
        if adopted:
            _give_or_close(lock, mode, group)
        while lock < 0:
            lock = _make(name, size_bytes, mode, group)
        try:
            # The lock belongs to a description, not to the file: clients must not have the owner's.
            descriptor = os.open(f"{SHM_DIRECTORY}/{name}", _OPENING)
        except BaseException:
            os.close(lock)
            raise
        _mark_used(descriptor)
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
            raise HostError(f"{directory} has no room for {size_bytes} bytes: {error.strerror}") from error
        return cls(descriptor, size_bytes)

    @classmethod
    def open(cls, name: str, size_bytes: int) -> Region:
        """Open memory that exists, and that stays when this is closed.

        Raises ``UsageError`` when there is none of that name and size, or it cannot be written.
        """
        path = f"{SHM_DIRECTORY}/{name}"
        try:
            descriptor = os.open(path, _OPENING)
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
        _mark_used(descriptor)
        return cls(descriptor, size_bytes)

    @classmethod
    def _create_memfd(cls, size_bytes: int) -> Region:
        # A memfd has no file system with a size to refuse this: the kernel would end some process for it.
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
        return cls(descriptor, size_bytes)

    def close(self) -> None:
        """Close and, for a named segment that this process owns, remove the name. Mappings of others stay valid."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            _unlink(f"{SHM_DIRECTORY}/{self.name}", lock)
            os.close(lock)  # last: until here no other process takes it for left behind
        self.name = None


# A named segment


def _make(name: str, size_bytes: int, mode: int, group: int | None) -> int:
    """Make a segment. Returns a descriptor with the owner's lock, or -1 when a clean-up has just removed the segment.

    The segment gets its name when it is complete. It is then opened by that name, so that /proc shows it; until the
    lock has moved to that description, a clean-up takes the segment for left behind.
    """
    first = _tmpfile(size_bytes)
    _give_or_close(first, mode, group)
    try:
        _link(first, name)
        lock = os.open(path := f"{SHM_DIRECTORY}/{name}", _OPENING)
    except FileNotFoundError:
        return -1
    finally:
        os.close(first)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), os.fstat(lock)):
            return lock
    os.close(lock)
    return -1


def _give_or_close(descriptor: int, mode: int, group: int | None) -> None:
    try:
        _give(descriptor, mode, group)
    except BaseException:
        os.close(descriptor)
        raise


def _tmpfile(size_bytes: int) -> int:
    """A segment that has no name yet, with its blocks and the owner's lock: whatever fails, nothing is left."""
    descriptor = -1
    try:
        descriptor = os.open(SHM_DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, PRIVATE)
        os.ftruncate(descriptor, size_bytes)
        os.posix_fallocate(descriptor, 0, size_bytes)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise HostError(
            f"{SHM_DIRECTORY} has no room for {size_bytes} bytes of shared memory: {error.strerror}"
        ) from error
    return descriptor


def _give(descriptor: int, mode: int, group: int | None) -> None:
    try:
        if group is not None:
            os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, mode | OURS)
    except OSError as error:
        text = f"the shared memory cannot be given group {group} and mode {mode:o}: {error.strerror}"
        raise UsageError(text) from error


def _link(descriptor: int, name: str) -> None:
    """Give a file without a name its name: linkat(2), AT_SYMLINK_FOLLOW, which Python uses with a directory only."""
    try:
        os.link(f"/proc/self/fd/{descriptor}", f"{SHM_DIRECTORY}/{name}", src_dir_fd=descriptor, follow_symlinks=True)
    except FileExistsError as error:
        raise UsageError(f"shared memory {name!r} exists already: another server has just made it") from error
    except OSError as error:
        raise HostError(f"shared memory {name!r} cannot be made: {error.strerror}") from error


def _take_over(name: str, size_bytes: int, *, adopt: bool) -> int:
    """Look at a segment of that name. Remove it when its owner was killed and no process uses it.

    Returns:
        A descriptor with the owner's lock, when clients of a killed owner use the segment and it is to be adopted;
        otherwise -1: the name is free.

    Raises:
        UsageError: the segment has an owner that runs, or it is not known who made it, or it cannot be adopted.
    """
    path = f"{SHM_DIRECTORY}/{name}"
    try:
        descriptor = os.open(path, _OPENING)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise UsageError(f"{path} exists already, and cannot be opened: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not (stat.S_ISREG(found.st_mode) and found.st_mode & OURS):
            raise UsageError(
                f"shared memory {name!r} exists already, and it is not known who made it: use another name, "
                f"remove {path}, or share it with `serve --reuse-memory`"
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"shared memory {name!r} exists already: another server uses it") from None
        if not _is_used(descriptor):
            _unlink(path, descriptor)
        elif not adopt:
            raise UsageError(
                f"shared memory {name!r} exists already: clients of a server that was killed still use it "
                f"({_users(name)}); end them, or use another name"
            )
        elif found.st_size != size_bytes:
            raise UsageError(
                f"shared memory {name!r} has {found.st_size} bytes, and clients of a server that was killed still use "
                f"it ({_users(name)}): share it with -l {found.st_size}, end them, or use another name"
            )
        else:
            adopted, descriptor = descriptor, -1
            return adopted
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return -1


def remove_orphaned() -> list[str]:
    """Remove segments with generated names whose owner was killed; the names. Those of other users are left alone."""
    removed = []
    for name in filter(_GENERATED.fullmatch, os.listdir(SHM_DIRECTORY)):
        with contextlib.suppress(OSError):  # in use, of another user, or just gone
            descriptor = os.open(path := f"{SHM_DIRECTORY}/{name}", _OPENING)
            try:
                if os.fstat(descriptor).st_mode & OURS:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _unlink(path, descriptor)
                    removed.append(name)
            finally:
                os.close(descriptor)
    return removed


def _unlink(path: str, descriptor: int) -> None:
    """Remove the name, if it still is the name of this file: another process may have removed or replaced it."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(path), os.fstat(descriptor)):
            os.unlink(path)


def _mark_used(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system without such locks: its clients are not recognised later
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))


def _is_used(descriptor: int) -> bool:
    """Whether any process has a descriptor or a mapping that a server sent it."""
    asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    return bool(_LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


# Who maps it


class Mapping(NamedTuple):
    """A process that maps memory of some name; ``current``: the memory that has this name now, not an earlier one."""

    pid: int
    command: str
    current: bool

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def mappings(name: str) -> Iterator[Mapping]:
    """The processes that map memory which has this name, or had it; only those that this user may look into."""
    path = f"{SHM_DIRECTORY}/{name}"
    try:
        inode = os.lstat(path).st_ino
    except OSError:
        inode = -1
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # another user's, or it has ended
            found = set()
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                fields = line.split(None, 5)  # proc_pid_maps(5)
                if len(fields) == 6 and fields[5] in (path, f"{path} (deleted)"):
                    found.add(int(fields[4]) == inode)
            command = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() if found else ""
            yield from (Mapping(int(pid), command, current) for current in sorted(found))


def _users(name: str) -> str:
    return ", ".join(str(each) for each in mappings(name) if each.current) or "processes of another user"


# Mapping it


def made_smaller(descriptor: int, size_bytes: int) -> str:
    """In words, that memory has fewer bytes than it had; nothing when it has not.

    A process that touches what is missing dies of SIGBUS (mmap(2)), which no handler in Python can survive.
    """
    now_bytes = os.fstat(descriptor).st_size
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
