"""The command line of a QEMU that boots a guest, and whether this host has what it names."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from nodes.errors import HostError
from sim.kernel.qemu_program import chosen_qemu
from topologies import Machine, Topology

MASTER = {"peer": "off", "master": "on", "auto": "auto"}


def guest_command(
    machine: Machine, servers: Sequence[str], *, console: int, monitor: int, state: int | None = None
) -> list[str]:
    """The command for a machine with an image.

    Args:
        machine: it has a ``guest``.
        servers: the sockets of the servers that it has a device at.
        console: the descriptor that the console is read from.
        monitor: the descriptor of a QMP connection.
        state: the descriptor that the state of a machine that migrates is read from; None: the guest is booted.
    """
    image = machine.guest
    assert image is not None
    command = [image.qemu or chosen_qemu(), "-nodefaults", "-display", "none", "-no-reboot"]
    for accelerator in ("kvm", "tcg") if image.accel == "auto" else (image.accel,):
        command += ["-accel", accelerator]
    command += ["-m", f"{image.memory_mib}M", "-smp", str(image.cpus)]
    command += ["-chardev", f"socket,id=ivsim-monitor,fd={monitor}", "-qmp", "chardev:ivsim-monitor"]
    command += ["-chardev", f"socket,id=console,fd={console}"]
    if image.console == "serial":
        command += ["-serial", "chardev:console"]
    for option, value in (("-kernel", image.kernel), ("-initrd", image.initrd), ("-append", image.append)):
        if value:
            command += [option, value]
    if image.disk:
        command += ["-drive", f"file={_escaped(image.disk)},format=raw,if=virtio,snapshot=on"]
    command += image.arguments
    if image.console == "virtio":
        command += ["-device", "virtio-serial", "-device", "virtconsole,chardev=console"]
    for number, server in enumerate(servers):
        name, device = connection_id(number), device_id(number)
        command += ["-chardev", f"socket,id={name},path={_escaped(server)}"]
        options = f"id={device},chardev={name},vectors={machine.vectors},master={MASTER[machine.role]}"
        options += "".join(f",bus={bus}" for bus in image.buses[number : number + 1])
        command += ["-device", f"ivshmem-doorbell,{options}"]
    if state is not None:
        command += ["-incoming", f"fd:{state}"]
    return command


def connection_id(number: int) -> str:
    return f"ivshmem{number}"


def device_id(number: int) -> str:
    return f"ivshmem-device{number}"


def check_guests(topology: Topology) -> None:
    """Look whether this host has the files and the QEMU of each guest.

    Raises:
        HostError: it does not; the message names the command that makes them, if the topology has one.
    """
    problems: dict[str, None] = {}
    for machine in topology.machines:
        image = machine.guest
        if image is None:
            continue
        hint = f": `{image.build}` makes it" if image.build else ""
        for file in image.files:
            if not Path(file).is_file():
                problems[f"{machine.group}: there is no file {file}{hint}"] = None
        program = image.qemu or chosen_qemu()
        if shutil.which(program) is None:
            problems[f"{machine.group}: {program} is not on PATH (Debian: qemu-system-x86)"] = None
    if problems:
        raise HostError("\n".join(problems))


def _escaped(value: str) -> str:
    """A value of an option: a comma is written twice (qemu(1), QemuOpts)."""
    return value.replace(",", ",,")
