"""Faults of sockets: F4, F13 and F14 of tests/fault_matrix.py."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.telemetry import Publisher, Snapshot, Subscriber
from tests.faults.processes import ivsim, run_ivsim, wait_until
from tests.serving import Reader, lines_of

READERS, VECTORS = 8, 8


@pytest.mark.fault("F4", full=100, sample=5, unit="clients that never read")
def test_clients_that_never_read_cost_the_others_nothing(fault_count: int, make_site: Any) -> None:
    """Every client that reads gets every eventfd of every other one, in whatever order they connect."""
    site = make_site(vectors=VECTORS)
    for _ in range(fault_count):
        site.raw()
    readers = [Reader(site.raw()) for _ in range(READERS)]
    for reader in readers:
        site.stack.callback(reader.close)

    def met() -> bool:
        for reader in readers:
            reader.read()
            assert not reader.ended
        own = [reader.client.peer for reader in readers]
        wanted = None if None in own else lines_of(*own, vectors=VECTORS)
        return wanted is not None and all(set(reader.lines) >= wanted for reader in readers)

    site.until(met)


@pytest.fixture
def taken(short_path: Path) -> Iterator[dict[str, Path]]:
    """Paths at which no server may listen, by what is there."""
    paths = {name: short_path / name for name in ("file", "directory", "fifo", "link", "dangling", "live")}
    paths["file"].write_text("mine")
    paths["directory"].mkdir()
    os.mkfifo(paths["fifo"])
    paths["link"].symlink_to(paths["file"])
    paths["dangling"].symlink_to(short_path / "nowhere")
    paths["missing"] = short_path / "no" / "such" / "folder"
    paths["long"] = short_path / ("x" * 108)
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(os.fspath(paths["live"]))
        live.listen()
        yield paths


@pytest.mark.fault("F13", full=8, sample=8, unit="paths that are taken")
def test_a_path_that_is_taken_is_refused_and_left_as_it_is(fault_count: int, taken: dict[str, Path]) -> None:
    assert len(taken) == fault_count
    before = {name: path.lstat() if path.is_symlink() or path.exists() else None for name, path in taken.items()}
    for name, path in taken.items():
        done = run_ivsim("serve", "-F", "-S", path, "--memfd")
        assert done.returncode == 2, (name, done.stderr)
        assert "Traceback" not in done.stderr, name
        now = path.lstat() if path.is_symlink() or path.exists() else None
        assert (now and (now.st_ino, now.st_mode)) == ((it := before[name]) and (it.st_ino, it.st_mode)), name


def test_a_socket_is_private_in_a_folder_that_is_not(short_path: Path) -> None:
    """The mode is set before the socket can be connected to (F13)."""
    short_path.chmod(0o777)
    path = short_path / "s"
    with ivsim("serve", "-F", "-S", path, "--memfd"):
        wait_until(path.exists, "the server listens")
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def snapshot(number: int) -> Snapshot:
    return Snapshot(number=number, time_ns=1, phase="running", machines=0, up=0, start_ns=1, stop_ns=None,
                    heartbeats_late=0, groups={})  # fmt: skip


def hostile(rng: random.Random, encoded: bytes) -> bytes:
    """What is no snapshot: noise, a snapshot cut or changed, deep or long structures."""
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.randrange(300))
        case 1:
            return encoded[: rng.randrange(len(encoded))]
        case 2:
            changed = bytearray(encoded)
            changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)
        case 3:
            return b"\x91" * rng.randrange(2000)
        case _:
            return b"\xdf" + struct.pack(">I", rng.randrange(1 << 32)) + rng.randbytes(20)


class Frames:
    """The socket of a subscriber, fed by the test."""

    def __init__(self) -> None:
        self.frame = b""

    def poll(self, _: int) -> bool:
        return True

    def recv(self) -> bytes:
        return self.frame


@pytest.mark.fault("F14", full=1_000_000, sample=5000, unit="frames to a subscriber")
def test_no_frame_stops_a_subscriber(seed: int, fault_count: int, short_path: Path) -> None:
    rng = random.Random(seed)
    with Publisher(short_path / "t") as publisher, Subscriber(publisher.endpoint) as subscriber:
        encoded = publisher._encode(snapshot(3))
        real, subscriber._socket = subscriber._socket, Frames()
        try:
            for _ in range(fault_count):
                subscriber._socket.frame = hostile(rng, encoded)
                received = subscriber.receive(0)
                assert received is None or isinstance(received, Snapshot)
            subscriber._socket.frame = encoded
            assert subscriber.receive(0) == snapshot(3)
        finally:
            subscriber._socket = real


@pytest.mark.fault("F14", full=20_000, sample=200, unit="hostile subscribers")
def test_no_subscriber_stops_the_publisher(seed: int, fault_count: int, short_path: Path) -> None:
    """Each call of ``publish`` does a bounded amount of work, whatever is sent to the socket."""
    rng = random.Random(seed)
    with Publisher(short_path / "t") as publisher:
        held = len(os.listdir("/proc/self/fd"))
        path = publisher.endpoint.removeprefix("ipc://")
        for number in range(fault_count):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    sock.connect(path)
                    sock.send(rng.randbytes(rng.choice((1, 64, 5000, 200_000))))
                publisher.publish(snapshot(number))
            assert len(os.listdir("/proc/self/fd")) <= held + 40
        for number in range(3):
            publisher.publish(snapshot(number))
        assert len(os.listdir("/proc/self/fd")) == held
