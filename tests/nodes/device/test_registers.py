"""Register maps, access rules, and every offset of every profile's BAR0 against its own table."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nodes.device.access_path import AccessPath
from nodes.device.ivshmem import Ivshmem
from nodes.device.pci import assign_resources
from nodes.device.profile import DOORBELL, INTR_MASK, INTR_STATUS, IV_POSITION, Profile, Quirk
from nodes.device.profiles import PROFILES
from nodes.device.registers import (
    Access,
    AccessRules,
    Register,
    RegisterFile,
    RegisterMap,
    Unfit,
    Window,
    check_access,
    pieces,
)
from nodes.errors import GuestError, UsageError

VERSION_1 = [replace(made, access_path=AccessPath.WHOLE) for made in PROFILES.values() if made.version == 1]
"""With each access as it was made: what a path makes of one is in test_access_path.py."""
SIZES = (1, 2, 4, 8)


def word(offset: int, name: str = "r", access: Access = Access.RW, words: int = 1) -> Register:
    return Register(offset, name, access, "for a test", words=words)


# The map.


@pytest.mark.parametrize(
    ("registers", "text"),
    [
        ((word(0), word(4), word(4)), "overlaps"),
        ((word(0, words=2), word(4)), "overlaps"),
        ((word(0), word(8)), "gap"),
        ((word(4), word(8)), "gap"),
        ((word(0), word(4)), "end at 0x8"),
        ((word(0, words=4),), "end at 0x10"),
        ((), "end at 0x0"),
    ],
)
def test_every_word_is_declared_once(registers: tuple[Register, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        RegisterMap("map", 12, registers)


def register_at(registers: RegisterMap, offset: int) -> Register | None:
    """The register that has a word at ``offset``; None between words and outside."""
    fitting = (each for each in registers.registers if each.offset <= offset < each.end and offset % 4 == 0)
    return next(fitting, None)


def test_order_of_declaration_does_not_matter() -> None:
    made = RegisterMap("map", 12, (word(4, "b", words=2), word(0, "a")))
    found = [register_at(made, offset) for offset in range(13)]
    assert [register.name if register else None for register in found] == [
        *("a", None, None, None, "b", None, None, None, "b", None, None, None, None),
    ]


# The file.


def test_access_of_each_kind_of_register() -> None:
    kinds = (Access.RW, Access.RO, Access.WO, Access.RC, Access.RESERVED)
    made = RegisterMap("map", 20, tuple(word(4 * at, kind.name, kind) for at, kind in enumerate(kinds)))
    written: list[tuple[str, int]] = []
    cleared: list[str] = []
    file = RegisterFile(
        made,
        reads={"RO": lambda: -1},
        written={kind.name: lambda value, name=kind.name: written.append((name, value)) for kind in kinds},  # type: ignore[misc]
        cleared={"RC": lambda: cleared.append("RC")},
    )
    for at in range(5):
        file.write_word(4 * at, 0x1_0000_0007)
    assert [[file.read_word(4 * at) for at in range(5)] for _ in range(2)] == [
        [7, 0xFFFF_FFFF, 0, 7, 0],
        [7, 0xFFFF_FFFF, 0, 0, 0],
    ]
    assert written == [("RW", 7), ("WO", 7), ("RC", 7)]
    assert cleared == ["RC", "RC"]
    file.write_word(0, 9)
    file.reset("RC")
    assert file.read_word(0) == 9
    file.reset("RW")
    assert file.read_word(0) == 0


# Pieces and windows.


def greedy(offset: int, size_bytes: int, widest: int) -> list[tuple[int, int]]:
    """The same pieces, found by trying sizes from the largest down."""
    made, end = [], offset + size_bytes
    while offset < end:
        size = next(s for s in (8, 4, 2, 1) if s <= widest and offset % s == 0 and offset + s <= end)
        made.append((offset, size))
        offset += size
    return made


@pytest.mark.parametrize("widest", [1, 2, 4, 8])
def test_pieces(widest: int) -> None:
    for offset, size in product(range(32), SIZES):
        assert list(pieces(offset, size, widest)) == greedy(offset, size, widest)


@given(offset=st.integers(0, 1 << 40), size=st.sampled_from(SIZES), widest=st.sampled_from(SIZES))
def test_pieces_cover_the_access_once(offset: int, size: int, widest: int) -> None:
    made = list(pieces(offset, size, widest))
    assert [at for start, length in made for at in range(start, start + length)] == list(range(offset, offset + size))
    assert all(at % length == 0 and length <= widest for at, length in made)


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (3, 0), (16, 0), (-1, 0), (4, -4)])
def test_accesses_that_no_bus_carries_are_refused(size: int, offset: int) -> None:
    with pytest.raises(GuestError):
        check_access(offset, size)


def test_rules_that_refuse() -> None:
    memory = bytearray(range(16))

    def store(offset: int, size: int, value: int) -> None:
        memory[offset : offset + size] = value.to_bytes(size, "little")

    rules = AccessRules(widest_bytes=4, narrowest_bytes=2, misaligned=Unfit.ONES, wide=Unfit.ZERO, narrow=Unfit.ONES)
    window = Window(16, rules, lambda at, size: int.from_bytes(memory[at : at + size], "little"), store)
    assert [window.read(at, size) for at, size in ((0, 4), (1, 4), (0, 8), (0, 1))] == [
        *(0x0302_0100, 0xFFFF_FFFF, 0, 0xFF)
    ]
    for at, size in ((1, 4), (0, 8), (0, 1)):
        window.write(at, size, 0)
    assert memory == bytes(range(16))
    window.write(12, 4, 0x1234_5678)
    assert window.read(14, 2) == 0x1234
    assert "narrower: reads all ones" in rules.describe()


def test_pieces_that_are_too_narrow_are_refused_one_by_one() -> None:
    """A misaligned access of 8 bytes has an aligned word in the middle; only that word is taken."""
    words = {0: 0x0302_0100, 4: 0x0706_0504, 8: 0x0B0A_0908}
    rules = AccessRules(widest_bytes=4, narrowest_bytes=4, narrow=Unfit.ONES)
    window = Window(12, rules, lambda at, size: words[at], lambda at, size, value: words.update({at: value}))
    assert window.read(2, 8) == 0xFFFF_0706_0504_FFFF
    assert window.read(2, 4) == 0xFFFF_FFFF
    assert window.read(0, 2) == 0xFFFF
    window.write(2, 8, 0x8877_6655_4433_2211)
    window.write(2, 4, 0)
    assert words == {0: 0x0302_0100, 4: 0x6655_4433, 8: 0x0B0A_0908}


def test_bytes_outside_a_window() -> None:
    memory = bytearray(8)

    def store(offset: int, size: int, value: int) -> None:
        memory[offset : offset + size] = value.to_bytes(size, "little")

    window = Window(8, AccessRules(), lambda at, size: int.from_bytes(memory[at : at + size], "little"), store)
    window.write(6, 4, 0xAABB_CCDD)
    assert memory[6:] == b"\xdd\xcc"
    assert window.read(6, 4) == 0xCCDD
    assert window.read(8, 8) == 0


# Every offset and size of every profile, from the table that drives the device.

MASK, STATUS, PEER = 0x1122_3344, 0x5566_7788, 0x9ABC


def fresh(made: Profile) -> Ivshmem:
    device = Ivshmem(made.without(Quirk.PLAIN_DOORBELL_FAULT), ring=lambda peer, vector: None, size_bytes=4096)
    device.set_peer(PEER)
    device.set_memory(memoryview(bytearray(4096)))
    assign_resources(device.config.bars.values(), device.config_write)
    device.registers.values |= {INTR_MASK: MASK, INTR_STATUS: STATUS}
    return device


def expected(made: Profile, offset: int, size: int) -> int:
    """What a read gives: the table's words, taken apart and put together byte by byte."""
    rules = made.registers_rules
    unfit = rules.unfit(offset, size)
    if unfit:
        return (1 << 8 * size) - 1 if unfit is Unfit.ONES else 0
    position = PEER if made.server else 0
    words = {INTR_MASK: MASK, INTR_STATUS: STATUS, IV_POSITION: position, DOORBELL: 0, "reserved": 0}
    value = b""
    for at, length in greedy(offset, size, rules.widest_bytes):
        if length < rules.narrowest_bytes:
            value += (b"\xff" if rules.narrow is Unfit.ONES else b"\0") * length
            continue
        register = register_at(made.registers, at)
        value += (words[register.name] if register else 0).to_bytes(4, "little")[:length]
    return int.from_bytes(value, "little")


@pytest.mark.parametrize("made", VERSION_1, ids=lambda made: made.name)
def test_every_read(made: Profile) -> None:
    for offset, size in product(range(0x108), SIZES):
        assert fresh(made).bar_read(0, offset, size) == expected(made, offset, size), (offset, size)


@pytest.mark.parametrize("made", VERSION_1, ids=lambda made: made.name)
def test_every_write(made: Profile) -> None:
    """A write changes the registers that its pieces reach, and nothing else; what is read-only stays."""
    value = 0xA1B2_C3D4_E5F6_0718
    for offset, size in product(range(0x108), SIZES):
        device = fresh(made)
        device.bar_write(0, offset, size, value)
        words = {INTR_MASK: MASK, INTR_STATUS: STATUS}
        rules = made.registers_rules
        if rules.unfit(offset, size) is None:
            for at, length in greedy(offset, size, rules.widest_bytes):
                if length < rules.narrowest_bytes or at + length > 0x100:
                    continue
                register = register_at(made.registers, at & rules.write_offset_mask)
                if register and register.name in words and register.access is not Access.RO:
                    words[register.name] = value >> 8 * (at - offset) & (1 << 8 * length) - 1
        found = {name: device.registers.values[name] for name in words}
        assert found == words, (offset, size)
