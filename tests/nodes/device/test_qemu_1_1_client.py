"""How the 2012 device hears its server: rows 46-47, 56-77, 83, 86-90, 92-93 of seed_rows.toml."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from nodes.device.effects import DeviceWarning
from nodes.device.ivshmem import Ivshmem
from nodes.device.pci import assign_resources
from nodes.device.profile import Quirk
from nodes.device.profiles import profile
from nodes.device.qemu_1_1.client import FIRST_SLOTS, Qemu11Client
from nodes.device.qemu_1_1.properties import DeviceExitError
from nodes.errors import ModelledFault

MIB = 1 << 20
MEMORY_FD = 90
ALL_ONES = 0xFFFF_FFFF


class System:
    """Descriptors are numbers; a duplicate is the next free one from 100 up."""

    def __init__(self, memory_bytes: int = MIB) -> None:
        self.memory_bytes = memory_bytes
        self.memory = memoryview(bytearray(memory_bytes))
        self.maps = 0
        self.next = 100
        self.duplicates: dict[int, int] = {}
        self.closed: list[int] = []
        self.watched: dict[int, int] = {}
        self.watches: list[tuple[int, int]] = []
        self.on_size: Callable[[], object] = lambda: None
        self.on_map: Callable[[], object] = lambda: None
        self.mappable = True
        self.bound: dict[tuple[int, int], int] = {}
        self.full = self.unwatchable = self.unbindable = False

    def size_bytes(self, descriptor: int) -> int:
        self.on_size()
        return self.memory_bytes

    def map(self, descriptor: int, size_bytes: int) -> memoryview | None:
        self.maps += 1
        self.on_map()
        return self.memory[:size_bytes] if self.mappable else None

    def duplicate(self, descriptor: int) -> int | None:
        if self.full:
            return None
        self.duplicates[self.next] = descriptor
        self.next += 1
        return self.next - 1

    def close(self, descriptor: int) -> None:
        assert descriptor not in self.closed, f"{descriptor} is closed twice"
        self.closed.append(descriptor)

    def watch(self, vector: int, descriptor: int) -> bool:
        self.watched[vector] = descriptor
        self.watches.append((vector, descriptor))
        return not self.unwatchable

    def bind(self, address: int, value: int, descriptor: int) -> bool:
        self.bound[address, value] = descriptor
        return not self.unbindable

    def unbind(self, address: int, value: int, descriptor: int) -> None:
        self.bound.pop((address, value), None)


class Qemu11ClientSetup:
    def __init__(
        self,
        *repaired: Quirk,
        vectors: int = 2,
        ioeventfd: bool = False,
        word_bytes: int = 8,
        memory_bytes: int = MIB,
    ) -> None:
        self.system = System(memory_bytes)
        self.rung: Counter[tuple[int, int]] = Counter()
        self.device = Ivshmem(
            profile("qemu-1.1").without(*repaired),
            vectors=vectors,
            ring=lambda peer, vector: self.rung.update([(peer, vector)]),
            size_bytes=MIB,
        )
        assign_resources(self.device.config.bars.values(), self.device.config_write)
        self.client = Qemu11Client(self.device, self.system, ioeventfd=ioeventfd, word_bytes=word_bytes)

    def hear(self, *messages: int | tuple[int, int]) -> Qemu11ClientSetup:
        """Numbers alone, or (number, descriptor)."""
        for message in messages:
            number, descriptor = message if isinstance(message, tuple) else (message, None)
            self.client.receive(number, descriptor)
        return self

    def position(self) -> int:
        return self.device.bar_read(0, 8, 4)

    def heard(self, peer: int, vector: int = 0) -> bool:
        before = self.rung[peer, vector]
        self.device.bar_write(0, 12, 4, peer << 16 | vector)
        return self.rung[peer, vector] > before

    def warnings(self) -> list[str]:
        return [effect.text for effect in self.device.effects if isinstance(effect, DeviceWarning)]

    def fault(self, *messages: int | tuple[int, int]) -> int:
        with pytest.raises(ModelledFault) as caught:
            self.hear(*messages)
        return caught.value.row


def word(number: int, size_bytes: int = 8) -> bytes:
    return number.to_bytes(size_bytes, "little", signed=True)


def test_setup_in_the_order_of_its_own_server() -> None:
    bench = Qemu11ClientSetup().hear(2, (-1, MEMORY_FD), (0, 10), (0, 11), (2, 12), (2, 13))
    assert bench.position() == 2
    assert bench.system.watched == {0: 104 - 1, 1: 104}
    assert bench.heard(0, 1)
    assert bench.heard(2, 0)
    assert bench.client.slots == FIRST_SLOTS == 16


def test_position_waits_for_the_memory() -> None:
    bench = Qemu11ClientSetup().hear(2)
    assert bench.position() == ALL_ONES
    assert bench.hear((-1, MEMORY_FD)).position() == 2


def test_memory_descriptor_0_looks_unmapped() -> None:
    bench = Qemu11ClientSetup()
    bench.system.next = 0
    bench.hear(2, (-1, MEMORY_FD))
    assert bench.position() == ALL_ONES
    assert bench.device.memory is not None
    repaired = Qemu11ClientSetup(Quirk.DESCRIPTOR_ZERO_UNMAPPED)
    repaired.system.next = 0
    assert repaired.hear(2, (-1, MEMORY_FD)).position() == 2


def test_reads_of_8_bytes() -> None:
    bench = Qemu11ClientSetup()
    bench.client.read(word(5))
    bench.client.read(word(-1), [MEMORY_FD])
    assert bench.position() == 5


def test_short_reads_are_misread() -> None:
    bench = Qemu11ClientSetup()
    bench.client.read(word(5)[:3])
    assert bench.device.peer == 5
    bench.client.read(word(5)[3:])  # five zero bytes in front of what the read before left: peer 0
    assert bench.device.peer == 0
    bench.client.read(word(-1), [MEMORY_FD])
    with pytest.raises(ModelledFault) as caught:
        bench.client.read(word(5)[:3])  # three bytes in front of the five of -1: far below -1
    assert caught.value.row == Quirk.PEER_UNBOUNDED
    repaired = Qemu11ClientSetup(Quirk.SHORT_READ)
    repaired.client.read(word(5)[:3])
    assert repaired.device.peer is None
    repaired.client.read(word(5)[3:])
    assert repaired.device.peer == 5


def test_two_short_words_in_one_read_lose_the_second() -> None:
    bench = Qemu11ClientSetup(word_bytes=4)
    bench.client.read(word(5, 4) + word(-1, 4), [MEMORY_FD])
    assert bench.device.peer is None  # 5 with a descriptor: a vector of peer 5, and no memory
    assert bench.device.memory is None
    repaired = Qemu11ClientSetup(Quirk.SHORT_READ, word_bytes=4)
    repaired.client.read(word(5, 4))
    repaired.client.read(word(-1, 4), [MEMORY_FD])
    assert repaired.position() == 5


def test_the_last_of_several_descriptors_stays() -> None:
    bench = Qemu11ClientSetup()
    bench.client.read(word(7), [20, 21, 22])
    assert bench.system.closed == [20, 21]
    assert bench.system.duplicates == {100: 22}


@pytest.mark.parametrize(("peer", "slots"), [(15, 16), (16, 32), (31, 32), (32, 64), (1000, 1024), (65536, 131072)])
def test_table_doubles_until_it_fits(peer: int, slots: int) -> None:
    assert Qemu11ClientSetup().hear((peer, 10)).client.slots == slots


@pytest.mark.parametrize("peer", [-2, -(1 << 63), 1 << 30, 1 << 31, (1 << 63) - 1])
def test_peers_without_bounds_are_a_fault(peer: int) -> None:
    assert Qemu11ClientSetup().fault((peer, 10)) == 59
    assert Qemu11ClientSetup().fault(peer) == 59
    repaired = Qemu11ClientSetup(Quirk.PEER_UNBOUNDED).hear((peer, 10))
    assert repaired.warnings() == [f"server sent invalid message {peer}"]
    assert repaired.system.closed == [10]


def test_any_unseen_number_is_the_own_id() -> None:
    bench = Qemu11ClientSetup().hear((-1, MEMORY_FD))
    for peer in (0, 9, 3):
        assert bench.hear(peer).position() == peer


def test_server_of_today() -> None:
    """Version 0 is taken for the ID 0, then the ID comes and overwrites it."""
    bench = Qemu11ClientSetup().hear(0)
    assert bench.device.peer == 0
    bench.hear(4, (-1, MEMORY_FD), (0, 10), (0, 11), (4, 12), (4, 13))
    assert bench.position() == 4
    assert sorted(bench.system.watched) == [0, 1]


def test_leave_of_an_unknown_peer_renames() -> None:
    bench = Qemu11ClientSetup().hear(4, (-1, MEMORY_FD), 9)
    assert bench.position() == 9
    assert Qemu11ClientSetup(Quirk.LEAVE_RENAMES).hear(4, (-1, MEMORY_FD), 9).position() == 4


def test_leave_closes_and_is_forgotten() -> None:
    bench = Qemu11ClientSetup(ioeventfd=True).hear(4, (-1, MEMORY_FD), (9, 10), (9, 11))
    assert len(bench.system.bound) == 2
    assert bench.heard(9, 1)
    bench.hear(9)
    assert bench.system.closed == [101, 102]
    assert bench.system.bound == {}
    assert not bench.heard(9, 0)
    assert bench.position() == 4


def test_rejoin_works() -> None:
    bench = Qemu11ClientSetup().hear(4, (-1, MEMORY_FD), (9, 10), 9, (9, 12))
    assert bench.heard(9, 0)
    assert not bench.heard(9, 1)
    bench.hear(9)
    assert not bench.heard(9, 0)


def test_second_leave_is_a_fault() -> None:
    assert Qemu11ClientSetup().hear(4, (-1, MEMORY_FD), (9, 10), 9).fault(9) == 90
    repaired = Qemu11ClientSetup(Quirk.LEAVE_TWICE_FAULT).hear(4, (-1, MEMORY_FD), (9, 10), 9, 9)
    assert repaired.position() == 4


def test_minus_one_alone_is_a_fault() -> None:
    assert Qemu11ClientSetup().fault(-1) == 64
    repaired = Qemu11ClientSetup(Quirk.MINUS_ONE_UNCHECKED).hear(-1)
    assert repaired.warnings() == ["server sent -1 without a descriptor"]


def test_every_descriptor_leaks_once() -> None:
    bench = Qemu11ClientSetup().hear(4, (-1, MEMORY_FD), (9, 10), (9, 11))
    assert bench.system.closed == []
    repaired = Qemu11ClientSetup(Quirk.DESCRIPTOR_LEAK).hear(4, (-1, MEMORY_FD), (9, 10), (9, 11))
    assert repaired.system.closed == [MEMORY_FD, 10, 11]


def test_no_descriptors_left() -> None:
    bench = Qemu11ClientSetup()
    bench.system.full = True
    bench.hear((9, 10))
    assert bench.warnings() == ["could not allocate file descriptor"]
    assert not bench.heard(9)


def test_memory_resets_the_largest_peer_then_maps_then_counts() -> None:
    bench = Qemu11ClientSetup().hear(4, (9, 10), (-1, MEMORY_FD))
    assert not bench.heard(9)  # beyond the largest peer seen since
    assert bench.hear((12, 11)).heard(9)
    assert bench.system.maps == 1
    small = Qemu11ClientSetup(memory_bytes=4096)
    with pytest.raises(DeviceExitError, match=r"\(1048576 > 4096\)") as caught:
        small.hear((-1, MEMORY_FD))
    assert caught.value.status == 255
    assert small.position() == ALL_ONES
    assert (small.system.maps, small.device.memory, small.client.memory_descriptor) == (0, None, 0)


def test_memory_step_by_step() -> None:
    """Largest peer 0, size, map, publish, record: what each step of the system finds done, and what not yet."""
    bench = Qemu11ClientSetup(vectors=3).hear(4, (9, 10))
    steps: list[tuple[object, ...]] = []

    def look(step: str) -> None:
        steps.append((step, bench.client.max_peer, bench.device.memory is not None, bench.client.memory_descriptor))

    bench.system.on_size, bench.system.on_map = lambda: look("size"), lambda: look("map")
    bench.system.mappable = False
    assert bench.fault((-1, MEMORY_FD)) == 34
    assert steps == [("size", 0, False, 0), ("map", 0, False, 0)]
    look("after a fault")
    bench.system.mappable = True
    bench.hear((9, 11), (-1, MEMORY_FD))
    look("after")
    assert steps[2:] == [
        ("after a fault", 0, False, 0),
        ("size", 0, False, 0),
        ("map", 0, False, 0),
        ("after", 0, True, 103),
    ]
    assert not bench.heard(9)
    bench.hear((9, 12))
    assert bench.client.max_peer == 9


def test_a_second_memory_forgets_the_largest_peer_too() -> None:
    bench = Qemu11ClientSetup().hear((-1, MEMORY_FD), (9, 10))
    assert bench.heard(9)
    assert not bench.hear((-1, MEMORY_FD)).heard(9)


def test_memory_again_maps_again() -> None:
    bench = Qemu11ClientSetup().hear((-1, MEMORY_FD), (-1, MEMORY_FD))
    assert bench.system.maps == 2
    repaired = Qemu11ClientSetup(Quirk.MEMORY_REMAP).hear((-1, MEMORY_FD), (-1, MEMORY_FD))
    assert repaired.system.maps == 1
    assert repaired.warnings() == ["server sent shared memory twice"]


def test_larger_memory_shows_its_first_bytes() -> None:
    bench = Qemu11ClientSetup(memory_bytes=4 * MIB).hear((-1, MEMORY_FD))
    assert bench.device.memory is not None
    assert len(bench.device.memory) == MIB
    larger = bytearray(4 * MIB)
    larger[0] = 7
    bench.device.set_memory(memoryview(larger))
    assert bench.device.bar_read(2, 0, 1) == 7


def test_order_defines_the_vector() -> None:
    bench = Qemu11ClientSetup(vectors=3).hear((-1, MEMORY_FD), (9, 10))
    assert [bench.heard(9, vector) for vector in range(3)] == [True, False, False]
    assert [bench.hear((9, 11)).heard(9, vector) for vector in range(2)] == [True, True]
    assert [bench.device.peers.line(9, vector) for vector in range(2)] == [101, 102]  # as they came, after the memory


def test_more_vectors_than_the_device_has() -> None:
    assert Qemu11ClientSetup(vectors=1).hear((9, 10)).fault((9, 11)) == 72
    repaired = Qemu11ClientSetup(Quirk.VECTOR_OVERFLOW, vectors=1).hear((9, 10), (9, 11))
    assert repaired.warnings() == ["Too many eventfd received, device has 1 vectors"]
    assert 101 in repaired.system.closed


def test_largest_peer_never_shrinks() -> None:
    bench = Qemu11ClientSetup().hear((-1, MEMORY_FD), (3, 10), (9, 11), 9)
    assert bench.client.max_peer == 9
    bench = Qemu11ClientSetup().hear((-1, MEMORY_FD), (9, 10), (3, 11))
    assert bench.client.max_peer == 9
    assert bench.heard(9)
    bench.hear((5, 12), 3, 5)
    assert bench.client.max_peer == 9
    assert bench.heard(9)


def test_own_vectors_are_watched() -> None:
    bench = Qemu11ClientSetup().hear(4, (-1, MEMORY_FD), (9, 10), (4, 11), (4, 12), (9, 13), (3, 14))
    assert bench.system.watches == [(0, 102), (1, 103)]
    first = Qemu11ClientSetup().hear(4, (4, 11), (4, 12), (9, 10))
    assert first.system.watches == [(0, 100), (1, 101)]
    renamed = Qemu11ClientSetup().hear(4, (4, 11), 9, (9, 12), (4, 13))
    assert renamed.system.watches == [(0, 100), (0, 101)]


def test_own_vectors_before_the_own_id_are_lost() -> None:
    bench = Qemu11ClientSetup().hear((4, 10), (4, 11), (-1, MEMORY_FD), 4)
    assert bench.system.watched == {}
    assert bench.position() == ALL_ONES
    assert bench.system.closed == [100, 101]
    repaired = Qemu11ClientSetup(Quirk.EARLY_OWN_VECTORS).hear((4, 10), (4, 11), (-1, MEMORY_FD), 4)
    assert repaired.system.watched == {0: 100, 1: 101}
    assert repaired.position() == 4


def test_any_order_is_accepted() -> None:
    bench = Qemu11ClientSetup().hear((9, 10), 4, (4, 11), (-1, MEMORY_FD), (4, 12))
    assert bench.position() == 4
    assert sorted(bench.system.watched) == [0, 1]


def test_server_that_closes_is_not_noticed() -> None:
    bench = Qemu11ClientSetup().hear(4, (-1, MEMORY_FD), (9, 10))
    bench.client.server_closed()
    assert bench.heard(9)
    assert bench.position() == 4


def test_own_eventfd_that_cannot_be_watched() -> None:
    bench = Qemu11ClientSetup().hear(4)
    bench.system.unwatchable = True
    with pytest.raises(DeviceExitError, match="creating eventfd for eventfd 100 failed") as caught:
        bench.hear((4, 10))
    assert caught.value.status == 255


def test_ioeventfd_is_bound_where_no_doorbell_is() -> None:
    bench = Qemu11ClientSetup(ioeventfd=True).hear(4, (-1, MEMORY_FD), (9, 10), (9, 11))
    assert bench.system.bound == {(0x0C, 9 << 16): 101, (0x0C, 9 << 16 | 1): 102}
    repaired = Qemu11ClientSetup(Quirk.IOEVENTFD_UNBOUND, ioeventfd=True).hear((9, 10))
    base = repaired.device.config.bar_address(0)
    assert base is not None
    assert repaired.system.bound == {(base + 12, 9 << 16): 100}


def test_ioeventfd_matches_all_32_bits_and_may_fail() -> None:
    bench = Qemu11ClientSetup(ioeventfd=True)
    bench.system.unbindable = True
    bench.hear((9, 10))
    assert set(bench.system.bound) == {(0x0C, 9 << 16)}
    assert bench.warnings() == ["ivshmem: ioeventfd not available"]
    assert bench.heard(9)


def test_unplug_leaks() -> None:
    bench = Qemu11ClientSetup().hear(4, (-1, MEMORY_FD), (9, 10), (4, 11))
    assert sorted(bench.client.unplug()) == [100, 101, 102]
    assert bench.system.closed == []
    repaired = Qemu11ClientSetup(Quirk.UNPLUG_LEAK).hear(4, (-1, MEMORY_FD), (9, 10), (4, 11))
    assert repaired.client.unplug() == ()
    assert sorted(repaired.system.closed) == [100, 101, 102]


def test_unplug_before_the_memory_is_a_fault() -> None:
    with pytest.raises(ModelledFault) as caught:
        Qemu11ClientSetup().hear(4).client.unplug()
    assert caught.value.row == 93
    assert Qemu11ClientSetup(Quirk.UNPLUG_EARLY_FAULT).hear(4).client.unplug() == ()
