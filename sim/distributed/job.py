"""One command line for another host, and its result: plain data, a packed directory, a digest."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from nodes.errors import HostError, IvshmemError, RunError, UsageError
from sim.exit_codes import WRONG_USE
from sim.results.store import files
from topologies import Topology

TOPOLOGY, PROGRAMS = "topology", "programs"
COMPRESSION = 1
"""gzip's fastest level: the tables are compressed already, the small files of JSON are not."""


class Job(msgspec.Struct, frozen=True):
    """A command line of `ivsim`, without the name of the program.

    Attributes:
        arguments: the arguments; files have relative names.
        files: the name of each file that the command reads, and its content.
        collect: the directory in which the command makes a run directory, to be sent back; "": none.
        barrier: the name of the barrier at which the run waits for those of other hosts; "": it does not wait.
    """

    arguments: list[str]
    files: dict[str, bytes]
    collect: str = ""
    barrier: str = ""


class JobResult(msgspec.Struct, frozen=True):
    """The result of a command line.

    Attributes:
        host: the name of the host that ran it.
        code: its exit code; negative: the number of the signal that ended it.
        stdout: its standard output.
        stderr: the end of its standard error.
        archive: the run directory as a compressed tar file; empty when there is none.
        digest: the SHA-256 of ``archive``.
    """

    host: str
    code: int
    stdout: bytes
    stderr: str
    archive: bytes
    digest: str


def refusal(what: str, result: JobResult) -> IvshmemError:
    """The error of a command that has refused its work, with what it said."""
    said = result.stderr.removeprefix("ivsim: ") or f"exit code {result.code}"
    wrong = UsageError if result.code == WRONG_USE else HostError
    return wrong(f"{what} on {result.host or 'this host'}: {said}")


def write_files(job: Job, place: Path) -> None:
    """Write the files of a job below ``place``. Raises ``UsageError`` when a name leaves that directory."""
    for name, content in job.files.items():
        path = place / _relative(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if job.collect:
        (place / _relative(job.collect)).mkdir()


def pack(directory: Path) -> tuple[bytes, str]:
    """The regular files in a directory as a compressed tar file, and the SHA-256 of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=COMPRESSION) as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.add(path, path.relative_to(directory).as_posix(), recursive=False)
    content = buffer.getvalue()
    return content, hashlib.sha256(content).hexdigest()


def unpack(result: JobResult, directory: Path) -> None:
    """Write the run directory of a result to ``directory``, which does not exist yet.

    Raises:
        RunError: the archive is not the one that was sent, or holds anything but files with names below it.
        OSError: the disk refuses.
    """
    if hashlib.sha256(result.archive).hexdigest() != result.digest:
        raise RunError(f"the run from {result.host} arrived damaged: its SHA-256 is not {result.digest}")
    directory.mkdir(mode=0o700, parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(result.archive), mode="r:gz") as archive:
            for member in archive:
                source = archive.extractfile(member) if member.isreg() else None
                if source is None:
                    raise RunError(f"the run from {result.host} holds {member.name!r}, which is no regular file")
                path = directory / _relative(member.name)
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with open(path, "xb", opener=files.private) as target:
                    while block := source.read(1 << 20):
                        target.write(block)
                os.utime(path, (member.mtime, member.mtime))
    except (tarfile.TarError, EOFError, UsageError) as error:
        raise RunError(f"the run from {result.host} cannot be unpacked: {error}") from error


def _relative(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise UsageError(f"expected the name of a file below a directory, got {name!r}")
    return path


class Inputs(NamedTuple):
    """The files by their names there, and the arguments of a command that name them."""

    files: dict[str, bytes]
    arguments: list[str]


def collect_inputs(topology: Topology, programs: Sequence[str | Path]) -> Inputs:
    """The text of a topology, its traces, and the programs that the user has named; no other file travels.

    Raises:
        UsageError: a file cannot be read, two programs have the same name, or the topology needs an image of a guest.
    """
    if guest := next((machine for machine in topology.machines if machine.guest is not None), None):
        raise UsageError(f"{guest.name} has an image of a guest, which is not sent to other hosts")
    name = f"{TOPOLOGY}/{Path(topology.source_name).name}"
    files = {name: topology.source_text.encode()}
    for trace, source in topology.files.items():
        if Path(trace).is_absolute() or ".." in Path(trace).parts:
            raise UsageError(f"{trace}: only files below the topology's directory are sent to other hosts")
        files[f"{TOPOLOGY}/{trace}"] = _read(Path(source))
    arguments = [name]
    for program in map(Path, programs):
        sent = f"{PROGRAMS}/{program.name}"
        if sent in files:
            raise UsageError(f"two programs are called {program.name}; other hosts have them in one directory")
        files[sent] = _read(program)
        arguments += ["--program", sent]
    for key, value in topology.overrides.items():
        arguments += ["--set", f"{key}={value}"]
    return Inputs(files, arguments)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
