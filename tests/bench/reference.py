"""The C reference, built by the compiler of the host and called in this process."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["ClientProcesses", "NoCompilerError", "Reference", "built_reference"]

SOURCE = Path(__file__).with_name("reference.c")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC")
SECOND_NS = 1_000_000_000
WAYS_TO_WAIT = {"read": 0, "epoll": 1}


class NoCompilerError(Exception):
    """There is no C compiler, or it cannot compile the reference."""


@contextlib.contextmanager
def built_reference() -> Iterator[Reference]:
    """The reference, built in a temporary directory."""
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(prefix="ivsim-bench-") as folder:
        library = Path(folder) / "reference.so"
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(library)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise NoCompilerError(f"{compiler[0]} cannot build {SOURCE.name}:\n{made.stderr.strip()}")
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
        yield Reference(ctypes.CDLL(str(library), use_errno=True), version.partition("\n")[0])


def find_compiler() -> list[str]:
    """The command of a C compiler: $CC, or the first of cc, gcc, clang on PATH."""
    wanted = os.environ.get("CC", "").split()
    for command in [wanted] if wanted else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    names = wanted[0] if wanted else "cc, gcc, clang"
    raise NoCompilerError(
        f"the benchmarks compare with C and need a C compiler: none of {names} is on PATH. Install one "
        "(Debian: apt install gcc libc6-dev), or name yours in CC"
    )


@dataclass(frozen=True)
class ClientProcesses:
    """Clients; ``report`` can be read when they have read everything."""

    report: BinaryIO
    shared: ctypes.Array[ctypes.c_int64]

    @property
    def cpu_ns(self) -> int:
        """The CPU time that they have used, in nanoseconds."""
        return self.shared[1]


class Reference:
    """The same work in C; all times in nanoseconds."""

    def __init__(self, library: ctypes.CDLL, compiler: str) -> None:
        self.compiler = compiler
        self._library = library
        for name in ("write_doorbells", "ping_pong", "storm", "pass_messages", "start_clients", "serve_one_by_one"):
            getattr(library, name).restype = ctypes.c_int64

    def write_doorbells(self, lines: Sequence[int], doorbells: int) -> float:
        """The time of one ``write`` of 8 bytes to an eventfd; ``lines`` are written in turn."""
        array = (ctypes.c_int * len(lines))(*lines)
        return self._call("write_doorbells", array, len(lines), ctypes.c_int64(doorbells)) / doorbells

    def ping_pong(self, way: str, cpu: int, other_cpu: int, round_trips: int) -> list[int]:
        """The round trips between two processes on these CPUs that wait by "read" or by "epoll"."""
        stamps = (ctypes.c_int64 * round_trips)()
        self._call("ping_pong", WAYS_TO_WAIT[way], cpu, other_cpu, stamps, ctypes.c_int64(round_trips))
        return [later - earlier for earlier, later in itertools.pairwise(stamps)]

    def storm(self, machines: int, vectors: int, burst: int, duration_s: float) -> float:
        """Doorbells per second of CPU of processes that all ring all."""
        rung, duration_ns = ctypes.c_int64(), ctypes.c_int64(round(duration_s * SECOND_NS))
        cpu_ns = self._call("storm", machines, vectors, burst, duration_ns, ctypes.byref(rung))
        return rung.value * SECOND_NS / cpu_ns

    def pass_messages(self, sender: int, receiver: int, descriptor: int, batch: int, batches: int) -> float:
        """The time of one message with a descriptor, sent and received."""
        return self._call("pass_messages", sender, receiver, descriptor, batch, batches) / (batch * batches)

    @contextlib.contextmanager
    def clients(self, path: str, clients: int, deaf: int, messages: int) -> Iterator[ClientProcesses]:
        """Processes that are connected to ``path``, each a client; the first ``deaf`` of them never read.

        A "d" can be read when each of the others has had so many messages.
        """
        hold, ours = os.pipe()
        told, theirs = os.pipe()
        shared = (ctypes.c_int64 * 2).from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        with open(told, "rb", buffering=0) as report:
            child = None
            try:
                counts, pipe = (clients, deaf, ctypes.c_int64(messages)), (ctypes.c_int * 2)(hold, ours)
                child = self._call("start_clients", shared, os.fsencode(path), *counts, theirs, pipe)
                for descriptor in (theirs, hold):
                    os.close(descriptor)
                for _ in range(clients):
                    if report.read(1) != b"c":
                        raise OSError("the clients of the benchmark could not connect")
                yield ClientProcesses(report, shared)
            finally:
                os.close(ours)
                if child is not None:
                    os.waitpid(child, 0)

    def serve_one_by_one(self, listener: int, memory: int, clients: int, vectors: int, done: int) -> float:
        """What it takes until all clients that wait have joined, one after the other, and ``done`` has a "d"."""
        return self._call("serve_one_by_one", listener, memory, clients, vectors, done)

    def _call(self, name: str, *arguments: object) -> int:
        result: int = getattr(self._library, name)(*arguments)
        if result < 0:
            raise OSError(-result, f"{name} in C: {os.strerror(-result)}")
        return result
