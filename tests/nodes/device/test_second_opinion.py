"""The device of 2012 against the transliteration of its source: combinations of properties, and random registers."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from nodes.device.pci import assign_resources
from nodes.device.profiles import profile
from nodes.device.qemu_1_1.properties import DeviceExitError, Plan, Properties, realize
from nodes.errors import ModelledFault
from tests.nodes.device import transliterated_2012 as source

SEED = profile("qemu-1.1")
VALUES: dict[str, tuple[object, ...]] = {
    "chardev": (None, "unix:/s", "tcp:h:1", "unix"),
    "shm": (None, "object"),
    "size": (None, "4", "4M", "1G", "2g", "3", "0", "4K", "0x10", "", "-1", "M", " 8", "18446744073709551616", "4MB"),
    "vectors": (0, 1, 32, 33),
    "ioeventfd": (False, True),
    "msi": (True, False),
    "role": (None, "peer", "master", "peers", ""),
}
OPERATIONS, SEQUENCES = 200, 8


def theirs(properties: dict[str, object]) -> tuple[object, ...]:
    s = source.State(
        chardev=properties["chardev"],  # type: ignore[arg-type]
        sizearg=properties["size"],  # type: ignore[arg-type]
        vectors=properties["vectors"],  # type: ignore[arg-type]
        ioeventfd=bool(properties["ioeventfd"]),
        msi=bool(properties["msi"]),
        shmobj=properties["shm"],  # type: ignore[arg-type]
        role=properties["role"],  # type: ignore[arg-type]
    )
    try:
        source.pci_ivshmem_init(s)
    except source.Exit as end:
        return "exit", end.args[0], "\n".join(s.stderr)
    except source.Crash:
        return ("crash",)
    return "made", s.server, s.msix, s.ivshmem_size, s.role_val, s.blocker, tuple(s.stderr)


def ours(properties: dict[str, object]) -> tuple[object, ...]:
    try:
        plan = realize(SEED, Properties(**properties))  # type: ignore[arg-type]
    except DeviceExitError as end:
        return "exit", end.status, end.text
    except ModelledFault:
        return ("crash",)
    made = plan.device(lambda peer, vector: None)
    return "made", plan.server, made.msix is not None, plan.size_bytes, plan.role, plan.blocked, plan.warnings


def test_each_combination_of_properties_begins_as_the_source_says() -> None:
    """All of them, not pairs only: vectors where the device has none, a size of 0 with a server, and so on."""
    different = []
    outcomes = set()
    for values in product(*VALUES.values()):
        properties = dict(zip(VALUES, values, strict=True))
        outcomes.add(theirs(properties)[0])
        if theirs(properties) != ours(properties):
            different.append((properties, theirs(properties), ours(properties)))
    assert different[:3] == []
    assert outcomes == {"made", "exit", "crash"}


@pytest.mark.parametrize("msi", [True, False])
@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("sequence", range(SEQUENCES))
def test_registers_are_as_the_source_says(server: bool, msi: bool, sequence: int, seed: int) -> None:
    """Random accesses, doorbells, interrupts and resets, with and without memory; two peers, of one and two vectors."""
    random = Random(f"{seed}/{sequence}/{server}/{msi}")
    rung: list[tuple[int, int]] = []
    chardev, shm = ("unix:/s", None) if server else (None, "object")
    plan: Plan = realize(SEED, Properties(chardev=chardev, shm=shm, msi=msi, vectors=2))
    device = plan.device(lambda peer, vector: rung.append((peer, vector)))
    s = source.State(chardev=chardev, shmobj=shm, msi=msi, vectors=2)
    source.pci_ivshmem_init(s)
    assign_resources(device.config.bars.values(), device.config_write)
    if not server:
        s.shm_fd = 5
        device.set_memory(memoryview(bytearray(4 << 20)))
    at_s = random.randrange(OPERATIONS)
    for step in range(OPERATIONS):
        if server and step == at_s:
            s.vm_id, s.shm_fd, s.max_peer, s.peers = 3, 5, 9, {3: 2, 9: 1}
            device.set_peer(3)
            device.set_memory(memoryview(bytearray(4 << 20)))
            for peer, vectors in s.peers.items():
                for vector in range(vectors):
                    device.connect(peer, vector)
        size = random.choice((1, 2, 4, 4, 4))
        offset = random.randrange(0, 24 // size) * size
        value = random.choice((0, 1, random.getrandbits(8 * size), 9 << 16 | random.getrandbits(9), 3 << 16 | 1))
        value &= (1 << 8 * size) - 1
        kind = random.choice(("read", "write", "write", "ring", "interrupt", "reset"))
        told = f"step {step}: {kind} {size}@{offset} {value:#x}"
        if kind == "read":
            expected = source.ivshmem_io_read(s, offset) & (1 << 8 * size) - 1
            assert device.bar_read(0, offset, size) == expected, told
        elif kind == "interrupt" and server and not msi and step > at_s:
            source.ivshmem_receive(s, value)
            device.interrupt(random.randrange(2), value)
        elif kind == "reset":
            source.ivshmem_reset(s)
            device.reset()
            s.irq = False  # pci_device_reset deasserts the pin
            assign_resources(device.config.bars.values(), device.config_write)
            source.ivshmem_update_irq(s)
        elif kind in ("write", "ring"):
            where = offset if kind == "write" else 12
            value = value if kind == "write" else random.choice((3, 9, 10)) << 16 | random.getrandbits(10)
            wide = size if kind == "write" else 4
            try:
                source.ivshmem_io_write(s, where, value)
            except source.Crash:
                with pytest.raises(ModelledFault):
                    device.bar_write(0, where, wide, value)
            else:
                device.bar_write(0, where, wide, value)
        assert (rung, device.intx_raised) == (s.rung, s.irq), told
