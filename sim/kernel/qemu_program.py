"""The QEMU of this host: the program, and its version."""

from __future__ import annotations

import functools
import os

from nodes.errors import QemuError, UsageError
from nodes.qemu_versions import NEWEST, QemuVersion

DEFAULT_QEMU = "qemu-system-x86_64"
QEMU_VARIABLE = "IVSHMEM_QEMU"
"""The variable of the environment that names another QEMU than the one on PATH."""

VERSION_SECONDS = 60.0


def chosen_qemu() -> str:
    """The name or path of the QEMU to be used where none is asked for."""
    return os.environ.get(QEMU_VARIABLE) or DEFAULT_QEMU


def find_qemu(name: str | None = None) -> str:
    """The path of the program of that name, or of the chosen one.

    Raises:
        UsageError: it is not on PATH.
    """
    name = name or chosen_qemu()
    import shutil

    path = shutil.which(name)
    if path is None:
        raise UsageError(
            f"{name} is not on PATH: install it (Debian: qemu-system-x86), or name one with {QEMU_VARIABLE}=PATH"
        )
    return path


@functools.cache
def qemu_version(path: str) -> QemuVersion:
    """What ``--version`` says.

    Raises:
        QemuError: the program does not run, or is no QEMU.
    """
    import subprocess

    try:
        told = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False, errors="replace"
        )
        return QemuVersion.parse(told.stdout.partition("\n")[0])
    except (OSError, subprocess.SubprocessError, UsageError) as error:
        raise QemuError(f"{path} --version told no version of QEMU: {error}") from error


def assumed_version() -> QemuVersion:
    """The version of the chosen QEMU; the newest known one where there is none."""
    try:
        return qemu_version(find_qemu())
    except (UsageError, QemuError):
        return NEWEST
