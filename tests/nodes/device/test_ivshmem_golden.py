"""Facts read off a real QEMU 7.2 (tests/golden/*.json) hold for the device of the matching profile."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from nodes.device.effects import DeviceWarning
from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import MsixMessage
from nodes.device.pci import assign_resources
from nodes.device.profiles import profile, profile_by_access
from nodes.errors import RemoteProtocolError, UsageError
from nodes.qemu_versions import QemuVersion

GOLDEN = Path(__file__).parents[2] / "golden"
SIZES = {"b": 1, "w": 2, "l": 4, "q": 8}
MIB = 1 << 20


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def device(
    name: str = "qemu-doorbell",
    *,
    vectors: int = 1,
    peer: int | None = 0,
    memory_bytes: int = 4 * MIB,
    boot: bool = True,
    rung: Counter[tuple[int, int]] | None = None,
) -> Ivshmem:
    """A device in the state in which a real one is after realize, and after firmware with ``boot``.

    The recordings are of QEMU 7.2 and qtest; the profile with KVM has accesses of its own.
    """
    counts = Counter[tuple[int, int]]() if rung is None else rung
    kind = profile(name)
    if name in ("qemu-doorbell", "qemu-plain"):
        kind = profile_by_access(kind, "qtest", QemuVersion(7, 2))
    made = Ivshmem(kind, vectors=vectors, ring=lambda p, v: counts.update([(p, v)]))
    if peer is not None and made.profile.server:
        made.set_peer(peer)
    made.set_memory(memoryview(bytearray(memory_bytes)))
    if boot:
        assign_resources(made.config.bars.values(), made.config_write)
    return made


def config_hex(made: Ivshmem) -> str:
    return b"".join(made.config_read(at, 4).to_bytes(4, "little") for at in range(0, 256, 4)).hex()


CONFIGS = golden("pci_config")
REALIZE_ERRORS = CONFIGS.pop("realize_errors")


@pytest.mark.parametrize("case", CONFIGS)
def test_configuration_space(case: str) -> None:
    facts = CONFIGS[case]
    plain = case.endswith("plain")
    vectors = 0 if plain else int(case.rpartition("=")[2])
    name = "qemu-plain" if plain else "qemu-doorbell"
    made = device(name, vectors=vectors, memory_bytes=MIB if plain else 4 * MIB, boot=False)
    assert config_hex(made) == facts["reset_hex"]
    for bar in facts["bars"]:
        at = 0x10 + 4 * bar["bar"]
        for half, raw in enumerate((bar["raw_lo"], bar["raw_hi"])):
            if raw is not None:
                made.config_write(at + 4 * half, 4, 0xFFFF_FFFF)
                assert made.config_read(at + 4 * half, 4) == raw
        assert made.config.bars[bar["bar"]].size_bytes == bar["size"]
    assert sorted(made.config.bars) == [bar["bar"] for bar in facts["bars"]]


@pytest.mark.parametrize("case", [case for case in CONFIGS if "write_mask_hex" in CONFIGS[case]])
def test_write_mask(case: str) -> None:
    """A write of ones and one of zeros differ in exactly the bits in which they did on the real one."""
    made = device(vectors=int(case.rpartition("=")[2]), boot=False)
    expected = bytes.fromhex(CONFIGS[case]["write_mask_hex"])
    for at in range(256):
        made.config_write(at, 1, 0xFF)
        ones = made.config_read(at, 1)
        made.config_write(at, 1, 0)
        assert ones ^ made.config_read(at, 1) == expected[at], f"byte {at:#x}"
    assert made.config.write_mask == expected


@pytest.mark.parametrize("case", [case for case in CONFIGS if "q35" not in case])
def test_configuration_space_when_mapped(case: str) -> None:
    """The BARs where the real one's firmware (the recording's) put them, command as it set it."""
    facts = CONFIGS[case]
    plain = case.endswith("plain")
    made = device(
        "qemu-plain" if plain else "qemu-doorbell",
        vectors=0 if plain else int(case.rpartition("=")[2]),
        memory_bytes=MIB if plain else 4 * MIB,
        boot=False,
    )
    mapped = bytes.fromhex(facts["mapped_hex"])
    for at in (0x10, 0x14, 0x18, 0x1C, 0x04):
        made.config_write(at, 4, int.from_bytes(mapped[at : at + 4], "little"))
    assert config_hex(made) == facts["mapped_hex"]
    for bar in made.config.bars.values():
        raw = int.from_bytes(mapped[bar.offset : bar.offset + 4], "little")
        assert made.config.bar_address(bar.index) == raw & ~0xF


REGISTERS = golden("registers")
REGISTER_CASES = {
    "doorbell/id0": ("qemu-doorbell", 0),
    "doorbell/id1": ("qemu-doorbell", 1),
    "plain": ("qemu-plain", 0),
}


def test_register_cases_are_all_covered() -> None:
    assert set(REGISTERS) == set(REGISTER_CASES)


@pytest.mark.parametrize("case", REGISTER_CASES)
def test_registers(case: str) -> None:
    name, peer = REGISTER_CASES[case]
    made = device(name, peer=peer)
    facts = REGISTERS[case]
    for step, value in (
        ("initial", None),
        ("after_write_ones", 0xFFFF_FFFF),
        ("second_read", None),
        ("after_write_zero", 0),
    ):
        offsets = [int(text, 0) for text in facts[step]]
        for offset in offsets:
            if value is not None:
                made.bar_write(0, offset, 4, value)
        read = {hex(offset): made.bar_read(0, offset, 4) for offset in offsets}
        assert read == facts[step], step


@pytest.mark.parametrize("case", REGISTER_CASES)
def test_sized_accesses(case: str) -> None:
    name, peer = REGISTER_CASES[case]
    made = device(name, peer=peer)
    (key,) = (key for key in REGISTERS[case] if key.startswith("sized_access"))
    mask, status = (int(text, 0) for text in re.findall(r"0x[0-9a-f]+", key))
    for row in REGISTERS[case][key]:
        made.bar_write(0, 0, 4, mask)
        made.bar_write(0, 4, 4, status)
        if row["op"].startswith("read"):
            assert made.bar_read(0, row["off"], row["size"]) == int(row["value"], 0), row
        else:
            made.bar_write(0, row["off"], row["size"], int(row["value"], 0))
        assert made.bar_read(0, 0, 4) == int(row["mask_after"], 0), row
        assert made.bar_read(0, 4, 4) == int(row["status_after"], 0), row


DOORBELLS = golden("doorbell")


def access(text: str) -> tuple[int, int, int] | None:
    """(offset, size, value) of a recorded case's first write."""
    peer = re.match(r"writel 12 <- peer(\w+) vec(\w+)", text)
    if peer:
        return 12, 4, int(peer[1], 0) << 16 | int(peer[2], 0)
    plain = re.match(r"write([bwlq]) (\w+) <- (\w+)", text)
    return (int(plain[2], 0), SIZES[plain[1]], int(plain[3].replace("_", ""), 0)) if plain else None


@pytest.mark.parametrize("case", DOORBELLS)
def test_doorbells(case: str) -> None:
    """Device 0 rings peer 1, as the recording's script did; what peer 1 heard is the same."""
    if case.startswith("mismatch"):
        server, own = (int(text) for text in re.findall(r"=(\d+)", case))
    else:
        server = own = int(case.rpartition("=")[2])
    rung = Counter[tuple[int, int]]()
    made = device(vectors=own, peer=0, rung=rung)
    for vector in range(min(server, own)):
        made.connect(1, vector)
    facts = DOORBELLS[case]
    if case.startswith("mismatch"):
        warned = 0
        for peer, vector in product((1, 0), range(server)):  # the recording's order: peers first, own last
            warned += not made.connect(peer, vector)
        for vector in range(server):
            made.bar_write(0, 12, 4, 1 << 16 | vector)
        assert {v: rung[1, int(v)] for v in facts["heard"]} == facts["heard"]
        assert [effect.text for effect in made.effects if isinstance(effect, DeviceWarning)] == [
            line.partition(": ")[2] for line in facts["stderr"].splitlines()
        ][: len(made.effects)]
        assert warned == facts["stderr"].count("Too many")
        return
    rows = facts["rows"]
    seen = 0
    for row in rows:
        write = access(row["case"])
        if row["case"].startswith("10 rings"):
            for _ in range(10):
                made.bar_write(0, 12, 4, 1 << 16)
        elif row["case"].startswith("readl"):
            assert made.bar_read(0, 12, 4) == 0
        elif write is not None:
            made.bar_write(0, *write)
        else:
            continue
        heard = {str(v): n for (p, v), n in rung.items() if p == 1}
        assert heard == row["heard_by_peer1"], row
        rung.clear()
        seen += 1
    assert seen >= 30
    after = {row["case"]: row for row in rows}
    made.disconnect(1)
    made.bar_write(0, 12, 4, 1 << 16)
    assert after["ring peer1 after it disconnected"]["alive"]
    assert not rung
    newcomer = after["new client id after peer1 left"]["id"]
    made.connect(newcomer, 0)
    made.bar_write(0, 12, 4, newcomer << 16)
    assert rung == {(newcomer, 0): after["ring new client"]["heard"]}


SIZED = golden("doorbell_sized")


@pytest.mark.parametrize("case", SIZED)
def test_sized_doorbells(case: str) -> None:
    rung = Counter[tuple[int, int]]()
    made = device(vectors=8, peer=1, rung=rung)
    for vector in range(8):
        made.connect(0, vector)
    for row in SIZED[case]:
        made.bar_write(0, row["off"], SIZES[row["op"][-1]], int(row["value"], 0))
        assert {str(v): n for (_, v), n in rung.items()} == row["peer0_heard"], row
        rung.clear()


POSITIONS = golden("ivposition")


@pytest.mark.parametrize("case", [case for case in POSITIONS if case.startswith("own id")])
def test_ivposition(case: str) -> None:
    made = device(peer=int(case.removeprefix("own id ")))
    assert made.bar_read(0, 8, 4) == int(POSITIONS[case], 0)


def test_ivposition_of_a_plain_device() -> None:
    assert device("qemu-plain").bar_read(0, 8, 4) == int(POSITIONS["plain"], 0)


BAR2 = golden("bar2")


@pytest.mark.parametrize("case", [case for case in BAR2 if case.startswith("server -l") and "2G" not in case])
def test_memory_bar(case: str) -> None:
    facts = BAR2[case]
    size = facts["shm_bytes"]
    bars = facts.get("bars") or (isinstance(facts.get("qemu"), dict) and facts["qemu"]["bars"])
    if not bars:
        assert facts["qemu"].startswith("exit 1")
        with pytest.raises(RemoteProtocolError, match=f"{size} bytes"):
            device(memory_bytes=size)
        return
    made = device(memory_bytes=size, boot=False)
    made.config_write(0x18, 4, 0xFFFF_FFFF)
    made.config_write(0x1C, 4, 0xFFFF_FFFF)
    assert (made.config_read(0x18, 4), made.config_read(0x1C, 4)) == (bars[2]["raw_lo"], bars[2]["raw_hi"])


def test_memory_is_little_endian_and_shared() -> None:
    memory = bytearray(4096)
    made = device(memory_bytes=4096)
    made.set_memory(memoryview(memory))
    memory[:4] = bytes.fromhex("01020304")
    assert made.bar_read(2, 0, 4) == int(BAR2["host bytes 01020304 guest readl"], 0)
    assert BAR2["initial content zero"] is True
    made.bar_write(2, 16, 4, int.from_bytes(b"hell", "little"))
    made.bar_write(2, 20, 1, ord("o"))
    assert memory[16:21].decode() == BAR2["guest0 write seen by client mmap"]


class MsixScript:
    """The recording's script: a device with 4 vectors; messages land in RAM at 0x2000 + 16 * vector."""

    def __init__(self, name: str) -> None:
        self.made = device(name, vectors=4)
        self.ram: dict[int, int] = {}
        for vector in range(4):
            self.made.connect(0, vector)

    def ring(self, *vectors: int) -> None:
        for vector in vectors:
            sent = len(self.made.effects)
            self.made.interrupt(vector, 1)
            if self.made.profile.name.endswith("kvm"):
                # KVM's irqfd gives the message to the interrupt controller, the recording looked at RAM.
                while len(self.made.effects) > sent:
                    self.made.effects.pop()

    def land(self) -> None:
        while self.made.effects:
            effect = self.made.effects.pop(0)
            assert isinstance(effect, MsixMessage)
            self.ram[effect.address] = effect.data

    def words(self) -> list[str]:
        self.land()
        return [hex(self.ram.get(0x2000 + 16 * vector, 0)) for vector in range(4)]

    def pba(self) -> str:
        return hex(self.made.bar_read(1, 0x800, 4))

    def both(self) -> list[Any]:
        return [self.words(), self.pba()]

    def control(self, value: int) -> str:
        self.made.config_write(0x42, 2, value)
        return hex(self.made.config_read(0x42, 2))

    def mask(self, vector: int, masked: bool) -> None:
        self.made.bar_write(1, 16 * vector + 12, 4, int(masked))

    def command(self, value: int) -> None:
        self.made.config_write(4, 2, value)

    def table(self) -> list[list[str]]:
        return [[hex(self.made.bar_read(1, 16 * v + 4 * w, 4)) for w in range(4)] for v in range(4)]


@pytest.mark.parametrize(("recording", "name"), [("msix", "qemu-doorbell"), ("msix_kvm_irqfd", "qemu-doorbell-kvm")])
def test_msix(recording: str, name: str) -> None:
    facts = golden(recording)
    script = MsixScript(name)
    made = script.made
    assert made.config.data[0x40:0x4C].hex() == facts["cap_hex"]
    assert script.table() == facts["reset"]["table"]
    assert script.pba() == facts["reset"]["pba"]
    script.ring(0)
    assert script.pba() == facts["ring v0 while MSI-X disabled -> pba"]
    assert script.control(0x8000) == facts["ctrl after write 0x8000"]
    assert script.pba() == facts["pba after enabling (was the early ring kept?)"]
    for vector in range(4):
        made.bar_write(1, 16 * vector, 4, 0x2000 + 16 * vector)
        made.bar_write(1, 16 * vector + 4, 4, 0)
        made.bar_write(1, 16 * vector + 8, 4, 0xC0DE_0000 + vector)
    script.ring(0, 1, 2, 3)
    assert script.pba() == facts["ring all 4 while all vectors masked -> pba"]
    assert script.words() == facts["ram before unmask"]
    script.mask(0, False)
    assert script.both() == facts["after unmask v0: ram, pba"]
    script.mask(2, False)
    assert script.both() == facts["after unmask v2: ram, pba"]
    script.ram[0x2000] = 0
    script.ring(0)
    assert script.both() == facts["ring v0 unmasked: ram, pba"]
    made.bar_write(1, 0x800, 4, 0)
    assert script.pba() == facts["pba after guest writes 0 to it"]
    made.bar_write(1, 0x800, 4, 0xFFFF_FFFF)
    assert script.pba() == facts["pba after guest writes ones"]
    script.ram[0x2000] = 0
    script.control(0xC000)
    script.ring(0)
    assert script.pba() == facts["function-masked ring v0: pba"]
    assert script.words() == facts["   ram"]
    script.control(0x8000)
    assert script.both() == facts["function unmask: ram,pba"]
    script.mask(0, True)
    script.ring(0, 0, 0)
    script.mask(0, False)
    assert script.both() == facts["3 rings masked then unmask: ram,pba"]
    script.control(0)
    assert script.pba() == facts["pba after MSI-X disable"]
    script.control(0x8000)
    assert script.pba() == facts["pba after re-enable"]
    script.ram[0x2000] = 0
    script.command(2)
    script.ring(0)
    assert script.both() == facts["ring v0 unmasked, bus master off: ram,pba"]
    script.command(6)
    assert script.both() == facts["then bus master on: ram,pba"]


@pytest.mark.parametrize(("recording", "name"), [("msix", "qemu-doorbell"), ("msix_kvm_irqfd", "qemu-doorbell-kvm")])
def test_msix_bar_and_reset(recording: str, name: str) -> None:
    facts = golden(recording)
    script = MsixScript(name)
    made = script.made
    script.control(0x8000)
    script.ring(1, 3)
    script.command(0)
    assert hex(made.bar_read(0, 8, 4)) == facts["readl BAR0+8 with memory decode off"]
    script.ring(3)
    script.command(6)
    assert script.pba() == facts["pba after ring v3 during mem decode off"] == "0xa"
    for word in range(4):
        made.bar_write(1, 4 * word, 4, 0xFFFF_FFFF)
    assert script.table()[0] == facts["entry0 after writing ones"]
    for offset, value in facts["BAR1 reads at odd places"].items():
        assert hex(made.bar_read(1, int(offset, 0), 4)) == value, offset
    made.bar_write(1, 0x40, 4, 1)
    assert hex(made.bar_read(1, 0x40, 4)) == facts["write past table (0x40) reads back"]
    made.bar_write(1, 0x900, 4, 1)
    assert hex(made.bar_read(1, 0x900, 4)) == facts["write 0x900 reads back"]
    made.bar_write(1, 8, 2, 0x1234)
    assert hex(made.bar_read(1, 8, 4)) == facts["16-bit write to data"]
    made.bar_write(1, 8, 1, 0x12)
    assert hex(made.bar_read(1, 8, 4)) == facts["8-bit write to data"]
    made.bar_write(1, 0, 8, 0x1111_1111_2222_2222)
    assert script.table()[0][:2] == facts["64-bit write entry0"]
    for word, value in enumerate((0x2030, 0, 0xC0DE_0003, 0)):
        made.bar_write(1, 48 + 4 * word, 4, value)
    made.effects.clear()
    made.bar_write(0, 12, 4, 3)  # a doorbell for itself comes back as a drained eventfd
    assert made.rung_doorbells == 1
    made.interrupt(3, 1)
    script.land()
    if recording == "msix":  # KVM gave it to the interrupt controller, the recording looked at RAM
        assert hex(script.ram[0x2030]) == facts["self doorbell v3 unmasked: ram"][3]
    made.bar_write(0, 0, 4, 255)
    rung = made.rung_doorbells
    made.reset()
    assert config_hex(made) == facts["system_reset"]["cfg_after"]
    script.command(2)
    assert script.table() == facts["system_reset"]["msix_after"]["table"]
    assert script.pba() == facts["system_reset"]["msix_after"]["pba"]
    assert hex(made.config_read(0x42, 2)) == facts["system_reset"]["msix_after"]["ctrl"]
    assert [hex(made.bar_read(0, at, 4)) for at in (0, 4, 8, 12)] == facts["system_reset"]["regs_after"]
    made.connect(1, 2)
    made.bar_write(0, 12, 4, 1 << 16 | 2)
    assert made.rung_doorbells - rung == facts["system_reset"]["doorbell to peer1 v2 still works"]
    script.control(0x8000)
    script.ring(1)
    assert script.pba() == facts["system_reset"]["ring v1 after reset+enable (masked) pba"]


def test_vectors_at_the_limits() -> None:
    facts = golden("msix")
    assert device(vectors=2048).config.data[0x40:0x4C].hex() == facts["vectors=2048 cap"]
    for vectors in (0, 2049):
        with pytest.raises(UsageError, match="number of MSI-X vectors is invalid"):
            device(vectors=vectors)
