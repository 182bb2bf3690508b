"""How the 2012 device starts: rows 12-37 and 85 of seed_rows.toml."""

from __future__ import annotations

import pytest

from nodes.device.ivshmem import Ivshmem
from nodes.device.profile import Quirk
from nodes.device.profiles import profile
from nodes.device.properties import STEPS, DeviceExitError, Plan, Properties, realize
from nodes.device.qemu_1_1.shared_object import OBJECT_MODE, SharedObject, check_size, open_object
from nodes.errors import ModelledFault

SEED = profile("qemu-1.1")
SERVER = "unix:/run/ivshmem"
MIB, GIB = 1 << 20, 1 << 30


def start(**properties: object) -> Plan:
    return realize(SEED, Properties(**{"chardev": SERVER, **properties}))  # type: ignore[arg-type]


def ring_nothing(peer: int, vector: int) -> None:
    raise AssertionError(f"peer {peer}, vector {vector} was rung")


# Properties.


def test_defaults() -> None:
    plan = realize(SEED, Properties(shm="object"))
    assert plan.size_bytes == 4 * MIB
    assert (plan.properties.vectors, plan.properties.ioeventfd, plan.properties.msi) == (1, False, True)
    assert plan.role == "master"
    assert not plan.blocked
    assert not plan.server
    assert plan.properties.shm == "object"
    nothing = Properties()
    assert (nothing.chardev, nothing.shm, nothing.size, nothing.role) == (None, None, None, None)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4", 4 * MIB),
        ("4M", 4 * MIB),
        ("4m", 4 * MIB),
        ("4MB", 4 * MIB),
        ("2G", 2 * GIB),
        ("2g", 2 * GIB),
        ("2GK", 2 * GIB),
        ("4M0x", 4 * MIB),
        ("1gigantic", GIB),
        (" 8", 8 * MIB),
        ("+8M", 8 * MIB),
        (str(1 << 64), None),
    ],
)
def test_size(text: str, size_bytes: int | None) -> None:
    if size_bytes is None:  # as large as it gets, shifted: no power of two
        with pytest.raises(DeviceExitError, match="power of 2"):
            start(size=text)
    else:
        assert start(size=text).size_bytes == size_bytes


@pytest.mark.parametrize("text", ["4K", "0x10", "4 M", "B", "-"])
def test_size_with_another_suffix(text: str) -> None:
    with pytest.raises(DeviceExitError, match=f"invalid ram size: {text}") as caught:
        start(size=text)
    assert caught.value.status == 1


@pytest.mark.parametrize("text", ["0", "", "M", "0G", str(1 << 44), str(1 << 34) + "G"])
def test_size_0_is_accepted(text: str) -> None:
    plan = start(size=text)
    assert plan.size_bytes == 0
    device = plan.device(ring_nothing)
    assert sorted(device.config.bars) == [0, 1]
    device.set_memory(memoryview(bytearray(64)))
    assert device.memory is not None
    assert len(device.memory) == 0
    with pytest.raises(DeviceExitError, match="power of 2"):
        realize(SEED.without(Quirk.ZERO_SIZE), Properties(chardev=SERVER, size=text))


@pytest.mark.parametrize("text", ["3", "6M", "-1"])
def test_size_no_power_of_two(text: str) -> None:
    with pytest.raises(DeviceExitError, match="size must be power of 2") as caught:
        start(size=text)
    assert caught.value.status == 1


def test_vectors_beyond_the_table_end_silently() -> None:
    assert start(vectors=32).device(ring_nothing).vectors == 32
    for vectors in (0, 33):
        with pytest.raises(DeviceExitError) as caught:
            start(vectors=vectors)
        assert (caught.value.status, caught.value.text) == (1, "")


@pytest.mark.parametrize(("role", "blocked"), [("peer", True), ("master", False), (None, False)])
def test_role(role: str | None, blocked: bool) -> None:
    plan = start(role=role)
    assert plan.blocked is blocked
    assert plan.device(ring_nothing).role == (role or "master")


@pytest.mark.parametrize("role", ["", "Peer", "peers", "masterful", "auto"])
def test_other_roles(role: str) -> None:
    with pytest.raises(DeviceExitError, match="'role' must be 'peer' or 'master'") as caught:
        start(role=role)
    assert caught.value.status == 1


def test_ioeventfd_needs_msi() -> None:
    with pytest.raises(DeviceExitError, match="ioeventfd/irqfd requires MSI") as caught:
        start(ioeventfd=True, msi=False)
    assert caught.value.status == 1


def test_ioeventfd_at_start_is_a_fault() -> None:
    with pytest.raises(ModelledFault) as caught:
        start(ioeventfd=True)
    assert caught.value.row == 85
    repaired = realize(SEED.without(Quirk.IOEVENTFD_INIT_FAULT), Properties(chardev=SERVER, ioeventfd=True))
    assert repaired.done == tuple(name for name, _ in STEPS)


# Order and modes.

MISTAKES: list[tuple[str, dict[str, object], str]] = [
    ("size", {"size": "4K"}, "invalid ram size"),
    ("ioeventfd needs msi", {"ioeventfd": True, "msi": False}, "requires MSI"),
    ("role", {"role": "boss"}, "'role' must be"),
    ("ioeventfds", {"ioeventfd": True, "msi": True}, "row 85"),
    ("mode", {"vectors": 99}, "exit 1"),
]


def test_the_earliest_failing_step_decides() -> None:
    order = [name for name, _ in STEPS]
    assert order == [
        *("size", "savevm", "ioeventfd needs msi", "role", "blocker", "configuration space", "BAR0"),
        *("ioeventfds", "BAR2 container", "mode"),
    ]
    for at, (step, mistake, text) in enumerate(MISTAKES):
        assert order.index(step) >= (order.index(MISTAKES[at - 1][0]) if at else 0)
        merged: dict[str, object] = {}
        for _, later, _ in reversed(MISTAKES[at:]):
            merged |= later
        with pytest.raises((DeviceExitError, ModelledFault), match=text):
            start(**merged)
        assert mistake.items() <= merged.items()


@pytest.mark.parametrize(
    ("chardev", "server"),
    [
        (SERVER, True),
        ("unix:", True),
        ("tcp:host:1", False),
        ("udp:host:1", False),
        ("unix", False),
        ("UNIX:/x", False),
    ],
)
def test_server_mode_by_the_character_devices_name(chardev: str, server: bool) -> None:
    plan = realize(SEED, Properties(chardev=chardev, shm="object"))
    assert plan.server is server
    assert (plan.device(ring_nothing).msix is not None) is server


def test_server_and_object_together_warn() -> None:
    plan = start(shm="object")
    assert plan.server
    assert plan.warnings == ("WARNING: do not specify both 'chardev' and 'shm' with ivshmem",)


def test_msi_off_chooses_intx() -> None:
    device = start(msi=False, vectors=40).device(ring_nothing)
    assert device.profile.name == "qemu-1.1-intx"
    assert device.vectors == 40


def state_of(plan: Plan) -> tuple[Ivshmem, bytes]:
    """A device that has written IntrStatus and IntrMask, and what it saves behind the PCI part."""
    device = plan.device(ring_nothing)
    device.set_memory(memoryview(bytearray(plan.size_bytes)))
    device.config_write(4, 2, 2)
    device.bar_write(0, 4, 4, 0x0A0B_0C0D)
    device.bar_write(0, 0, 4, 0x0102_0304)
    head = 1 + len("ivshmem") + 8 + 4 + 256 + 4 * 4
    return device, device.save()[head:]


@pytest.mark.parametrize("ioeventfd", [False, True])
@pytest.mark.parametrize("msi", [False, True])
@pytest.mark.parametrize(
    "properties", [{"chardev": SERVER}, {"shm": "object"}, {"chardev": "tcp:h:1", "shm": "object"}]
)
def test_saved_state_by_the_properties(properties: dict[str, str], msi: bool, ioeventfd: bool) -> None:
    """With msi, MSI-X if there is any, and the registers are lost; without it, IntrStatus and IntrMask, big-endian."""
    made = Properties(size="1", role="master", vectors=3, msi=msi, ioeventfd=ioeventfd, **properties)
    repaired = SEED.without(Quirk.IOEVENTFD_INIT_FAULT)
    if ioeventfd and not msi:
        with pytest.raises(DeviceExitError, match="requires MSI"):
            realize(repaired, made)
        return
    plan = realize(repaired, made)
    source, state = state_of(plan)
    if not msi:
        assert state == bytes.fromhex("0a0b0c0d 01020304")
    elif plan.server:
        assert len(state) == 3 * 16 + 1
    else:
        assert state == b""
    there = plan.device(ring_nothing)
    there.set_memory(memoryview(bytearray(plan.size_bytes)))
    there.load(source.save())
    there.config_write(4, 2, 2)
    found = [there.bar_read(0, at, 4) for at in (4, 0)]
    assert found == ([0, 0] if msi else [0x0A0B_0C0D, 0x0102_0304])


def test_server_mode_begins_without_an_id() -> None:
    device = start(vectors=3).device(ring_nothing)
    assert device.peer is None
    assert device.fires == [False] * 3


def test_quirks_repaired_in_the_plan_are_repaired_in_the_device() -> None:
    repaired = SEED.without(Quirk.STATUS_LOW_BYTE)
    device = realize(repaired, Properties(chardev=SERVER, msi=False)).device(ring_nothing)
    assert not device.profile.has(Quirk.STATUS_LOW_BYTE)
    assert device.profile.has(Quirk.RESET_DROPS_VECTORS)


# The named object.


class Objects:
    """Shared memory objects by name; descriptors count up from ``first``."""

    def __init__(self, first: int = 3, **sizes: int) -> None:
        self.objects = {name: bytearray(size) for name, size in sizes.items()}
        self.opened: dict[int, str] = {}
        self.calls: list[str] = []
        self.modes: set[int] = set()
        self.truncates = True
        self.maps = True
        self._next = first

    def _open(self, name: str) -> int:
        self.opened[self._next] = name
        self._next += 1
        return self._next - 1

    def create(self, name: str, mode: int) -> int:
        self.calls.append("create")
        self.modes.add(mode)
        if name in self.objects:
            return -1
        self.objects[name] = bytearray()
        return self._open(name)

    def open(self, name: str, mode: int) -> int:
        self.calls.append("open")
        self.modes.add(mode)
        return self._open(name) if name in self.objects else -1

    def truncate(self, descriptor: int, size_bytes: int) -> bool:
        self.calls.append("truncate")
        if self.truncates:
            self.objects[self.opened[descriptor]] = bytearray(size_bytes)
        return self.truncates

    def size_bytes(self, descriptor: int) -> int:
        return len(self.objects[self.opened[descriptor]])

    def map(self, descriptor: int, size_bytes: int) -> memoryview | None:
        return memoryview(self.objects[self.opened[descriptor]])[:size_bytes] if self.maps else None


def test_first_device_creates_and_sizes_the_object() -> None:
    host = Objects()
    opened = open_object(host, SEED, "object", MIB)
    assert host.calls == ["create", "truncate"]
    assert host.modes == {OBJECT_MODE} == {0o777}
    assert (opened.descriptor, len(opened.memory)) == (3, MIB)
    again = open_object(host, SEED, "object", MIB)
    assert host.calls == ["create", "truncate", "create", "open"]
    again.memory[0] = 7
    assert opened.memory[0] == 7
    assert set(host.objects) == {"object"}  # nothing ever unlinks it


def test_descriptor_0_counts_as_a_failure_to_create() -> None:
    host = Objects(first=0)
    with pytest.raises(DeviceExitError, match="greater than shared object size"):
        open_object(host, SEED, "object", MIB)
    assert host.calls == ["create", "open"]


def test_truncating_may_fail() -> None:
    host = Objects()
    host.truncates = False
    with pytest.raises(DeviceExitError, match=r"\(1048576 > 0\)"):
        open_object(host, SEED, "object", MIB)
    zero = open_object(host, SEED, "object", 0)
    assert zero.warnings == ()
    fresh = Objects()
    fresh.truncates = False
    assert open_object(fresh, SEED, "object", 0).warnings == ("ivshmem: could not truncate shared file",)


def test_object_that_cannot_be_opened() -> None:
    class Refusing(Objects):
        def create(self, name: str, mode: int) -> int:
            return -1

    with pytest.raises(DeviceExitError, match="could not open shared file") as caught:
        open_object(Refusing(), SEED, "object", MIB)
    assert caught.value.status == 255


def test_object_too_small_and_too_large() -> None:
    with pytest.raises(DeviceExitError, match=r"\(8192 > 4096\)") as caught:
        open_object(Objects(object=4096), SEED, "object", 8192)
    assert caught.value.status == 255
    opened = open_object(Objects(object=1 << 16), SEED, "object", 8192)
    assert isinstance(opened, SharedObject)
    assert len(opened.memory) == 8192
    check_size(4096, 4096)


def test_mapping_is_not_checked() -> None:
    host = Objects(object=4096)
    host.maps = False
    with pytest.raises(ModelledFault) as caught:
        open_object(host, SEED, "object", 4096)
    assert caught.value.row == 34
    with pytest.raises(DeviceExitError, match="could not map"):
        open_object(host, SEED.without(Quirk.MAPPING_UNCHECKED), "object", 4096)


def test_neither_server_nor_object() -> None:
    plan = realize(SEED, Properties())
    assert plan.warnings == ("Must specify 'chardev' or 'shm' to ivshmem",)
    with pytest.raises(ModelledFault) as caught:
        open_object(Objects(), SEED, plan.properties.shm, plan.size_bytes)
    assert caught.value.row == 28
    with pytest.raises(DeviceExitError, match="Must specify"):
        realize(SEED.without(Quirk.MODE_UNCHECKED), Properties())
