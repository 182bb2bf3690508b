"""What reaches a window of an access that is not aligned, on each path."""

from __future__ import annotations

from itertools import product

import pytest

from nodes.device.access_path import AccessPath, MisalignedConfig
from nodes.errors import GuestError

DATA = bytes(range(0x10, 0x50))


def reader(log: list[tuple[int, int]], offset: int, size_bytes: int) -> int:
    log.append((offset, size_bytes))
    return int.from_bytes(DATA[offset : offset + size_bytes], "little")


@pytest.mark.parametrize("path", AccessPath)
def test_memory_reads_the_same_on_each_path(path: AccessPath) -> None:
    """A window without side effects cannot tell the paths apart."""
    for offset, size in product(range(20), (1, 2, 4, 8)):
        log: list[tuple[int, int]] = []
        value = path.load(lambda at, size, log=log: reader(log, at, size), offset, size)  # type: ignore[misc]
        assert value.to_bytes(size, "little") == DATA[offset : offset + size]
        written = bytearray(64)

        def write(at: int, size: int, value: int, written: bytearray = written) -> None:
            written[at : at + size] = value.to_bytes(size, "little")

        path.store(write, offset, size, value)
        assert bytes(written[offset : offset + size]) == DATA[offset : offset + size]
        assert written.count(0) == 64 - size


@pytest.mark.parametrize(
    ("path", "offset", "size", "loads", "stores"),
    [
        (AccessPath.WHOLE, 3, 4, [(3, 4)], [(3, 4)]),
        (AccessPath.BYTES, 3, 4, [(0, 4), (4, 4)], [(3, 1), (4, 1), (5, 1), (6, 1)]),
        (AccessPath.BYTES, 8, 8, [(8, 8)], [(8, 8)]),
        (AccessPath.EVEN, 12, 8, [(12, 4), (16, 4)], [(12, 4), (16, 4)]),
        (AccessPath.EVEN, 10, 8, [(10, 2), (12, 2), (14, 2), (16, 2)], [(10, 2), (12, 2), (14, 2), (16, 2)]),
        (AccessPath.EVEN, 1, 2, [(1, 1), (2, 1)], [(1, 1), (2, 1)]),
        (AccessPath.EVEN, 4, 4, [(4, 4)], [(4, 4)]),
    ],
)
def test_pieces(
    path: AccessPath, offset: int, size: int, loads: list[tuple[int, int]], stores: list[tuple[int, int]]
) -> None:
    log: list[tuple[int, int]] = []
    path.load(lambda at, size: reader(log, at, size), offset, size)
    assert log == loads
    log.clear()
    path.store(lambda at, size, _: log.append((at, size)), offset, size, 0x1122_3344_5566_7788)
    assert log == stores


@pytest.mark.parametrize(
    ("kind", "inside", "across"),
    [
        (MisalignedConfig.ZERO, 0, 0),
        (MisalignedConfig.ONES, 0xFFFF, 0xFFFF_FFFF),
        (MisalignedConfig.PIECES, 0x1211, 0xFFFF_1312),
        (MisalignedConfig.INSIDE, 0x1211, 0xFFFF_FFFF),
        (MisalignedConfig.ACROSS, 0x1211, 0x1514_1312),
    ],
)
def test_configuration_space(kind: MisalignedConfig, inside: int, across: int) -> None:
    assert kind.load(lambda at, size: reader([], at, size), 1, 2) == inside
    assert kind.load(lambda at, size: reader([], at, size), 2, 4) == across
    assert kind.load(lambda at, size: reader([], at, size), 4, 4) == 0x1716_1514
    written: dict[int, int] = {}

    def write(at: int, size: int, value: int) -> None:
        written.update(zip(range(at, at + size), value.to_bytes(size, "little"), strict=True))

    kind.store(write, 2, 4, 0x4433_2211)
    taken = {MisalignedConfig.PIECES: 2, MisalignedConfig.ACROSS: 4}.get(kind, 0)
    assert written == dict(zip(range(2, 2 + taken), (0x11, 0x22, 0x33, 0x44), strict=False))
    for wrong in ((0, 8), (256, 1), (-1, 1)):
        with pytest.raises(GuestError):
            kind.load(lambda at, size: reader([], at, size), *wrong)
