"""The names in a run directory, and the few ways in which its small files are read and written.

Written while the run lasts, or at its end:

    topology.toml           as given                             summary.json         the figures
    manifest.json           topology, host, time, process        samples.parquet      each sampled doorbell
    status                  a word, then the reason              drains.parquet       each drained eventfd counter
    events.jsonl            appended as things happen            edges.parquet        doorbells by sender
    console-<machine>.txt   of a machine with a guest            vectors.parquet      doorbells received
    outlier.json            of a run that ended at an outlier    histograms.parquet   latencies by machine and phase
    kernel.parquet          the same, with a kernel trace        resources.parquet    samples of processes, host, CPUs
    parts/<host>/           of a run over several hosts

Removed when the results are complete:

    raw/<machine>.rec       the recordings                       resources.arrows     becomes resources.parquet
    ending.json             the state at the end                 .reserve             room on the disk for the end

A file is written beside its place, synced and renamed, so that a reader meets it whole or not at all. A name
that comes out of a file never becomes part of a path.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import itertools
import os
import re
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from nodes.errors import UsageError
from sim.recording.console_file import console_file

TOPOLOGY = "topology.toml"
MANIFEST = "manifest.json"
STATUS = "status"
EVENTS = "events.jsonl"
ENDING = "ending.json"
OUTLIER = "outlier.json"
RAW = "raw"
PARTS = "parts"
RESOURCE_STREAM = "resources.arrows"
RESERVE = ".reserve"
SUMMARY = "summary.json"

RUNNING = "running"
DIED = "died"
STATUSES = (RUNNING, "finished", "degraded", "failed", "interrupted", DIED)

STATUS_LIMIT_BYTES = 16 << 10
STATUS_IN_PLACE_BYTES = 512
# 65536 machines of some 100 bytes each, with room to spare.
JSON_LIMIT_BYTES = 64 << 20

T = TypeVar("T")


def slug(title: str) -> str:
    """A title as part of a file's name: at most 40 lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].rstrip("-") or "run"


def new_directory(parent: Path, name: str, started: datetime.datetime) -> Path:
    """Make a directory, mode 0700: the name, UTC time and the first free number. Raises ``OSError``."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = parent / f"{name}-{started:%Y%m%dT%H%M%SZ}-{number}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            break
    return path


def private(path: str, flags: int, mode: int = 0o600) -> int:
    """An opener for files with that mode that does not follow a link."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)


def at_once(path: str, flags: int) -> int:
    """An opener for reading: a fifo under that name does not hold the reader."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


def replace(path: Path, content: bytes, *, mode: int = 0o600, is_durable: bool = True) -> None:
    """Write ``content`` beside ``path``, sync it if it is durable, rename it. A failure leaves what was there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb", opener=partial(private, mode=mode)) as file:
            file.write(content)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def sync_directory(path: Path) -> None:
    """Make the renames in ``path`` outlive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """The content of a small regular file.

    Raises:
        UsageError: it is missing, unreadable, no regular file, or larger than ``limit_bytes``.
    """
    try:
        with open(path, "rb", opener=at_once) as file:
            # Not the limit: that much would be allocated first.
            size_bytes = os.fstat(file.fileno()).st_size
            content = b"" if size_bytes > limit_bytes else file.read(size_bytes)
    except FileNotFoundError:
        raise UsageError(f"{path.name} is missing") from None
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror}") from error
    if size_bytes > limit_bytes:
        raise UsageError(f"{path.name} is larger than the {limit_bytes} bytes it may have")
    return content


def read_json(path: Path, kind: type[T]) -> T:
    """``path`` as a checked ``kind``. Raises ``UsageError`` that says which field is wrong."""
    content = read_bytes(path, JSON_LIMIT_BYTES)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path.name} is damaged: {error}") from error


def write_json(path: Path, value: object) -> None:
    """``value`` (a msgspec structure or plain data) as indented JSON, written beside and renamed."""
    replace(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def console(path: Path, machine: str) -> Path:
    """Where the console of a machine with a guest of its own is kept."""
    return path / console_file(machine)


def write_status(path: Path, word: str, reason: str = "") -> None:
    """Put ``word`` and ``reason`` into the status file of the run directory ``path``."""
    if word not in STATUSES:
        raise UsageError(f"status {word!r} is none of {', '.join(STATUSES)}")
    content = f"{word}\n{reason}".rstrip("\n").encode(errors="replace") + b"\n"
    try:
        replace(path / STATUS, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # A full disk still has the block that the file occupies: a status in place is better than an untrue one.
        with open(path / STATUS, "r+b", buffering=0, opener=private) as file:
            file.write(content[:STATUS_IN_PLACE_BYTES])
            file.truncate(min(len(content), STATUS_IN_PLACE_BYTES))


def read_status(path: Path) -> tuple[str, str]:
    """The status word and its reason. Raises ``UsageError`` when there is none, or an unknown one."""
    text = read_bytes(path / STATUS, STATUS_LIMIT_BYTES).decode(errors="replace")
    word, _, reason = text.partition("\n")
    if word not in STATUSES:
        raise UsageError(f"status is damaged: {word[:40]!r} is none of {', '.join(STATUSES)}")
    return word, reason.strip()


def recordings(path: Path) -> dict[int, Path]:
    """The recordings in the run directory ``path``, by machine; only real files in a real ``raw`` count."""
    raw = path / RAW
    if raw.is_symlink() or not raw.is_dir():
        return {}
    found = {}
    for entry in os.scandir(raw):
        stem, dot, extension = entry.name.partition(".")
        named = dot and extension == "rec" and stem.isascii() and stem.isdigit() and len(stem) <= 5
        if named and entry.is_file(follow_symlinks=False):
            found[int(stem)] = Path(entry.path)
    return dict(sorted(found.items()))
