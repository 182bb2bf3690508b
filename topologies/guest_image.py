"""The guest of a machine that is a real QEMU: its image, its console, and its sign of readiness."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta

from nodes.errors import UsageError
from topologies.language.validated import Validated, compile_pattern

GUEST_PROGRAM = "guest"
"""What results name as the program of a machine with an image of its own."""

Path = Annotated[str, Meta(max_length=4096)]
Pattern = Annotated[str, Meta(max_length=500)]


class GuestImage(Validated, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The guest of a machine, which the run boots in a QEMU: a table ``[machines.NAME.guest]``.

    Files are relative to the topology's file. QEMU gets the device, the console and the keys below as options, and
    ``arguments`` before the device.
    """

    kernel: Annotated[Path, Meta(description="The kernel: QEMU's -kernel.")] = ""
    initrd: Annotated[Path, Meta(description="The initial RAM disk: QEMU's -initrd.")] = ""
    append: Annotated[str, Meta(max_length=2048, description="The kernel's command line: QEMU's -append.")] = ""
    disk: Annotated[Path, Meta(description="A raw disk image; what the guest writes to it is dropped.")] = ""
    arguments: Annotated[
        tuple[Annotated[str, Meta(max_length=4096)], ...],
        Meta(description="Further options of QEMU, such as a machine type, before the device."),
    ] = ()
    buses: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9._-]+$")], ...],
        Meta(
            description="The buses that its devices are plugged into, one for each of its domains: `id`s of ports "
            "among `arguments`. Empty: QEMU chooses. A q35 takes a device away from a port only."
        ),
    ] = ()
    qemu: Annotated[
        str, Meta(description="QEMU's program; empty: that of `IVSHMEM_QEMU`, else `qemu-system-x86_64`.")
    ] = ""
    accel: Annotated[
        Literal["auto", "kvm", "tcg"], Meta(description="`auto`: KVM where QEMU can use it, else TCG.")
    ] = "auto"
    memory_mib: Annotated[int, Meta(ge=1, le=1 << 20, description="Its memory in MiB.")] = 128
    cpus: Annotated[int, Meta(ge=1, le=255, description="Its virtual CPUs.")] = 1
    console: Annotated[
        Literal["serial", "virtio"],
        Meta(description="The console that is kept and searched: the first serial port, or a virtio console."),
    ] = "serial"
    ready_when: Annotated[
        Pattern,
        Meta(
            description="The guest is ready when a line of its console contains this regular expression; if absent, "
            "when QEMU is connected."
        ),
    ] = ""
    ready_timeout_s: Annotated[
        float, Meta(gt=0, le=86_400, description="How long it may take from the start of QEMU until it is ready.")
    ] = 60.0
    build: Annotated[
        str,
        Meta(max_length=200, description="The command that makes missing files; a run names it, and never runs it."),
    ] = ""

    def __post_init__(self) -> None:
        Validated.__post_init__(self)
        try:
            compile_pattern(self.ready_when)
        except re.error as error:
            raise UsageError(f"GuestImage.ready_when: no regular expression: {error}") from None

    @property
    def files(self) -> tuple[str, ...]:
        """The files that must exist."""
        return tuple(filter(None, (self.kernel, self.initrd, self.disk)))
