"""Build the guest of kernel_driver.toml: Debian's kernel, and an initramfs with guest.c and ivshmem_misc.ko.

    python3 examples/kernel_driver/build.py [DIRECTORY]        # build/guest is the default

It needs what examples/linux_guest/build.py needs, and make. Nothing is installed: the kernel, its headers and its build
tools are downloaded by apt-get and unpacked.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, os.fspath(HERE.parent / "linux_guest"))

from build import build_with_module  # noqa: E402

if __name__ == "__main__":
    build_with_module(HERE, "ivshmem_misc.c", "misc.gz")
