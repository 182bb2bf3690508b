"""Build the guest of kernel_driver.toml: Debian's kernel, and an initramfs with guest.c and ivshmem_misc.ko.

    python3 examples/kernel_driver/build.py [DIRECTORY]        # build/guest is the default

It needs what examples/linux_guest/build.py needs, and make. Nothing is installed: the kernel, its headers and its build
tools are downloaded by apt-get and unpacked.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, os.fspath(HERE.parent / "linux_guest"))

from build import FILE, compile_guest, compile_module, cpio, download_headers, download_kernel  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the guest of examples/kernel_driver.")
    parser.add_argument("directory", nargs="?", type=Path, default=HERE.parents[1] / "build" / "guest")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        kernel_at, headers_at, module_at = (Path(scratch, name) for name in ("kernel", "headers", "module"))
        for path in (kernel_at, headers_at, module_at):
            path.mkdir()
        kernel, _ = download_kernel(kernel_at)
        files = {
            "init": compile_guest(Path(scratch), HERE / "guest.c"),
            "ivshmem_misc.ko": compile_module(HERE / "ivshmem_misc.c", download_headers(headers_at), module_at),
        }
        archive = cpio([(name, FILE | 0o755, content) for name, content in files.items()])
        (directory / "misc.gz").write_bytes(gzip.compress(archive, mtime=0))
        shutil.copyfile(kernel, directory / "vmlinuz")
    print(
        f"{directory}: vmlinuz and misc.gz are ready; `ivsim run examples/kernel_driver/kernel_driver.toml` boots them"
    )


if __name__ == "__main__":
    main()
