"""nodes.device.v2: configuration space, registers, one-shot, State, rights, of each profile."""

from __future__ import annotations

import pytest

from nodes.device import driver
from nodes.device.devices import make_device
from nodes.device.effects import DeviceWarning, IntxPulse
from nodes.device.msix import MsixMessage
from nodes.device.profiles import PROFILES, profile
from nodes.device.v2.device import IvshmemV2
from nodes.device.v2.profiles import ProfileV2
from nodes.device.v2.sections import ForbiddenStoreError, SectionLayout, Sections
from nodes.device.variants import make_variant
from nodes.errors import GuestError, RemoteProtocolError, UsageError
from nodes.wire.v2.protocol import DomainNumbers

NAMES = [name for name, made in PROFILES.items() if isinstance(made, ProfileV2)]
WITH_MSIX = [name for name in NAMES if profile(name).msix]
OUTPUT_BYTES = 8192
SIZE_BYTES = 1 << 16
ID, MAXIMUM_PEERS, CONTROL, DOORBELL, STATE = 0x00, 0x04, 0x08, 0x0C, 0x10


class Link:
    """Devices of one domain in one memory; a ring interrupts its target at once."""

    def __init__(self, name, *, peers=3, vectors=2, protocol=0x0001, size_bytes=SIZE_BYTES):
        self.memory = memoryview(bytearray(size_bytes))
        self.devices = {}
        self.rung = []
        for peer in range(peers):
            made = make_device(profile(name), vectors=vectors, ring=self.ring)
            assert isinstance(made, IvshmemV2)
            made.initialize(DomainNumbers(peers, vectors, protocol, OUTPUT_BYTES))
            made.set_peer(peer)
            made.set_memory(self.memory)
            self.devices[peer] = made
        for made in self.devices.values():
            for peer in range(peers):
                for vector in range(vectors):
                    made.connect(peer, vector)

    def ring(self, to, vector):
        self.rung.append((to, vector))
        if to in self.devices:
            self.devices[to].interrupt(vector, 1)

    def probe(self):
        for made in self.devices.values():
            driver.probe(made)
        return self

    def interrupts(self):
        """How many messages or pulses each device has sent, by (peer, vector); then forgets them."""
        sent = []
        for peer, made in self.devices.items():
            sent += [(peer, getattr(each, "vector", 0)) for each in made.effects if not isinstance(each, DeviceWarning)]
            made.effects.clear()
        return sent


def test_the_profiles():
    assert NAMES == ["qemu-v2", "jailhouse-v2", "jailhouse-v2-intx"]


@pytest.mark.parametrize("name", NAMES)
def test_identity_and_protocol(name):
    made = Link(name, peers=2, protocol=0xC003).probe().devices[1]
    assert made.config_read(0x00, 4) == 0x4106_110A
    assert made.config_read(0x08, 4) == 0xFF_C003_00
    assert made.config_read(0x2C, 4) == (0x1100_1AF4 if name == "qemu-v2" else 0x4106_110A)  # S says the latter
    made.reset()
    assert made.config_read(0x08, 4) == 0xFF_C003_00


@pytest.mark.parametrize(("name", "at", "length"), [("qemu-v2", 0x4C, 0x18), ("jailhouse-v2", 0x40, 0x20)])
def test_the_vendor_capability(name, at, length):
    made = Link(name).probe().devices[0]
    assert made.config_read(0x34, 1) == at
    assert made.config_read(at, 1) == 0x09
    assert made.config_read(at + 2, 1) == length
    assert made.config_read(at + 3, 1) == 0
    assert made.config_read(at + 4, 4) == 4096
    assert made.config_read(at + 8, 4) == SIZE_BYTES - 4096 - 3 * OUTPUT_BYTES
    assert made.config_read(at + 16, 4) == OUTPUT_BYTES
    made.config_write(at + 4, 4, 0xFFFF_FFFF)
    assert made.config_read(at + 4, 4) == 4096
    made.config_write(at + 3, 1, 0xFF)
    assert made.config_read(at + 3, 1) == 1
    made.reset()
    assert made.config_read(at + 3, 1) == (name == "qemu-v2")
    assert (2 in made.config.bars) is (name == "qemu-v2")


def test_what_jailhouse_has_of_configuration_space():
    made = Link("jailhouse-v2").devices[0]
    assert made.config_read(0x80, 4) == 0xFFFF_FFFF
    assert made.config_read(0x60, 1) == 0x11
    assert made.config.bars[1].size_bytes == 0x200
    with pytest.raises(GuestError, match="refuses a write"):
        made.config_write(0x80, 4, 0)
    assert made.config_read(0x04, 2) == 0
    assert Link("qemu-v2").devices[0].config_read(0x04, 2) == 0


@pytest.mark.parametrize("name", NAMES)
def test_registers(name):
    made = Link(name).probe().devices[2]
    assert made.bar_read(0, ID, 4) == 2
    assert made.bar_read(0, MAXIMUM_PEERS, 4) == 3
    assert made.bar_read(0, CONTROL, 4) == 1
    made.bar_write(0, CONTROL, 4, 0xFFFF_FFFE)
    assert made.bar_read(0, CONTROL, 4) == 0
    assert made.bar_read(0, DOORBELL, 4) == 0
    made.bar_write(0, ID, 4, 7)
    assert made.bar_read(0, ID, 4) == 2
    made.bar_write(0, STATE, 4, 0x1234_5678)
    assert made.bar_read(0, STATE, 4) == 0x1234_5678
    assert made.sections.state(2) == 0x1234_5678
    assert made.bar_read(0, STATE, 2) == (0x5678 if name == "qemu-v2" else 0)  # S: only 32 bits
    assert made.bar_read(0, 0x14, 4) == 0


def test_the_forks_alias_and_its_8_bits_of_a_vector():
    link = Link("qemu-v2").probe()
    link.devices[0].bar_write(0, 0x100 + DOORBELL, 4, 1 << 16 | 0x101)
    assert link.rung == [(1, 1)]
    link = Link("jailhouse-v2").probe()
    link.devices[0].bar_write(0, 0x100 + DOORBELL, 4, 1 << 16)
    link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16 | 0x101)
    assert link.rung == []


@pytest.mark.parametrize("name", NAMES)
def test_a_state_write_interrupts_all_others_once_if_it_differs(name):
    link = Link(name).probe()
    link.devices[1].bar_write(0, STATE, 4, 0)
    assert link.interrupts() == []
    link.devices[1].bar_write(0, STATE, 4, 3)
    assert link.interrupts() == [(0, 0), (2, 0)]
    link.devices[1].bar_write(0, STATE, 4, 3)
    assert link.interrupts() == []
    link.devices[1].reset()
    assert link.interrupts() == [(0, 0), (2, 0)]
    assert link.devices[0].sections.state(1) == 0
    link.devices[1].reset()
    assert link.interrupts() == []


@pytest.mark.parametrize("name", NAMES)
def test_interrupts_are_off_after_reset_and_a_ring_is_then_lost(name):
    link = Link(name)
    for made in link.devices.values():
        made.config_write(0x04, 2, 6)
    link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16)
    assert link.interrupts() == []
    assert link.devices[1].lost_doorbells == 1
    link.probe()
    assert link.interrupts() == []
    link.devices[1].bar_write(0, CONTROL, 4, 0)
    link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16)
    link.devices[0].bar_write(0, STATE, 4, 9)
    assert link.interrupts() == [(2, 0)]
    assert link.devices[1].lost_doorbells == 3
    link.devices[1].bar_write(0, CONTROL, 4, 1)
    assert link.interrupts() == []


@pytest.mark.parametrize("name", NAMES)
def test_one_shot_gives_one_interrupt_until_the_control_is_written(name):
    link = Link(name).probe()
    made = link.devices[1]
    made.config_write(made.profile.vendor_capability + 3, 1, 1)
    for _ in range(5):
        link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16)
    assert link.interrupts() == [(1, 0)]
    assert made.bar_read(0, CONTROL, 4) == 0
    made.bar_write(0, CONTROL, 4, 1)
    for _ in range(3):
        link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16)
    assert link.interrupts() == [(1, 0)]
    made.config_write(made.profile.vendor_capability + 3, 1, 0)
    made.bar_write(0, CONTROL, 4, 1)
    for _ in range(3):
        link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16)
    assert link.interrupts() == [(1, 0)] * 3


@pytest.mark.parametrize("name", WITH_MSIX)
def test_fires_says_whether_an_interrupt_is_sent_at_once(name):
    made = Link(name).probe().devices[0]
    assert made.fires == [True, True]
    made.bar_write(0, CONTROL, 4, 0)
    assert made.fires == [False, False]
    made.bar_write(0, CONTROL, 4, 1)
    made.config_write(made.profile.vendor_capability + 3, 1, 1)
    assert made.fires == [False, False]
    made.config_write(made.profile.vendor_capability + 3, 1, 0)
    assert made.fires == [True, True]


def test_a_masked_vector_pends_in_the_fork_and_is_lost_in_jailhouse():
    for name, pended, lost in (("qemu-v2", 1, 0), ("jailhouse-v2", 0, 1)):
        link = Link(name).probe()
        made = link.devices[1]
        driver.set_mask(made, 1, masked=True)
        link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16 | 1)
        assert (made.pended_doorbells, made.lost_doorbells) == (pended, lost)
        driver.set_mask(made, 1, masked=False)
        assert link.interrupts() == [(1, 1)] * pended


def test_effects_are_messages_or_pulses():
    link = Link("jailhouse-v2-intx").probe()
    link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16 | 1)
    assert list(link.devices[1].effects) == [IntxPulse()]
    assert link.devices[1].config_read(0x06, 2) & 8 == 0
    link.devices[1].config_write(0x04, 2, 6 | 1 << 10)
    link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16 | 1)
    assert link.devices[1].lost_doorbells == 1
    link = Link("jailhouse-v2").probe()
    link.devices[0].bar_write(0, DOORBELL, 4, 1 << 16 | 1)
    assert [type(each) for each in link.devices[1].effects] == [MsixMessage]


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_that_leaves_interrupts_those_that_stay(name):
    link = Link(name).probe()
    del link.devices[1]
    for made in link.devices.values():
        made.disconnect(1)
        made.disconnect(1)
    assert link.interrupts() == [(0, 0), (2, 0)]


def test_a_forbidden_store_names_offset_and_owner_and_changes_nothing():
    link = Link("qemu-v2").probe()
    made = link.devices[1]
    layout = made.sections.layout
    for offset, owner in (
        (4, "the State Table"),
        (layout.output(0).start, "the output section of peer 0"),
        (layout.output(2).start + 8, "the output section of peer 2"),
    ):
        made.bar_write(2, offset, 4, 0xFFFF_FFFF)
        (warning,) = made.effects
        made.effects.clear()
        assert warning.text == f"peer 1 stores 4 bytes at offset {offset:#x}: {owner} is read-only for it"
        made.bar_write(2, offset, 4, 0xFFFF_FFFF)  # of each section once
        assert not made.effects
    assert made.forbidden_stores == 6
    assert not any(link.memory)
    made.bar_write(2, layout.output(1).start, 4, 0x0403_0201)
    made.bar_write(2, layout.shared.start, 4, 0x0403_0201)
    assert made.bar_read(2, layout.output(1).start, 4) == 0x0403_0201
    assert bytes(link.devices[0].sections.output(1)[:4]) == b"\1\2\3\4"
    assert bytes(link.devices[2].sections.shared[:4]) == b"\1\2\3\4"


@pytest.mark.parametrize("name", NAMES)
def test_views_of_the_memory_have_the_rights_of_the_peer(name):
    sections = Link(name).devices[1].sections
    assert sections.memory.readonly
    assert [sections.output(peer).readonly for peer in range(3)] == [True, False, True]
    assert not sections.shared.readonly
    with pytest.raises(ForbiddenStoreError, match=r"peer 1 stores 8 bytes at offset 0x0: the State Table"):
        sections.store(0, bytes(8))
    end = sections.layout.output(1).stop
    with pytest.raises(ForbiddenStoreError, match="the output section of peer 1 is read-only"):
        sections.store(end - 4, bytes(8))
    with pytest.raises(GuestError, match=r"peer 3 has no output section"):
        sections.output(3)


@pytest.mark.parametrize(
    ("size_bytes", "peers", "output_bytes", "words"),
    [(8192, 2, 4096, "shared memory too small"), (1 << 20, 2, 100, "whole pages")],
)
def test_a_layout_that_does_not_fit(size_bytes, peers, output_bytes, words):
    with pytest.raises(RemoteProtocolError, match=words):
        SectionLayout(size_bytes, peers, output_bytes)


def test_every_offset_has_one_owner():
    layout = SectionLayout(1 << 16, 3, 8192)
    writers = [
        [peer for peer in range(3) if layout.may_store(peer, offset, 1)] for offset in range(0, layout.size_bytes, 512)
    ]
    for at, writing in enumerate(writers):
        name = layout.place(at * 512).name
        expected = {"the State Table": [], "the read/write section": [0, 1, 2]}
        assert writing == expected.get(name, [int(name[-1])] if name[-1].isdigit() else None), name
    assert layout.place(1 << 16).name == "nothing"
    assert SectionLayout(1 << 20, 4096, 0).table_bytes == 16384


def test_numbers_that_a_device_cannot_have():
    made = make_device(profile("jailhouse-v2"), vectors=2, ring=lambda to, vector: None)
    with pytest.raises(RemoteProtocolError, match="the server gives 1 vectors, this device has 2"):
        made.initialize(DomainNumbers(2, 1, 0, 0))
    with pytest.raises(RemoteProtocolError, match="13 peers: a jailhouse-v2 has at most 12"):
        made.initialize(DomainNumbers(13, 2, 0, 0))


def test_a_device_of_version_1_has_no_state():
    made = make_device(profile("qemu-doorbell"), vectors=1, ring=lambda to, vector: None)
    with pytest.raises(GuestError, match="no register State: it is not of ivshmem v2"):
        driver.set_state(made, 1)
    assert Sections.of(SectionLayout(8192, 2, 0), 0, memoryview(bytearray(8192))).layout.shared_bytes == 4096


def test_a_variant_whose_capabilities_overlap_is_none():
    made = make_variant(profile("qemu-v2"), {"msix_capability": 0x50})
    with pytest.raises(UsageError, match="the capability MSI-X at 0x50 overlaps another one"):
        make_device(made, vectors=1, ring=lambda to, vector: None)
    assert make_device(make_variant(profile("qemu-v2"), {"revision": 2}), ring=lambda *_: None).config_read(8, 1) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_doorbell_is_judged_by_what_was_in_force_when_it_was_rung(name):
    """The guest changes Interrupt Control between the ring and the drain; only what was in force before counts."""
    device, control = Link(name).probe().devices[0], CONTROL
    held = {}
    device.rung = lambda: dict(held)

    def drain(count):
        held.clear()
        device.effects.clear()
        lost = device.lost_doorbells
        device.interrupt(0, count)
        return len(device.effects), device.lost_doorbells - lost

    device.bar_write(0, control, 4, 0)
    held[0] = 2  # rung while disabled
    device.bar_write(0, control, 4, 1)
    held[0] = 5  # three more, rung while enabled
    assert drain(5) == (1, 2)
    held[0] = 1  # rung while enabled
    device.bar_write(0, control, 4, 0)
    assert drain(1) == (1, 0)
    held[0] = 1
    device.bar_write(0, control, 4, 1)
    device.bar_write(0, control, 4, 0)
    device.bar_write(0, control, 4, 1)
    assert drain(1) == (0, 1)
    device.config_write(device.profile.vendor_capability + 3, 1, 1)
    held[0] = 3
    assert device.bar_read(0, control, 4) == 0  # in one-shot mode the first of them has cleared it
    held[0] = 4
    device.bar_write(0, control, 4, 1)
    assert drain(4) == (1, 1)
    assert device.bar_read(0, control, 4) == 1


def test_the_mask_that_was_in_force_when_it_was_rung_decides_in_jailhouse():
    device = Link("jailhouse-v2").probe().devices[0]
    held = {0: 1}
    device.rung = lambda: dict(held)
    device.bar_write(0, CONTROL, 4, 1)
    held.clear()
    device.interrupt(0, 1)
    device.effects.clear()
    driver.set_mask(device, 0, masked=True)
    held[0] = 1
    driver.set_mask(device, 0, masked=False)
    lost = device.lost_doorbells
    device.interrupt(0, 1)
    assert (list(device.effects), device.lost_doorbells - lost) == ([], 1)
