"""Configuration space: masks, BARs, capability chain, reset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.device.pci import Bar, Capability, ConfigSpace, Identity, assign_resources
from nodes.errors import GuestError, UsageError

IDENTITY = Identity(0x1AF4, 0x1110, 0x05_00_00, 1, 0x1AF4, 0x1100, 1)
FIRST = Capability(0x40, 0x11, "first", bytes(10), bytes([0, 0xC0]) + bytes(8))
SECOND = Capability(0x50, 0x09, "second", b"\x14\x01", b"\0\xff")


def space(*capabilities: Capability, bars: tuple[Bar, ...] = ()) -> ConfigSpace:
    made = ConfigSpace(IDENTITY, capabilities=capabilities, command_mask=0x0507)
    for bar in bars:
        made.add_bar(bar)
    return made


REGISTERS, MEMORY = Bar(0, 256, "registers"), Bar(2, 1 << 20, "memory", wide=True, prefetchable=True)


def test_identity() -> None:
    made = space()
    assert [made.read(at, 4) for at in (0x00, 0x08, 0x2C)] == [0x1110_1AF4, 0x0500_0001, 0x1100_1AF4]
    assert made.read(0x3C, 2) == 0x0100


def test_capabilities_are_chained() -> None:
    made = space(FIRST, SECOND)
    assert made.read(0x06, 2) & 0x10
    found, at = [], made.read(0x34, 1)
    while at:
        found.append(made.read(at, 1))
        at = made.read(at + 1, 1)
    assert found == [0x11, 0x09]
    assert space().read(0x34, 1) == space().read(0x06, 2) == 0


@given(writes=st.lists(st.tuples(st.integers(0, 252), st.sampled_from((1, 2, 4)), st.integers(0, 1 << 32))))
def test_writes_change_what_the_mask_lets_through(writes: list[tuple[int, int, int]]) -> None:
    made = space(FIRST, SECOND, bars=(REGISTERS, MEMORY))
    before, mask = bytes(made.data), made.write_mask
    for offset, size, value in writes:
        made.write(min(offset, 256 - size), size, value)
        assert made.read(min(offset, 256 - size), size) < 1 << 8 * size
    assert all((old ^ new) & ~bits == 0 for old, new, bits in zip(before, made.data, mask, strict=True))


def test_a_write_stores_little_endian() -> None:
    made = space()
    made.write(0x60, 4, 0x0102_0304)
    assert [made.read(0x60 + at, 1) for at in range(4)] == [4, 3, 2, 1]
    made.write(0x61, 2, 0xBBAA)
    assert made.read(0x60, 4) == 0x01BB_AA04


@pytest.mark.parametrize(("offset", "size"), [(0, 3), (0, 8), (0, 0), (-1, 1), (256, 1), (255, 2), (253, 4)])
def test_impossible_accesses(offset: int, size: int) -> None:
    made = space()
    with pytest.raises(GuestError):
        made.read(offset, size)
    with pytest.raises(GuestError):
        made.write(offset, size, 0)


def test_bars_are_sized_by_writing_ones() -> None:
    made = space(bars=(REGISTERS, MEMORY))
    for offset, raw in ((0x10, 0xFFFF_FF00), (0x14, 0), (0x18, 0xFFF0_000C), (0x1C, 0xFFFF_FFFF), (0x20, 0)):
        made.write(offset, 4, 0xFFFF_FFFF)
        assert made.read(offset, 4) == raw


@pytest.mark.parametrize("size", [0, 8, 24, 4095])
def test_bar_of_an_impossible_size(size: int) -> None:
    with pytest.raises(UsageError):
        Bar(0, size, "x")


@pytest.mark.parametrize("bar", [Bar(2, 256, "again"), Bar(3, 256, "the upper half of BAR2")])
def test_bar_registers_belong_to_one_bar(bar: Bar) -> None:
    with pytest.raises(UsageError, match="declared already"):
        space(bars=(REGISTERS, MEMORY)).add_bar(bar)


def test_where_bars_answer() -> None:
    made = space(bars=(REGISTERS, MEMORY))
    addresses = assign_resources(made.bars.values(), made.write, base=0xE000_0010)
    assert addresses == {0: 0xE000_0100, 2: 0xE010_0000}
    assert {index: made.bar_address(index) for index in (0, 1, 2)} == {**addresses, 1: None}
    assert made.command == 6
    made.write(0x1C, 4, 9)
    assert made.bar_address(2) == 0x9_E010_0000
    made.write(0x04, 2, 0)
    assert made.bar_address(0) is None


@pytest.mark.parametrize(
    ("low", "high", "address"),
    [
        (0, 0, None),
        (0x0010_0000, 0, 0x0010_0000),
        (0xFFFF_FFFF, 0, 0xFFF0_0000),
        (0xFFFF_FFFF, 0xFFFF_FFFF, None),
        (0xFFE0_0000, 0xFFFF_FFFF, 0xFFFF_FFFF_FFE0_0000),
    ],
)
def test_addresses_at_the_edges(low: int, high: int, address: int | None) -> None:
    made = space(bars=(REGISTERS, MEMORY))
    made.write(0x04, 2, 2)
    made.write(0x18, 4, low)
    made.write(0x1C, 4, high)
    assert made.bar_address(2) == address
    made.write(0x10, 4, 0xFFFF_FFFF)
    assert made.bar_address(0) is None  # a 32-bit BAR never reaches the last byte below 4 GiB


def test_reset() -> None:
    made = space(FIRST, bars=(REGISTERS, MEMORY))
    before = bytes(made.data)
    assign_resources(made.bars.values(), made.write)
    for offset in (0x0C, 0x3C, 0x80):
        made.write(offset, 1, 0xAA)
    made.reset()
    assert made.read(0x80, 1) == 0xAA  # scratch space behind the capabilities stays
    made.write(0x80, 1, 0)
    assert made.data == before


def test_reset_brings_back_an_unprotected_identity() -> None:
    made = ConfigSpace(IDENTITY, command_mask=0xFFFF, writable_from=0)
    for offset in (*range(0, 0x10, 4), 0x2C, 0x34, 0x3C):
        made.write(offset, 4, 0xFFFF_FFFF)
    made.reset()
    assert [made.read(at, 4) for at in (0x00, 0x04, 0x08, 0x2C)] == [0x1110_1AF4, 0, 0x0500_0001, 0x1100_1AF4]


def test_interrupt_status() -> None:
    made = space()
    made.set_interrupt_status(True)
    assert made.read(0x06, 2) == 8
    made.write(0x06, 2, 0xFFFF)
    assert made.read(0x06, 2) == 8
    made.set_interrupt_status(False)
    assert made.read(0x06, 2) == 0
