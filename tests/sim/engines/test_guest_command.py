"""sim.engines.qemu.guest_command: what a topology says of a guest, as options of QEMU."""

from __future__ import annotations

from sim.engines.qemu.guest_command import guest_command
from topologies import loads

GUEST = """
[domains.a]
[domains.b]
[machines.mine]
kind = "qemu"
domains = ["a", "b"]
guest = { kernel = "image", buses = ["port0"] }
"""


def test_a_bus_is_that_of_the_device_in_the_same_place() -> None:
    (machine,) = loads(GUEST).machines
    command = guest_command(machine, ["a.socket", "b.socket"], console=3, monitor=4)
    devices = [option for option in command if option.startswith("ivshmem-doorbell,")]
    assert [",bus=port0" in device for device in devices] == [True, False]
