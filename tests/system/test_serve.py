"""`ivsim serve` as a process: what it offers, what it refuses, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes.wire.client import Assigned, Client, MemoryShared, VectorConnected
from sim.kernel.channel import Channel
from tests.command import invoke

PATIENCE_S = 60.0


def serve(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sim", "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def serving(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with serve("-F", "-S", str(path), "-M", path.parent.name, *arguments) as server:
        assert server.stderr is not None
        first = server.stderr.readline()
        assert first.startswith("serving"), first + server.stderr.read()
        try:
            yield server
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
                server.wait(PATIENCE_S)


class GreetedClient:
    """A client that reads until it has all that the greeting of an empty server holds."""

    def __init__(self, path: Path, vectors: int) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        self.channel = Channel(sock)
        sock.settimeout(PATIENCE_S)
        self.client: Client[int] = Client(vectors)
        self.events: list[object] = []
        while self.client.peer is None or self.client.peers.get(self.client.peer, 0) < vectors:
            received = self.channel.receive(self.client.missing_bytes)
            assert received is not None
            self.events += self.client.receive(*received)

    @property
    def memory(self) -> int:
        (descriptor,) = [event.descriptor for event in self.events if isinstance(event, MemoryShared)]
        return descriptor

    def close(self) -> None:
        for event in self.events:
            if isinstance(event, MemoryShared | VectorConnected):
                os.close(event.descriptor)
        self.channel.close()


def test_a_client_gets_an_id_the_memory_and_its_vectors(short_path: Path) -> None:
    path = short_path / "s"
    with serving(path, "-n", "3", "-l", "100K"), contextlib.closing(GreetedClient(path, 3)) as visitor:
        assert visitor.events[0] == Assigned(0)
        (memory,) = [event.descriptor for event in visitor.events if isinstance(event, MemoryShared)]
        assert os.fstat(memory).st_size == 128 << 10  # rounded up to a power of two
        assert visitor.client.peers == {0: 3}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert Path("/dev/shm", short_path.name).stat().st_size == 128 << 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_nothing(number: signal.Signals, short_path: Path) -> None:
    path = short_path / "s"
    with serving(path) as server, contextlib.closing(GreetedClient(path, 1)) as visitor:
        server.send_signal(number)
        assert server.wait(PATIENCE_S) == 0
        assert server.stderr is not None
        qemu, ending = server.stderr.read().splitlines()
        options = f"-chardev socket,path={path},id=ivshmem -device ivshmem-doorbell,chardev=ivshmem,vectors=1"
        assert qemu == f"for QEMU: {options}"
        assert ending.startswith(f"ivsim: still connected: peer 0 (pid {os.getpid()}). They keep this memory")
        assert visitor.channel.receive(8) == (b"", [])
    assert list(short_path.iterdir()) == []
    assert not Path("/dev/shm", short_path.name).exists()


def test_it_reports_joins_and_leaves_if_asked(short_path: Path) -> None:
    path = short_path / "s"
    with serving(path, "-v") as server:
        assert server.stderr is not None
        assert server.stderr.readline().startswith("for QEMU: ")
        GreetedClient(path, 1).close()
        assert server.stderr.readline() == f"peer 0 joined (pid {os.getpid()}, uid {os.getuid()})\n"
        assert server.stderr.readline() == "peer 0 left: left\n"


def test_a_second_server_on_the_same_socket_is_refused_and_does_no_harm(short_path: Path) -> None:
    path = short_path / "s"
    with serving(path):
        with serve("-F", "-S", str(path), "-M", short_path.name + "-2") as second:
            _, stderr = second.communicate(timeout=PATIENCE_S)
            assert second.returncode == 2
            assert "another server is listening" in stderr
        with serve("-F", "-S", str(short_path / "t"), "-M", short_path.name) as third:
            _, stderr = third.communicate(timeout=PATIENCE_S)
            assert third.returncode == 2
            assert "exists already: another server uses it" in stderr
        with contextlib.closing(GreetedClient(path, 1)) as visitor:
            assert visitor.client.peer == 0  # looking at the socket has cost no ID
    assert not Path("/dev/shm", short_path.name + "-2").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-l", "0"], "expected a size from 4K to 1T, got '0'"),
        (["-l", "2T"], "expected a size from 4K to 1T, got '2T'"),
        (["-l", "3X"], "expected a size such as 65536, 64K, 4M, 1.5G, 1T or 0x400000, got '3X'"),
        (["-n", "08"], "expected a number such as 8, 0x8 or 010 (octal), got '08'"),
        (["-n", "-1"], "expected a number such as 8, 0x8 or 010 (octal), got '-1'"),
        (["-n", "0x1000000000000000000"], "expected a number such as 8, 0x8 or 010 (octal)"),
        (["-n", "0"], "0 is not in the range 1<=x<=2048"),
        (["-M", "a/b"], "expected a name without slashes"),
        (
            ["-S", "/nonexistent/directory/s"],
            "directory/s: No such file or directory: there is no directory /nonexistent/directory",
        ),
        (["-S", "/tmp/" + "x" * 120], "107 bytes"),
        (["--memfd"], "the memory is either -M, -m or --memfd"),
        (["--mode", "999"], "expected three octal digits"),
        (["--mode", "777"], "expected three octal digits"),
        (["--group", "no-such-group"], "there is no group 'no-such-group'"),
        (["--group", "99999999999"], "there is no group '99999999999'; numbers are 0 to 4294967294"),
        (["--group", "4294967296"], "there is no group '4294967296'; numbers are 0 to 4294967294"),
        (["--group", "4294967295"], "there is no group '4294967295'; numbers are 0 to 4294967294"),
        (["--group", "-1"], "there is no group '-1'; numbers are 0 to 4294967294"),
        (["--uid", "4294967295"], "4294967295 is not in the range 0<=x<=4294967294"),
        (["--max-clients", "99999999999999999999"], "is not in the range 1<=x<=65536"),
        (["--ids", "65536"], "65536 is not in the range 0<=x<=65535"),
        (["--dialect", "v3"], "expected one of v0, legacy, v0-shm-last, v2, got 'v3'"),
        (["--log", "/nonexistent/log"], "cannot write the log /nonexistent/log"),
        (["--log", "/dev/full"], "cannot write the log /dev/full: No space left on device"),
        (["--reuse-memory"], "cannot be opened"),
    ],
)
def test_wrong_use_is_explained(arguments: list[str], message: str, short_path: Path) -> None:
    refused = invoke("serve", "-F", "-M", short_path.name, "-S", str(short_path / "s"), *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not Path("/dev/shm", short_path.name).exists()
    assert list(short_path.iterdir()) == []  # no socket, no pid file, no log


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        (["-l", "31.25M"], "serving 33554432 bytes"),
        (["-l", "1.5M"], "serving 2097152 bytes"),
        (["-l", "0x400000"], "serving 4194304 bytes"),
        (["-l4k"], "serving 4096 bytes"),
        (["-n", "010"], "8 vectors"),
        (["-n", " +8"], "8 vectors"),
        (["-n0x8"], "8 vectors"),
    ],
)
def test_sizes_and_numbers_are_taken_as_ivshmem_server_takes_them(
    arguments: list[str], served: str, short_path: Path
) -> None:
    """qemu_strtosz and parse_uint_full with base 0 (contrib/ivshmem-server/main.c)."""
    with serve("-F", "-S", str(short_path / "s"), "-M", short_path.name, *arguments) as server:
        assert server.stderr is not None
        assert served in server.stderr.readline()
        server.terminate()


@pytest.mark.skipif(os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE > 1 << 40, reason="this host has a terabyte")
def test_a_terabyte_is_no_wrong_use(short_path: Path) -> None:
    with serve("-F", "-S", str(short_path / "s"), "--memfd", "-l", "1T") as server:
        _, stderr = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 3
    assert "no room for 1099511627776 bytes of shared memory" in stderr


def test_a_server_says_on_stdout_and_a_descriptor_when_clients_can_connect(tmp_path: Path) -> None:
    path = tmp_path / "s"
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as ready:
        options = ["-F", "-S", str(path), "--memfd", "--ready-fd", str(write_end)]
        with subprocess.Popen(
            [sys.executable, "-m", "sim", "serve", *options], stdout=subprocess.PIPE, text=True, pass_fds=(write_end,)
        ) as server:
            os.close(write_end)
            try:
                assert ready.read() == f"{path}\n"  # to the end: the descriptor was closed
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                assert server.stdout is not None
                assert server.stdout.readline() == f"listening on {path}\n"
            finally:
                server.send_signal(signal.SIGTERM)
    assert server.returncode == 0


@pytest.mark.parametrize(
    ("options", "words"), [(["--ready-fd", "3"], "goes with -F"), (["-F", "--ready-fd", "999"], "Bad file descriptor")]
)
def test_a_descriptor_that_cannot_be_written_is_refused(options: list[str], words: str, tmp_path: Path) -> None:
    with serve("-S", str(tmp_path / "s"), "--memfd", *options) as refused:
        _, told = refused.communicate(timeout=PATIENCE_S)
    assert (refused.returncode, words in told) == (2, True), told
