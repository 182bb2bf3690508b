"""sim.kernel.memory: the region, its owner and its users, and descriptors that cannot be mapped."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import socket
import stat
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from nodes.errors import HostError, RemoteProtocolError, UsageError
from sim.kernel.memory import Region, made_smaller, map_file, map_in_place, map_region
from sim.kernel.segments import mappings, remove_orphaned

SHM = Path("/dev/shm")
KINDS = ["shared_memory", "memfd"]


@pytest.fixture
def name():
    """A name of the user's choice: what is left under a generated one is removed by any run that starts meanwhile."""
    return f"ivt-{os.getpid()}-{secrets.token_hex(4)}"


@pytest.fixture
def generated():
    return f"ivsim-{os.getpid()}-{secrets.token_hex(4)}"


@pytest.fixture(params=KINDS)
def region(request):
    made = Region.create(1 << 20, kind=request.param)
    yield made
    made.close()


def test_a_region_has_its_size_its_blocks_and_is_zero(region):
    status = os.fstat(region.descriptor)
    assert status.st_size == region.size_bytes == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20  # reserved: no SIGBUS later
    with map_region(region.descriptor) as memory:
        assert memory[:] == bytes(1 << 20)


def test_two_mappings_are_one_memory(region):
    with map_region(region.descriptor) as ours, map_region(region.descriptor) as theirs:
        ours[4096:4100] = b"ring"
        assert theirs[4096:4100] == b"ring"


def test_a_mapping_outlives_the_region_and_the_descriptor(region):
    with map_region(region.descriptor) as memory:
        region.close()
        memory[0] = 7
        assert memory[0] == 7


def test_closing_twice_is_no_error(region):
    region.close()
    region.close()


def test_a_named_segment_is_there_for_others_until_it_is_closed(name):
    region = Region.create(8192, name=name)
    try:
        assert region.name == name
        assert stat.S_IMODE((SHM / name).stat().st_mode) == 0o1600
        with pytest.raises(UsageError, match=rf"{name}.*exists already: another server uses it"):
            Region.create(4096, name=name)
        assert (SHM / name).stat().st_size == 8192  # the one that was there is untouched
    finally:
        region.close()
    assert not (SHM / name).exists()


def test_a_generated_name_contains_the_process_id():
    region = Region.create(4096)
    assert region.name.startswith(f"ivsim-{os.getpid()}-")
    region.close()
    assert region.name is None


def test_a_segment_whose_name_was_removed_can_be_closed(name):
    region = Region.create(4096, name=name)
    (SHM / name).unlink()
    region.close()


@pytest.mark.parametrize("change", [0, 4096, 1 << 21])
def test_a_memfd_can_be_neither_shrunk_nor_grown_nor_unsealed(change):
    region = Region.create(1 << 20, kind="memfd")
    try:
        assert region.name is None
        with pytest.raises(PermissionError):
            os.ftruncate(region.descriptor, change)
        assert os.fstat(region.descriptor).st_size == 1 << 20
    finally:
        region.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_bytes", [1 << 50, 1 << 62])
def test_more_memory_than_there_is_is_the_hosts_limit(kind, size_bytes, name):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=str(size_bytes)):
        Region.create(size_bytes, kind=kind, name=name)
    assert not (SHM / name).exists()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_file_system_is_found_when_the_region_is_made(kind, name, monkeypatch):
    """A small tmpfs cannot be mounted everywhere; what it would say can be said everywhere."""

    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HostError, match="No space left"):
        Region.create(1 << 20, kind=kind, name=name)
    assert not (SHM / name).exists()


# What a server may send


@pytest.fixture
def memfd():
    made = []

    def make(size, mode=os.O_RDWR):
        descriptor = os.memfd_create("sent")
        made.append(descriptor)
        os.ftruncate(descriptor, size)
        if mode != os.O_RDWR:
            descriptor = os.open(f"/proc/self/fd/{descriptor}", mode)
            made.append(descriptor)
        return descriptor

    yield make
    for descriptor in made:
        os.close(descriptor)


@pytest.mark.parametrize("size", [4096, 8192, 1 << 20])
def test_a_power_of_two_of_whole_pages_is_mapped(memfd, size):
    with map_region(memfd(size)) as memory:
        assert len(memory) == size


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "memory size 0x0 must be equal to or larger than page size 0x1000"),
        (1, "must be equal to or larger than page size"),
        (4095, "must be equal to or larger than page size"),
        (6000, "0x1770 is not a power of two"),
        (3 << 20, "0x300000 is not a power of two"),
        (1 << 62, "cannot be mapped"),
    ],
)
def test_sizes_that_no_bar_can_have(memfd, size, reason):
    with pytest.raises(RemoteProtocolError, match=reason):
        map_region(memfd(size))


@pytest.mark.parametrize("mode", [os.O_RDONLY, os.O_PATH], ids=["read-only", "path"])
def test_a_descriptor_that_cannot_be_written(memfd, mode):
    with pytest.raises(RemoteProtocolError, match="cannot be mapped"):
        map_region(memfd(4096, mode))


@pytest.mark.parametrize("kind", ["eventfd", "null", "directory", "pipe"])
def test_a_descriptor_that_is_no_memory_is_refused(kind, tmp_path):
    spare = -1
    match kind:
        case "eventfd":
            descriptor = os.eventfd(1)
        case "null":
            descriptor = os.open("/dev/null", os.O_RDWR)
        case "directory":
            descriptor = os.open("/", os.O_RDONLY)
        case "pipe":
            descriptor, spare = os.pipe()
    try:
        with pytest.raises(RemoteProtocolError):
            map_region(descriptor)
    finally:
        os.close(descriptor)
        if spare >= 0:
            os.close(spare)


def test_memory_that_shrinks_while_it_is_mapped(memfd, monkeypatch):
    """Between the look at its size and the mapping; Python's mmap looks again and says ValueError."""
    descriptor = memfd(8192)
    real = os.fstat

    def look_then_shrink(number):
        status = real(number)
        os.ftruncate(number, 4096)
        return status

    monkeypatch.setattr(os, "fstat", look_then_shrink)
    with pytest.raises(RemoteProtocolError, match="cannot be mapped"):
        map_region(descriptor)


def test_the_descriptor_stays_the_callers(memfd):
    descriptor = memfd(mmap.PAGESIZE)
    map_region(descriptor).close()
    os.fstat(descriptor)


def test_a_host_program_can_open_a_named_region(name):
    region = Region.create(4096, name=name)
    try:
        other = SharedMemory(name)
        other.buf[0] = 42
        with map_region(region.descriptor) as memory:
            assert memory[0] == 42
        other.close()
        resource_tracker.unregister(f"/{name}", "shared_memory")  # or it removes the name when this process ends
    finally:
        region.close()


# Owners that were killed


@pytest.fixture
def killed(name, orphans_alone):
    """Makes a region whose owner was killed: its lock is free, its name is still there. Returns what a client has."""
    kept = []

    def make(size_bytes, *, used, segment=name):
        region = Region.create(size_bytes, name=segment)
        mapping = map_region(region.descriptor)
        mapping[0:4] = b"kept"
        os.close(region.descriptor)
        os.close(region._lock)
        if not used:
            mapping.close()
        kept.append(segment)
        return mapping

    yield make
    for segment in kept:
        (SHM / segment).unlink(missing_ok=True)


def test_memory_that_clients_of_a_killed_owner_use_is_adopted(name, killed):
    theirs = killed(8192, used=True)
    assert [(each.pid, each.current) for each in mappings(name)] == [(os.getpid(), True)]
    region = Region.create(8192, name=name, adopt=True, mode=0o660)
    assert region.adopted
    assert stat.S_IMODE((SHM / name).stat().st_mode) == 0o1660
    with map_region(region.descriptor) as ours:
        assert ours[0:4] == b"kept"
        ours[0:4] = b"both"
        assert theirs[0:4] == b"both"
    with pytest.raises(UsageError, match="another server uses it"):
        Region.create(8192, name=name, adopt=True)
    region.close()
    assert not (SHM / name).exists()
    theirs.close()


def test_memory_that_clients_use_is_never_replaced(name, killed):
    theirs = killed(8192, used=True)
    with pytest.raises(UsageError, match=rf"clients of a server that was killed still use it \(.*\[{os.getpid()}\]\)"):
        Region.create(8192, name=name)
    with pytest.raises(UsageError, match=r"has 8192 bytes.*share it with -l 8192"):
        Region.create(4096, name=name, adopt=True)
    assert (SHM / name).stat().st_size == 8192
    theirs.close()
    assert not Region.create(4096, name=name, adopt=True).close()


def test_memory_that_no_process_uses_any_more_is_replaced(name, killed):
    killed(8192, used=False)
    region = Region.create(4096, name=name, adopt=True)
    assert not region.adopted
    with map_region(region.descriptor) as memory:
        assert memory[:] == bytes(4096)
    region.close()
    assert not (SHM / name).exists()


def test_a_descriptor_alone_counts_as_use(name):
    region = Region.create(4096, name=name)
    sent = os.dup(region.descriptor)
    os.close(region.descriptor)
    os.close(region._lock)
    adopted = Region.create(4096, name=name, adopt=True)
    assert adopted.adopted
    os.close(sent)
    adopted.close()


def test_memory_of_unknown_origin_is_left_alone(name):
    (SHM / name).write_bytes(bytes(4096))
    try:
        with pytest.raises(UsageError, match=f"it is not known who made it: use another name, remove /dev/shm/{name}"):
            Region.create(4096, name=name, adopt=True)
    finally:
        (SHM / name).unlink()


def test_only_generated_names_without_an_owner_are_removed(name, generated, killed):
    killed(4096, used=False, segment=generated)
    killed(4096, used=False)
    with contextlib.closing(Region.create(4096)) as alive:
        assert alive.name not in remove_orphaned()
        assert (SHM / alive.name).exists()
    assert not (SHM / generated).exists()
    assert (SHM / name).exists()


def test_a_name_that_another_process_has_taken_over_stays(name):
    region = Region.create(4096, name=name)
    (SHM / name).unlink()
    with contextlib.closing(Region.create(8192, name=name)):
        region.close()
        assert (SHM / name).stat().st_size == 8192


def test_mappings_of_an_earlier_segment_with_the_same_name(name):
    region = Region.create(4096, name=name)
    with map_region(region.descriptor):
        region.close()
        with contextlib.closing(Region.create(4096, name=name)):
            (mapping,) = mappings(name)
        assert (mapping.pid, mapping.current) == (os.getpid(), False)


def test_rights_are_there_before_the_name(name, monkeypatch):
    seen = []
    real = os.link

    def link(source, target, **options):
        real(source, target, **options)
        seen.append((stat.S_IMODE((SHM / name).stat().st_mode), (SHM / name).stat().st_size))

    monkeypatch.setattr(os, "link", link)
    Region.create(4096, name=name, mode=0o640).close()
    assert seen == [(0o1640, 4096)]


# Memory that was made smaller


def test_memory_that_was_made_smaller_is_explained(name):
    region = Region.create(1 << 20, name=name)
    try:
        assert made_smaller(region.descriptor, region.size_bytes) == ""
        os.truncate(SHM / name, 4096)
        told = made_smaller(region.descriptor, region.size_bytes)
        assert told.startswith("the shared memory was made smaller, from 1048576 to 4096 bytes: ")
        assert "memfd" in told
    finally:
        region.close()


def test_a_clean_up_between_name_and_lock_does_no_harm(generated, monkeypatch):
    """The segment has its name before its owner has the lock: another run's clean-up takes it for left behind."""
    lock, there = fcntl.flock, []

    def meanwhile(descriptor, operation):
        if operation == fcntl.LOCK_EX and not there:
            remove_orphaned()
            there.append((SHM / generated).exists())
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    region = Region.create(4096, name=generated)
    try:
        assert there == [False]
        assert os.path.samestat(os.stat(SHM / generated), os.fstat(region.descriptor))
        assert generated not in remove_orphaned()
    finally:
        region.close()
    assert not (SHM / generated).exists()


def test_a_mapped_file_holds_no_descriptor(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    descriptor = os.open(path, os.O_RDWR)
    before = os.listdir("/proc/self/fd")
    mapping = map_file(descriptor, 8192)
    assert os.listdir("/proc/self/fd") == before
    os.close(descriptor)
    mapping[4096] = 7
    assert path.read_bytes()[4096] == 7
    with memoryview(mapping), pytest.raises(BufferError):
        mapping.close()
    mapping.close()


def test_a_file_that_cannot_be_mapped_is_an_error_and_leaves_the_memory_that_was_there():
    with socket.socket(socket.AF_UNIX) as unmappable, mmap.mmap(-1, 4096) as mapping:
        mapping[0] = 3
        for attempt in (lambda at: map_file(at, 4096), lambda at: map_in_place(mapping, at)):
            with pytest.raises(OSError, match="No such device") as raised:
                attempt(unmappable.fileno())
            assert raised.value.errno == errno.ENODEV
        assert mapping[0] == 3
