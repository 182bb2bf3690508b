"""Build the guest of the topology ``linux_guest``: Debian's kernel, and an initramfs with guest.c and its modules.

    python3 examples/linux_guest/build.py [DIRECTORY]        # build/guest is the default; `make guest` does this

It needs a C compiler with a static C library, apt-get and dpkg-deb. Nothing is installed: apt-get downloads the package
with the kernel, and it is kept, unpacked, in DIRECTORY/packages for the next build. A kernel of your own takes its
place with ``--kernel FILE --modules DIRECTORY``.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE, HEADERS = "linux-image-cloud-amd64", "linux-headers-cloud-amd64"
MODULES = ("irqbypass", "vfio", "vfio_iommu_type1", "vfio_virqfd", "vfio-pci-core", "vfio-pci")
"""In the order in which they need each other. A kernel that has one of them built in has no file for it."""
KEPT = "packages"
"""Where unpacked packages are kept for the next build, beside what is built."""
FILE, DIRECTORY = 0o100000, 0o040000


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An archive in the format "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

    Args:
        entries: path, mode with the type of file, content.
    """
    archive = bytearray()
    for number, (path, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name, checksum
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        for part in (b"070701" + b"".join(b"%08X" % field for field in fields) + name, content):
            archive += part
            archive += bytes(-len(archive) % 4)
    return bytes(archive)


def download(packages: list[str], kept: Path) -> Path:
    """Download and unpack Debian packages, unless an earlier build has; returns the directory with their files.

    Args:
        packages: their names; the directory is called as the first one, which contains its version.
        kept: the directory in which they are kept for the next build.
    """
    directory = kept.resolve() / packages[0]
    if directory.is_dir():
        return directory
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as scratch:
        # As root, apt-get drops its rights to download, and cannot then write here: no fault, but a warning.
        output(["apt-get", "download", "--quiet", "-o", "APT::Sandbox::User=root", *packages], cwd=Path(scratch))
        files = Path(scratch, "files")
        for package in Path(scratch).glob("*.deb"):
            output(["dpkg-deb", "-x", os.fspath(package), os.fspath(files)])
        with contextlib.suppress(OSError):  # another build has been faster
            files.rename(directory)
    return directory


def download_kernel(kept: Path) -> tuple[Path, Path]:
    """Debian's kernel: its image and the directory of its modules."""
    files = download([_dependency(PACKAGE, r"linux-image-\S+")], kept)
    (kernel,) = (files / "boot").glob("vmlinuz-*")
    (modules,) = (each for each in files.glob("**/lib/modules/*") if each.is_dir())
    return kernel, modules


def download_headers(kept: Path) -> Path:
    """What modules are built with: the directory for ``make -C``."""
    packages = [_dependency(HEADERS, r"linux-headers-\S+")]
    packages += [_dependency(packages[0], pattern) for pattern in (r"linux-headers-\S+-common", r"linux-kbuild-\S+")]
    sources = download(packages, kept) / "usr" / "src"
    (makefile,) = sources.glob("linux-headers-*-cloud-*/Makefile")
    # It names the directory in which the package would be installed.
    makefile.write_text(re.sub(r"\S*/usr/src/", f"{sources}/", makefile.read_text()))
    return makefile.parent


def _dependency(package: str, pattern: str) -> str:
    found = re.search(rf"Depends: ({pattern})", output(["apt-cache", "depends", package]))
    if found is None:
        sys.exit(f"apt-cache knows no {package}: run `apt-get update`, or build with a kernel of your own (--help)")
    return found[1]


def compile_module(source: Path, headers: Path, into: Path) -> bytes:
    """Build the module of one source file against these headers."""
    shutil.copy(source, into)
    (into / "Makefile").write_text(f"obj-m := {source.stem}.o\n")
    output(["make", "-s", "-C", os.fspath(headers), f"M={into}", "modules"])
    return (into / f"{source.stem}.ko").read_bytes()


def compile_guest(into: Path, source: Path = HERE / "guest.c") -> bytes:
    """Compile the guest; returns the static program."""
    program = into / "guest"
    compiler = os.environ.get("CC", "cc")
    output([compiler, "-O2", "-Wall", "-static", "-o", os.fspath(program), os.fspath(source)])
    return program.read_bytes()


def initramfs(program: bytes, modules: Path) -> bytes:
    """The initramfs: guest.c as /init, the modules, and the list of them."""
    entries: list[tuple[str, int, bytes]] = [("init", FILE | 0o755, program)]
    names = []
    for module in MODULES:
        for path in modules.rglob(f"{module}.ko*"):
            names.append(f"{module}.ko")
            entries.append((names[-1], FILE | 0o644, _unpacked(path)))
    entries.append(("modules", FILE | 0o644, "".join(f"/{name}\n" for name in names).encode()))
    entries.append(("dev", DIRECTORY | 0o755, b""))
    return gzip.compress(cpio(entries), mtime=0)


def _unpacked(path: Path) -> bytes:
    if path.suffix == ".xz":
        import lzma

        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    return path.read_bytes()


def build_with_module(example: Path, source: str, archive: str, *, shipped: Iterable[str] = ()) -> None:
    """The ``build.py`` of an example whose guest has a module of its own.

    Args:
        example: the folder of the example, with guest.c and the module's source.
        source: the name of the module's source file.
        archive: the name of the initramfs that is written beside the kernel.
        shipped: modules of Debian's kernel that the guest needs, too.
    """
    parser = argparse.ArgumentParser(description=f"Build the guest of examples/{example.name}.")
    parser.add_argument("directory", nargs="?", type=Path, default=HERE.parents[1] / "build" / "guest")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    kernel, modules = download_kernel(directory / KEPT)
    headers = download_headers(directory / KEPT)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        entries = [("init", FILE | 0o755, compile_guest(Path(scratch), example / "guest.c"))]
        for name in shipped:
            for path in modules.rglob(f"{name}.ko*"):
                entries.append((f"{name}.ko", FILE | 0o644, _unpacked(path)))
        module = compile_module(example / source, headers, Path(scratch).resolve())
        entries.append((f"{Path(source).stem}.ko", FILE | 0o644, module))
        (directory / archive).write_bytes(gzip.compress(cpio(entries), mtime=0))
        shutil.copyfile(kernel, directory / "vmlinuz")
    run = f"ivsim run examples/{example.name}/{example.name}.toml"
    print(f"{directory}: vmlinuz and {archive} are ready; `{run}` boots them")


def output(command: list[str], cwd: Path | None = None) -> str:
    """Run a command; returns what it prints. One that fails ends this program with its words."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit(f"this needs {command[0]}, which is not installed")
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Build the guest."""
    parser = argparse.ArgumentParser(description="Build the Linux guest of the topology linux_guest.")
    parser.add_argument("directory", nargs="?", type=Path, default=HERE.parents[1] / "build" / "guest")
    parser.add_argument("--kernel", type=Path, help="a kernel image instead of Debian's")
    parser.add_argument("--modules", type=Path, help="the directory of its modules: /lib/modules/VERSION")
    arguments = parser.parse_args()
    if (arguments.kernel is None) != (arguments.modules is None):
        parser.error("--kernel and --modules go together")
    directory = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        program = compile_guest(Path(scratch))
        kernel, modules = arguments.kernel, arguments.modules
        if kernel is None:
            kernel, modules = download_kernel(directory / KEPT)
        (directory / "initrd.gz").write_bytes(initramfs(program, modules))
        shutil.copyfile(kernel, directory / "vmlinuz")
    print(f"{directory}: vmlinuz and initrd.gz are ready; `ivsim run linux_guest` boots them")


if __name__ == "__main__":
    main()
