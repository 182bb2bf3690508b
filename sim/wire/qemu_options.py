"""The command line with which a real QEMU joins a server."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["qemu_options"]


def qemu_options(path: str | os.PathLike[str], vectors: int) -> str:
    """The options of a QEMU with a device of ``vectors`` vectors, for the server on ``path``.

    A comma in a value is written twice (qemu(1), QemuOpts).
    """
    shown = str(Path(path).absolute()).replace(",", ",,")
    return f"-chardev socket,path={shown},id=ivshmem -device ivshmem-doorbell,chardev=ivshmem,vectors={vectors}"
