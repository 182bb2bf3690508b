"""Any actions of guests, servers and eventfds: only declared errors are raised, and no doorbell rings another line."""

from __future__ import annotations

import contextlib
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.device.devices import make_device
from nodes.device.driver import probe, set_mask
from nodes.device.effects import DeviceWarning, IntxLevel, IntxPulse
from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import MsixMessage
from nodes.device.pci import assign_resources
from nodes.device.profile import Profile, Quirk
from nodes.device.profiles import PROFILES, profile
from nodes.device.properties import DeviceExitError, Properties, realize
from nodes.device.qemu_1_1.client import Qemu11Client
from nodes.device.v2.device import IvshmemV2
from nodes.errors import GuestError, ModelledFault, RemoteProtocolError
from nodes.wire.v2.protocol import DomainNumbers

VECTORS = 2
MEMORY_BYTES = 4096
OFFSETS = st.one_of(st.integers(-1, 40), st.integers(0xF8, 0x108), st.integers(0x7F8, 0x810), st.integers(0, 1 << 20))
SIZES = st.sampled_from((0, 1, 2, 3, 4, 8))
VALUES = st.one_of(st.integers(0, 1 << 20), st.integers(0, (1 << 64) - 1))
PEERS = st.one_of(st.integers(0, 4), st.integers(-2, 70_000))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("config_read"), OFFSETS, SIZES),
        st.tuples(st.just("config_write"), OFFSETS, SIZES, VALUES),
        st.tuples(st.just("bar_read"), st.integers(-1, 6), OFFSETS, SIZES),
        st.tuples(st.just("bar_write"), st.integers(-1, 6), OFFSETS, SIZES, VALUES),
        st.tuples(st.just("bar_write"), st.just(0), st.just(12), st.just(4), st.integers(0, 5 << 16)),
        st.tuples(st.just("config_write"), st.just(4), st.just(2), st.sampled_from((2, 6, 7))),
        st.tuples(st.just("config_write"), st.just(0x42), st.just(2), st.sampled_from((0, 0x8000, 0xC000))),
        st.tuples(st.just("connect"), PEERS, st.integers(-1, 4)),
        st.tuples(st.just("disconnect"), PEERS),
        st.tuples(st.just("set_peer"), PEERS),
        st.tuples(st.just("interrupt"), st.integers(-1, 3), st.integers(1, 1 << 40)),
        st.tuples(st.just("reset")),
    ),
    max_size=40,
)
DECLARED = (GuestError, ModelledFault, RemoteProtocolError)


def made_of(made: Profile, rung: list[tuple[int, int]]) -> Ivshmem:
    device = make_device(
        made,
        vectors=made.fixed_vectors or VECTORS,
        ring=lambda peer, vector: rung.append((peer, vector)),
        size_bytes=MEMORY_BYTES,
    )
    if isinstance(device, IvshmemV2):
        device.initialize(DomainNumbers(4, VECTORS, 1, 0))
        device.set_peer(1)
    device.set_memory(memoryview(bytearray(MEMORY_BYTES)))
    assign_resources(device.config.bars.values(), device.config_write)
    return device


@pytest.mark.parametrize("made", PROFILES.values(), ids=lambda made: made.name)
@given(steps=STEPS)
def test_only_declared_errors_and_no_wrong_line(made: Profile, steps: list[tuple[object, ...]]) -> None:
    rung: list[tuple[int, int]] = []
    device = made_of(made, rung)
    connected: set[tuple[int, int]] = set()
    fires = device.fires
    mask = (1 << made.vector_bits) - 1
    for name, *arguments in steps:
        result = None
        with contextlib.suppress(*DECLARED):
            result = getattr(device, str(name))(*arguments)
            if name == "connect" and result:
                connected.add((int(str(arguments[0])), int(str(arguments[1]))))
            elif name == "disconnect":
                connected = {line for line in connected if line[0] != arguments[0]}
            elif name in ("config_read", "bar_read"):
                assert 0 <= result < 1 << 8 * int(str(arguments[-1]))
        assert set(rung) <= connected
        if name == "bar_write" and arguments[:3] == [0, 12, 4] and rung:
            value = int(str(arguments[3])) & 0xFFFF_FFFF
            assert rung in ([(value >> 16, value & mask)], [(value >> 16, value & 0xFFFF)])
        rung.clear()
        assert device.fires is fires
        assert all(isinstance(effect, MsixMessage | IntxLevel | IntxPulse | DeviceWarning) for effect in device.effects)
        levels = [effect.asserted for effect in device.effects if isinstance(effect, IntxLevel)]
        assert all(before != after for before, after in pairwise(levels))
    assert device.memory is not None
    assert len(device.memory) == MEMORY_BYTES


@given(values=st.lists(st.integers(0, (1 << 32) - 1), max_size=20), peers=st.sets(st.integers(0, 5), max_size=4))
def test_every_doorbell_is_rung_or_counted(values: list[int], peers: set[int]) -> None:
    rung: list[tuple[int, int]] = []
    device = made_of(profile("qemu-doorbell"), rung)
    for peer in peers:
        for vector in range(VECTORS):
            device.connect(peer, vector)
    for value in values:
        device.bar_write(0, 12, 4, value)
    expected = Counter(
        (value >> 16, value & 0xFF) for value in values if value >> 16 in peers and value & 0xFF < VECTORS
    )
    assert Counter(rung) == expected
    assert device.rung_doorbells == len(rung)
    assert device.rung_doorbells + device.ignored_doorbells == len(values)


@pytest.mark.parametrize("name", ["qemu-doorbell", "qemu-doorbell-kvm", "qemu-1.1", "qemu-1.1-intx", "acrn"])
@given(
    drains=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 600)), max_size=20),
    controls=st.lists(st.sampled_from((0, 0x8000, 0xC000)), max_size=20),
)
def test_every_drained_doorbell_is_accounted_for(name: str, drains: list[tuple[int, int]], controls: list[int]) -> None:
    """Delivered now, pending, or lost: each drain raises exactly one of the counts."""
    device = made_of(profile(name), [])
    device.bar_write(0, 0, 4, 0xFF)
    for (vector, count), control in zip(drains, controls, strict=False):
        if device.msix:
            device.config_write(0x42, 2, control)
            device.effects.clear()
        before = (device.pended_doorbells, device.lost_doorbells)
        fires = device.fires[vector]
        device.interrupt(vector, count)
        pended, lost = device.pended_doorbells - before[0], device.lost_doorbells - before[1]
        if device.msix is None:
            assert (pended, lost) == ((0, 0) if count & 0xFF else (0, count))
            assert device.registers.values["IntrStatus"] == count & 0xFF
        else:
            assert pended + lost == (0 if fires else count)
            assert 0 in (pended, lost)


@pytest.mark.parametrize("name", ["qemu-v2", "jailhouse-v2", "jailhouse-v2-intx"])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("drain"), st.integers(0, 1), st.integers(1, 600)),
            st.tuples(st.just("ring"), st.integers(0, 1), st.integers(1, 3)),
            st.tuples(st.just("enable"), st.integers(0, 1), st.just(0)),
            st.tuples(st.just("one-shot"), st.integers(0, 1), st.just(0)),
            st.tuples(st.just("mask"), st.integers(0, 1), st.integers(0, 1)),
        ),
        max_size=40,
    )
)
def test_every_doorbell_at_a_device_of_v2_is_accounted_for(name: str, steps: list[tuple[str, int, int]]) -> None:
    """Each drained doorbell is part of an interrupt, pending, or lost; while all are let through, none is lost."""
    device = made_of(profile(name), [])
    assert isinstance(device, IvshmemV2)
    probe(device)
    rung: dict[int, int] = {}
    device.rung = lambda: dict(rung)
    is_open = True
    for step, vector, value in steps:
        match step:
            case "ring":
                rung[vector] = rung.get(vector, 0) + value
            case "drain" if count := rung.pop(vector, 0) or value:
                before = device.pended_doorbells, device.lost_doorbells
                device.effects.clear()
                fires = device.fires[vector]
                device.interrupt(vector, count)
                pended, lost = device.pended_doorbells - before[0], device.lost_doorbells - before[1]
                assert 0 <= pended + lost <= count
                assert len(device.effects) > 0 or pended + lost == count
                assert not (is_open and (pended or lost))
                assert not (fires and (pended or lost))
            case "enable":
                device.bar_write(0, 8, 4, vector)
                is_open = False  # from here on, what decides is in more than one place
            case "one-shot":
                device.config_write(device.profile.vendor_capability + 3, 1, vector)
                is_open = False
            case "mask" if device.msix:
                set_mask(device, vector, masked=bool(value))
                is_open = False
    assert device.registers.values["Interrupt Control"] in (0, 1)


class NoSystem:
    """Everything works; descriptors count up."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.open: set[int] = set()
        self.next = 1000

    def size_bytes(self, descriptor: int) -> int:
        return self.memory_bytes

    def map(self, descriptor: int, size_bytes: int) -> memoryview | None:
        return memoryview(bytearray(self.memory_bytes))[:size_bytes]

    def duplicate(self, descriptor: int) -> int | None:
        self.next += 1
        self.open.add(self.next)
        return self.next

    def close(self, descriptor: int) -> None:
        self.open.discard(descriptor)

    def watch(self, vector: int, descriptor: int) -> bool:
        assert 0 <= vector < VECTORS
        return True

    def bind(self, address: int, value: int, descriptor: int) -> bool:
        return True

    def unbind(self, address: int, value: int, descriptor: int) -> None:
        """Nothing is held."""


MESSAGES = st.lists(
    st.tuples(
        st.one_of(st.integers(-1, 4), st.integers(-3, 100), st.integers(-(1 << 63), (1 << 63) - 1)),
        st.one_of(st.none(), st.integers(3, 9)),
    ),
    max_size=30,
)


@pytest.mark.parametrize("memory_bytes", [MEMORY_BYTES, 512])
@pytest.mark.parametrize("repaired", [False, True])
@given(messages=MESSAGES)
def test_any_messages_of_a_2012_server(
    repaired: bool, memory_bytes: int, messages: list[tuple[int, int | None]]
) -> None:
    made = profile("qemu-1.1").without(*(Quirk if repaired else ()))
    rung: list[tuple[int, int]] = []
    device = Ivshmem(
        made, vectors=VECTORS, ring=lambda peer, vector: rung.append((peer, vector)), size_bytes=MEMORY_BYTES
    )
    assign_resources(device.config.bars.values(), device.config_write)
    system = NoSystem(memory_bytes)
    client = Qemu11Client(device, system)
    for number, descriptor in messages:
        try:
            client.receive(number, descriptor)
        except DeviceExitError:
            assert memory_bytes < MEMORY_BYTES
            return
        except ModelledFault as fault:
            if repaired:
                raise AssertionError(f"a repaired defect showed: {fault}") from fault
            return
        assert all(peer <= client.max_peer and device.peers.vectors(peer) <= VECTORS for peer in device.peers)
        assert 0 <= device.bar_read(0, 8, 4) <= 0xFFFF_FFFF
    if repaired and device.memory is not None:
        client.unplug()
        assert not system.open


@given(data=st.lists(st.tuples(st.binary(max_size=12), st.lists(st.integers(3, 9), max_size=3)), max_size=20))
def test_any_bytes_from_a_2012_server(data: list[tuple[bytes, list[int]]]) -> None:
    device = made_of(profile("qemu-1.1"), [])
    client = Qemu11Client(device, NoSystem(MEMORY_BYTES))
    with contextlib.suppress(ModelledFault):
        for part, descriptors in data:
            client.read(part, descriptors)


@given(
    size=st.text(max_size=8), role=st.text(max_size=8), vectors=st.integers(-5, 70), msi=st.booleans(), io=st.booleans()
)
def test_any_properties_start_or_are_refused(size: str, role: str, vectors: int, msi: bool, io: bool) -> None:
    for chosen in (role, None):
        properties = Properties("unix:/x", size, vectors, io, msi, None, chosen)
        with contextlib.suppress(DeviceExitError, ModelledFault):
            plan = realize(profile("qemu-1.1"), properties)
            assert plan.size_bytes & (plan.size_bytes - 1) == 0
