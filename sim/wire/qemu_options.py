"""The command line with which a real QEMU joins a server."""

from __future__ import annotations

import os
from pathlib import Path

from nodes.wire.protocol import V0, Dialect
from nodes.wire.v2.protocol import V2


def qemu_options(path: str | os.PathLike[str], vectors: int, dialect: Dialect = V0) -> str:
    """The options of a QEMU with a device for the server on ``path``; "" for a dialect that no QEMU speaks.

    A server of ivshmem v2 is for the QEMU fork, whose device takes the number of vectors from it. A comma is written
    twice (qemu(1), QemuOpts).
    """
    shown = str(Path(path).absolute()).replace(",", ",,")
    devices = {V0: f"ivshmem-doorbell,chardev=ivshmem,vectors={vectors}", V2: "ivshmem,chardev=ivshmem"}
    if dialect not in devices:
        return ""
    return f"-chardev socket,path={shown},id=ivshmem -device {devices[dialect]}"
