"""The simulated device against a real QEMU, and QEMU's own test cases on both.

A sample of 10 seeds of 1000 operations for each profile and access; all of them in `make full`, any number by ``ivsim
conformance``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from nodes.device.access_path import AccessPath, MisalignedConfig
from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import Undelivered
from nodes.device.pci import assign_resources
from nodes.device.profiles import PROFILES, STICKY_REGISTERS, profile, profile_by_access
from nodes.device.registers import AccessRules
from nodes.errors import QemuError, UsageError
from sim.engines.qemu.qtest import Qemu
from sim.kernel.eventfd import EventFd
from sim.kernel.memory import Region
from sim.kernel.qemu_program import qemu_version
from sim.oracle import firmware
from sim.oracle.conformance import CONFORMING, Divergence, conform, play, possible, shrink
from sim.oracle.firmware import COMMANDS, COPIES, GuestCpu, access, clear, config_access, copy, results, wake_lines
from sim.oracle.generator import boot, generate
from sim.oracle.operations import (
    RULES,
    WINDOWS,
    ConfigRead,
    ConfigWrite,
    Operation,
    PeerJoins,
    PeerLeaves,
    Read,
    Reset,
    Ring,
    Scene,
    Write,
)
from sim.oracle.real_device import RealDevice
from sim.oracle.scripted_server import ScriptedServer
from sim.oracle.simulated_device import SimulatedDevice
from tests.real_qemu import read_block, real_qemu

pytestmark = pytest.mark.qemu

SEEDS = (*range(9), 21)  # of which 1 has 2048 vectors, and 21 has 280
OPERATIONS = 1000
MIB = 1 << 20
REGISTERS, MSIX, MEMORY = (WINDOWS[bar][0] for bar in (0, 1, 2))
PLAIN = Scene("qemu-plain", 0, 0, 0, MIB)


@pytest.fixture
def qemu() -> Iterator[str]:
    """The program's path; and a look afterwards at what was left open."""
    path = real_qemu()
    before = sorted(os.listdir("/proc/self/fd"))
    yield path
    assert sorted(os.listdir("/proc/self/fd")) == before, "descriptors were left open"


@pytest.mark.sample(8)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("by", ["tcg", "qtest"])
@pytest.mark.parametrize("name", CONFORMING)
def test_no_divergence(qemu: str, name: str, by: str, seed: int) -> None:
    print(f"seed {seed}")
    report = conform(qemu, name, seed, OPERATIONS, access=by)
    assert report.agrees, str(report)
    assert report.operations == OPERATIONS
    assert sum(count for _, count in report.kinds) == OPERATIONS


# The comparison sees what it is there for: one changed cell of the profile each.

RULES_TODAY = profile("qemu-doorbell").registers_rules
DEFECTS: dict[str, dict[str, object]] = {
    "another revision": {"revision": 0},
    "another command mask": {"command_mask": 7},
    "no scratch space": {"config_writable_from": 0x100},
    "status not cleared": {"registers": STICKY_REGISTERS},
    "written offsets not rounded": {"registers_rules": AccessRules()},
    "narrow table writes": {"msix_rules": AccessRules(widest_bytes=8)},
    "memory BAR of 32 bits": {"memory_wide": False},
    "16 vector bits": {"vector_bits": 16},
    "masked rings lost": {"ring_while_masked": Undelivered.LOSE},
    "rings kept while disabled": {"ring_while_disabled": Undelivered.PEND},
    "function mask ignored": {"function_mask": False},
    "no bus master needed": {"bus_master_gates": False},
    "reset keeps the mask": {"reset_clears_mask": False},
    "another access path": {"access_path": AccessPath.EVEN},
    "misaligned configuration ports": {"config_misaligned": MisalignedConfig.ONES},
}


def defective(cells: dict[str, object]) -> type[SimulatedDevice]:
    class Defective(SimulatedDevice):
        def __init__(self, scene: Scene) -> None:
            super().__init__(scene, replace(scene.device, **cells))  # type: ignore[arg-type]

    return Defective


@pytest.mark.sample(4)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(qemu: str, defect: str) -> None:
    assert RULES_TODAY.write_offset_mask == 0xFC
    for seed in SEEDS:
        random = Random(f"{defect}/{seed}")
        scene = Scene.draw("qemu-doorbell", random, server=True, version=qemu_version(qemu))
        if play(qemu, scene, generate(scene, random, OPERATIONS), defective(DEFECTS[defect])):
            return
    pytest.fail(f"{defect}: unseen in {len(SEEDS)} sequences of {OPERATIONS}")


def test_a_divergence_is_shrunk_to_what_it_takes(qemu: str) -> None:
    # A device with few vectors: each attempt starts a QEMU.
    made = defective({"ring_while_disabled": Undelivered.PEND})
    report = conform(qemu, "qemu-doorbell", 3, 300, make=made, access="qtest")
    assert report.divergence is not None
    sequence = report.divergence.sequence
    # An address for the pending bits, memory decode, one ring; perhaps an entry that makes it visible.
    assert len(sequence) <= 4
    assert any(isinstance(operation, Ring | Write) for operation in sequence)
    text = str(report)
    assert "real:" in text
    assert "simulated:" in text
    assert str(report.divergence.scene) in text


def test_shrinking_leaves_out_what_is_not_needed() -> None:
    """Without a QEMU: the divergence needs operations 3 and 7 of ten."""
    sequence: tuple[Operation, ...] = tuple(ConfigRead(4 * at, 4) for at in range(10))
    needed = {sequence[3], sequence[7]}

    def again(candidate: object) -> Divergence | None:
        assert isinstance(candidate, tuple)
        return Divergence(PLAIN, candidate, "a", "b") if needed <= set(candidate) else None

    shortest = shrink(Divergence(PLAIN, sequence, "a", "b"), again)
    assert set(shortest.sequence) == needed


def test_rules_hold_for_any_part_of_a_sequence() -> None:
    sequence: list[Operation] = [
        PeerLeaves(5),
        PeerJoins(5, 1),
        PeerJoins(5, 2),
        PeerLeaves(5),
        PeerLeaves(5),
        PeerJoins(5, 1),
        Reset(),
    ]
    assert list(possible(sequence)) == [PeerJoins(5, 1), PeerLeaves(5), Reset()]
    assert all(reason for reason in RULES.values())


@pytest.mark.parametrize("seed", range(20))
def test_sequences_keep_to_the_rules(seed: int) -> None:
    random = Random(seed)
    scene = Scene.draw("qemu-doorbell", random, server=True)
    sequence = generate(scene, random, 2000)
    assert len(sequence) == 2000
    assert list(possible(sequence)) == sequence
    assert not any(
        isinstance(operation, PeerJoins | PeerLeaves) and operation.peer == scene.peer for operation in sequence
    )
    again = Random(seed)
    assert generate(Scene.draw("qemu-doorbell", again, server=True), again, 2000) == sequence


def test_an_unknown_profile_or_qemu_is_refused() -> None:
    with pytest.raises(UsageError, match="no real counterpart"):
        conform(None, "acrn", 0, 10)
    with pytest.raises(UsageError, match="not on PATH"):
        conform("no-such-qemu", "qemu-plain", 0, 10)


def test_a_qemu_that_does_not_start_says_why(qemu: str) -> None:
    with pytest.raises(QemuError, match="not a valid device model name"):
        Qemu(qemu, ["-device", "no-such-device"])


# QEMU's own cases (tests/qtest/ivshmem-test.c), on both devices.

Device = SimulatedDevice | RealDevice


@pytest.fixture(params=["simulated", "real"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plain(kind: str, request: pytest.FixtureRequest) -> Iterator[Device]:
    """An ivshmem-plain with 1 MiB, after firmware."""
    made: Device
    made = SimulatedDevice(PLAIN) if kind == "simulated" else RealDevice(request.getfixturevalue("qemu"), PLAIN)
    try:
        for operation in boot(PLAIN):
            made.apply(operation)
        yield made
    finally:
        made.close()


def read(made: Device, address: int, size_bytes: int = 4) -> int:
    value = made.apply(Read(address, size_bytes)).value
    assert value is not None
    return value


def test_case_single(plain: Device) -> None:
    assert plain.apply(ConfigRead(0, 4)).value == 0x1110_1AF4
    assert [read(plain, REGISTERS + at) for at in (0, 4, 8)] == [0, 0, 0]
    plain.apply(Write(REGISTERS, 4, 0xFFFF_FFFF))
    assert read(plain, REGISTERS) == 0xFFFF_FFFF
    plain.apply(Write(REGISTERS + 4, 4, 1))
    assert [read(plain, REGISTERS + 4) for _ in range(2)] == [1, 0]
    plain.apply(Write(REGISTERS + 8, 4, 1))
    read(plain, REGISTERS + 12)
    plain.apply(Write(REGISTERS + 12, 4, 8 << 16))
    for word in range(1024):
        plain.apply(Write(MEMORY + 4 * word, 4, word * 0x0101_0101 & 0xFFFF_FFFF))
    expected = b"".join((word * 0x0101_0101 & 0xFFFF_FFFF).to_bytes(4, "little") for word in range(1024))
    assert bytes(plain.memory[:4096]) == expected
    assert all(read(plain, MEMORY + 4 * word) == word * 0x0101_0101 & 0xFFFF_FFFF for word in range(0, 1024, 17))


def test_case_bar_sizes(plain: Device) -> None:
    """What every one of QEMU's cases looks at first: BAR0 has 256 bytes, BAR2 has 1 MiB."""
    for offset, size in ((0x10, 256), (0x18, MIB)):
        plain.apply(ConfigWrite(offset, 4, 0xFFFF_FFFF))
        raw = plain.apply(ConfigRead(offset, 4)).value
        assert raw is not None
        assert -(raw & ~0xF) & 0xFFFF_FFFF == size


def simulated_plain(memory: memoryview) -> Ivshmem:
    made = Ivshmem(PROFILES["qemu-plain"], ring=lambda peer, vector: None)
    made.set_memory(memory)
    assign_resources(made.config.bars.values(), made.config_write)
    return made


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_case_hotplug_real(qemu: str, machine: str) -> None:
    """/ivshmem/hotplug in slot 6, unplugged as a guest's ACPI does it; /ivshmem/hotplug-q35 behind a bridge."""
    backend = ["-machine", machine, "-object", "memory-backend-ram,id=mb1,size=1M,share=on"]
    bridge = ["-device", "pcie-pci-bridge,id=b1"] if machine == "q35" else []
    with Qemu(qemu, backend + bridge) as real:
        place = {"bus": "b1", "addr": "1"} if machine == "q35" else {"addr": "6"}
        real.qmp("device_add", driver="ivshmem-plain", id="iv1", memdev="mb1", **place)
        if machine == "pc":
            assert real.config_read(6, 0, 4) == 0x1110_1AF4
        real.qmp("device_del", id="iv1")
        if machine == "pc":
            real.ask([f"outl {0xAE08:#x} {1 << 6:#x}"])  # the guest lets go of slot 6 (docs/specs/acpi_pci_hotplug)
            real.settle(2)
            assert real.config_read(6, 0, 4) == 0xFFFF_FFFF


def test_case_hotplug_simulated() -> None:
    backing = bytearray(MIB)
    view = memoryview(backing)
    made = simulated_plain(view)
    made.bar_write(2, 0, 4, 7)
    made.unplug()
    assert made.bar_read(2, 0, 4) == 0
    view.release()
    backing += b"!"  # no process holds the memory any more
    again = simulated_plain(memoryview(backing)[:MIB])
    assert again.bar_read(2, 0, 4) == 7


def test_case_memdev(qemu: str) -> None:
    arguments = ["-object", "memory-backend-ram,size=1M,id=mb", "-device", "ivshmem-plain,memdev=mb,addr=04.0"]
    with Qemu(qemu, arguments) as real:
        identity = real.config_read(4, 0, 4)
    assert identity == simulated_plain(memoryview(bytearray(MIB))).config_read(0, 4) == 0x1110_1AF4


def pair_of_real(qemu: str, region: Region) -> list[Qemu]:
    made = []
    for _ in range(2):
        path = f"/proc/self/fd/{region.descriptor}"
        backend = f"memory-backend-file,id=mb,share=on,size=1M,mem-path={path}"
        arguments = ["-object", backend, "-device", "ivshmem-plain,memdev=mb,addr=04.0"]
        made.append(Qemu(qemu, arguments, [region.descriptor]))
        for operation in boot(PLAIN):
            assert isinstance(operation, ConfigWrite)
            made[-1].config_write(4, operation.offset, operation.size_bytes, operation.value)
    return made


def test_case_pair_real(qemu: str) -> None:
    with ScriptedServer(MIB) as host:
        first, second = pair_of_real(qemu, host.region)
        with first, second:
            host.memory[:] = b"\x42" * MIB
            assert read_block(first, MEMORY, MIB) == read_block(second, MEMORY, MIB) == bytes(host.memory)
            first.fill(MEMORY, MIB, 0x43)
            assert read_block(second, MEMORY, MIB) == b"\x43" * MIB
            second.fill(MEMORY, MIB, 0x44)
            assert read_block(first, MEMORY, MIB) == b"\x44" * MIB


def test_case_pair_simulated() -> None:
    memory = memoryview(bytearray(b"\x42" * MIB))
    first, second = simulated_plain(memory), simulated_plain(memory)
    places = (*range(0, MIB, 4093 * 8), MIB - 8)
    assert all(made.bar_read(2, at, 8) == 0x4242_4242_4242_4242 for at in places for made in (first, second))
    for writer, reader, byte in ((first, second, 0x43), (second, first, 0x44)):
        for at in places:
            writer.bar_write(2, at, 8, int.from_bytes(bytes([byte]) * 8, "little"))
        assert all(reader.bar_read(2, at, 1) == byte for at in places)


def test_case_server_real(qemu: str) -> None:
    """Two devices, two vectors: each one's doorbell sets a pending bit of the other."""
    region = Region.create(MIB, kind="memfd")
    own = {peer: [EventFd.create() for _ in range(2)] for peer in range(2)}
    machines = []
    try:
        for peer in range(2):
            with ScriptedServer(region=region) as server:
                server.greet(peer)
                server.join(1 - peer, 2, [EventFd(os.dup(eventfd.descriptor)) for eventfd in own[1 - peer]])
                server.join(peer, 2, [EventFd(os.dup(eventfd.descriptor)) for eventfd in own[peer]])
                chardev = f"socket,id=iv,fd={server.client}"
                device = "ivshmem-doorbell,chardev=iv,vectors=2,addr=04.0"
                machines.append(Qemu(qemu, ["-chardev", chardev, "-device", device], [server.client]))
                machines[-1].settle(8)
        for machine in machines:
            for offset, value in ((0x10, REGISTERS), (0x14, MSIX), (0x04, 6), (0x40, 0x8000 << 16)):
                machine.config_write(4, offset, 4, value)
        assert [machine.read(REGISTERS + 8, 4) for machine in machines] == [0, 1]
        assert machines[0].config_read(4, 0x42, 2) & 0x7FF == 1
        for ringer, target, vector in ((1, 0, 0), (0, 1, 1)):
            assert machines[target].read(MSIX + 0x800, 4) == 0
            machines[ringer].write(REGISTERS + 12, 4, target << 16 | vector)
            machines[target].settle(2)
            assert machines[target].read(MSIX + 0x800, 4) == 1 << vector
    finally:
        for machine in machines:
            machine.close()
        for eventfds in own.values():
            for eventfd in eventfds:
                eventfd.close()
        region.close()


def test_case_server_simulated() -> None:
    made: list[Ivshmem] = []
    for peer in range(2):
        device = Ivshmem(profile("qemu-doorbell"), vectors=2, ring=lambda to, vector: made[to].interrupt(vector, 1))
        device.set_peer(peer)
        device.set_memory(memoryview(bytearray(MIB)))
        assign_resources(device.config.bars.values(), device.config_write)
        device.config_write(0x42, 2, 0x8000)
        for other in range(2):
            for vector in range(2):
                device.connect(other, vector)
        made.append(device)
    assert [device.bar_read(0, 8, 4) for device in made] == [0, 1]
    assert made[0].config_read(0x42, 2) & 0x7FF == 1
    for ringer, target, vector in ((1, 0, 0), (0, 1, 1)):
        assert made[target].bar_read(1, 0x800, 4) == 0
        made[ringer].bar_write(0, 12, 4, target << 16 | vector)
        assert made[target].bar_read(1, 0x800, 4) == 1 << vector


KVM_VARIABLE = "IVSHMEM_TEST_KVM"
"""Set where /dev/kvm runs a guest that begins in real mode: not everywhere that it can be opened."""


@pytest.mark.parametrize("seed", [0, 21])
def test_no_divergence_under_kvm(qemu: str, seed: int) -> None:
    if not os.environ.get(KVM_VARIABLE):
        pytest.skip(f"{KVM_VARIABLE} is not set")
    report = conform(qemu, "qemu-doorbell", seed, OPERATIONS, access="kvm")
    assert report.profile == "qemu-doorbell-kvm"
    assert report.agrees, str(report)


def test_the_guest_makes_each_access(qemu: str) -> None:
    """Memory of the machine: each size and alignment, in one list of commands and one by one; then a reset."""
    at = 0x50_0000
    with GuestCpu() as cpu, Qemu(qemu, cpu.arguments, cpu.inherit) as real:
        cpu.start(real)

        def do(*commands: bytes) -> list[int]:
            whole = b"".join(commands)
            real.ask(wake_lines(whole))
            cpu.wait(real)
            (done,) = real.ask([f"read {COMMANDS:#x} {len(whole):#x}"])
            return results(bytes.fromhex(done[2:]))

        stores = [access(at + 16 * size + size - 1, size, 0x1122_3344_5566_7788) for size in (1, 2, 4, 8)]
        loads = [access(at + 16 * size + size - 1, size) for size in (1, 2, 4, 8)]
        assert do(*stores, *loads)[4:] == [0x88, 0x7788, 0x5566_7788, 0x1122_3344_5566_7788]
        assert [do(load)[0] for load in loads] == [0x88, 0x7788, 0x5566_7788, 0x1122_3344_5566_7788]
        assert real.read(at + 0x87, 8) == 0x1122_3344_5566_7788
        do(copy(at + 0x80, 16, COPIES), clear(at + 0x80, 16))
        assert real.read(COPIES + 7, 8) == 0x1122_3344_5566_7788
        assert real.read(at + 0x87, 8) == 0
        for size in (1, 2, 4):  # the host bridge of a pc, 8086:1237
            assert do(config_access(0, 0, size)) == [0x1237_8086 & (1 << 8 * size) - 1]
        do(config_access(0, 0x3C, 1, 0x5A))
        assert real.config_read(0, 0x3C, 1) == 0x5A
        real.reset()
        cpu.wait(real)
        assert do(access(at + 0x10, 1)) == [0x88]


def test_the_firmware_is_what_its_source_says(tmp_path: Path) -> None:
    source = Path(firmware.__file__).with_suffix(".S")
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("objcopy") is None:
        pytest.skip("no C compiler with its assembler")
    subprocess.run([compiler, "-c", source, "-o", tmp_path / "firmware.o"], check=True)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "firmware.o", tmp_path / "firmware.bin"], check=True
    )
    assert (tmp_path / "firmware.bin").read_bytes() == firmware.CODE.rstrip(bytes(1))
    assert len(firmware.firmware()) == 1 << 16


@pytest.mark.parametrize("peer", [3, 0x7FFF, 0x8000, 0xFFFE])
def test_vectors_above_255_are_rung_by_exact_match(qemu: str, peer: int) -> None:
    """Source of a profile cell: 279 is found as it is, 280 by its low 8 bits; any width, offset and ID."""
    writes = [(size, offset, vector) for size in (1, 2, 4, 8) for offset in range(8, 16) for vector in (257, 279, 280)]
    simulated: list[list[int]] = []
    kind = profile_by_access(profile("qemu-doorbell"), "qtest", qemu_version(qemu))
    device = Ivshmem(kind, vectors=300, ring=lambda to, vector: simulated[-1].append(vector))
    assign_resources(device.config.bars.values(), device.config_write)
    for vector in range(280):
        device.connect(peer, vector)
    with ScriptedServer(4096) as server:
        server.greet(0)
        arguments = ["-chardev", f"socket,id=iv,fd={server.client}"]
        arguments += ["-device", "ivshmem-doorbell,chardev=iv,vectors=300,addr=04.0"]
        with Qemu(qemu, arguments, [server.client]) as real:
            for operation in (ConfigWrite(0x10, 4, REGISTERS), ConfigWrite(0x04, 2, 6)):
                real.config_write(4, operation.offset, operation.size_bytes, operation.value)
            server.join(peer, 280)
            real.settle(300)
            for size, offset, vector in writes:
                value = ((peer << 16 | vector) << 8 * max(0, 12 - offset)) & (1 << 8 * size) - 1
                simulated.append([])
                real.write(REGISTERS + offset, size, value)
                device.bar_write(0, offset, size, value)
                heard = [vector for _, vector, count in server.take_rung(but=0) for _ in range(count)]
                assert heard == simulated[-1], (size, offset, vector)
    assert simulated[writes.index((4, 12, 257))] == ([257] if peer < 0x8000 else [1])


def test_golden_files_are_the_ones_used() -> None:
    """Every recording in tests/golden is looked at by some test."""
    tests = Path(__file__).parents[1]
    sources = "".join(path.read_text() for path in tests.rglob("*.py"))
    for recording in (tests / "golden").glob("*.json"):
        assert recording.stem in sources, recording.name
