"""sim.wire.replayer and `ivsim replay`: a recorded server, played to a client under test."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nodes.errors import HostError
from nodes.wire.analyzer import explain
from nodes.wire.capture import HEADER, KINDS, Kind, SentMessage, parse
from sim.kernel.channel import Channel
from sim.kernel.eventfd import signal as ring
from sim.kernel.loop import Loop
from sim.kernel.qemu_program import find_qemu
from sim.wire.attachment import Attachment
from sim.wire.listener import Listener
from sim.wire.proxy import kind_of
from sim.wire.replayer import Played, Replayer

PATIENCE_S = 60.0

GREETING = """\
0 1 client connects
0 1 server 0
0 1 server 1
0 1 server -1 memfd:8192
0 1 server 0 eventfd:4
0 1 server 0 eventfd:5
0 1 server 1 eventfd:6
0 1 server 1 eventfd:7
"""


class ReplayerSetup:
    """A loop and a replayer on it; its output is kept."""

    def __init__(self, directory):
        self.path = directory / "s"
        self.stack = contextlib.ExitStack()
        self.loop = Loop()
        self.stack.callback(self.loop.close)
        self.told = []
        self.now_ns = time.monotonic_ns()

    def play(self, text, **options):
        entries = parse([HEADER, *text.splitlines()]).entries
        listener = self.stack.enter_context(Listener(self.path))
        player = Replayer(self.loop, listener, entries, tell=lambda _, text: self.told.append(text), **options)
        return self.stack.enter_context(player)

    def connect(self):
        client = socket.socket(socket.AF_UNIX)
        self.stack.callback(client.close)
        client.connect(os.fspath(self.path))
        return client

    def until(self, condition):
        while not condition():
            self.loop.step()

    def receive(self, client):
        """The next 8 bytes as a number, and the kinds of what came with them; None at the end."""
        channel = Channel(client)
        while (received := channel.receive(8)) is None:
            self.loop.step()
        data, descriptors = received
        kinds = [kind_of(descriptor) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        return (int.from_bytes(data, "little", signed=True), kinds) if data else None


@pytest.fixture
def stage(short_path):
    stage = ReplayerSetup(short_path)
    with stage.stack:
        yield stage


def test_a_simulated_peer_takes_it_for_a_server(stage):
    player = stage.play(GREETING + "0 1 server 2 eventfd:8\n", speed=0)
    peer = Attachment(stage.loop, stage.path, vectors=2)
    stage.stack.callback(peer.close)
    peer.meet()
    stage.until(lambda: 2 in peer.peers)
    assert (peer.peer, peer.peers, len(peer.memory)) == (1, {0: 2, 1: 2, 2: 1}, 8192)
    for target, vector in ((0, 1), (0, 1), (2, 0), (1, 0)):
        assert peer.ring(target, vector)
    stage.until(lambda: peer.unseen)  # its own vector works, too
    assert not player.done
    peer.close()
    stage.until(lambda: player.done)
    assert player.result() == Played(8, 8, {(0, 1): 2, (2, 0): 1})
    assert player.result().complete
    assert stage.told == ["client connected", "client closed, after 8 of 8"]


def test_descriptors_are_of_the_recorded_kinds(stage):
    said = [
        "memfd:6000", "memfd:0", "memfd:4096:ro", "shm:4096", "shm:8192:ro", "file:10", "file:0:ro", "eventfd",
        "eventfd:3", "socket", "pipe", "char", "directory", "pipe eventfd socket",
    ]  # fmt: skip
    assert {word.split(":")[0] for words in said for word in words.split()} == {*KINDS} - {"block", "other"}
    lines = [f"0 1 server {number} {kinds}" for number, kinds in enumerate(said)]
    stage.play("\n".join(["0 1 client connects", *lines, "0 1 server closes"]), speed=0)
    client = stage.connect()
    for number, expected in enumerate(said):
        got_number, kinds = stage.receive(client)
        shown = [
            str(Kind(kind.name, None if kind.name == "eventfd" else kind.number, kind.read_only)) for kind in kinds
        ]
        assert (got_number, " ".join(shown)) == (number, expected.replace("eventfd:3", "eventfd"))
    assert stage.receive(client) is None


def test_a_kind_that_cannot_be_made_is_dev_null(stage):
    stage.play("0 1 client connects\n0 1 server 5 block other\n", speed=0)
    client = stage.connect()
    assert stage.receive(client) == (5, [Kind("char"), Kind("char")])


def test_a_failed_memfd_is_reported(stage, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", refuse)
    stage.play("0 1 client connects\n0 1 server -1 memfd:4096\n", speed=0)
    stage.connect()
    with pytest.raises(HostError, match=r"cannot make a descriptor to send \(memfd:4096\): .*Too many open files"):
        stage.until(lambda: False)


def test_one_eventfd_stays_one_until_its_peer_leaves(stage):
    lines = ["0 1 server 1 eventfd:9", "0 1 server 1 eventfd:9", "0 1 server 2 eventfd:9", "0 1 server 1",
             "0 1 server 3 eventfd:9", "0 1 server 3 eventfd"]  # fmt: skip
    stage.play("\n".join(["0 1 client connects", *lines]), speed=0)
    client = stage.connect()
    numbers = [kinds[0].number if kinds else None for _, kinds in (stage.receive(client) for _ in lines)]
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[3] is None
    assert len({numbers[0], numbers[4], numbers[5]}) == 3


def test_the_recorded_times_are_kept_and_speed_divides_them(stage):
    text = "5 1 client connects\n6 1 server 0\n7.5 1 server 1\n7.5 1 server bytes 0102\n9 1 server closes\n"
    player = stage.play(text, speed=2, clock=lambda: stage.now_ns)
    due = []
    stage.loop.at = lambda moment_ns, callback: due.append((moment_ns - stage.now_ns, callback))
    client = stage.connect()
    channel = Channel(client)
    stage.until(lambda: player.connected)
    for pause_ns, expected in (
        (500_000_000, bytes(8)),
        (750_000_000, b"\1" + bytes(7) + b"\1\2"),
        (750_000_000, b""),
    ):
        assert channel.receive(100) is None
        ((came_ns, callback),) = due
        due.clear()
        assert came_ns == pause_ns
        stage.now_ns += pause_ns
        callback()
        assert channel.receive(100)[0] == expected
    assert player.done
    assert player.result() == Played(4, 4, {})
    assert stage.told[-1] == "the recorded server closed, and so the connection was closed"


def test_step_by_step(stage):
    player = stage.play(GREETING, stepwise=True)
    player.step()  # no client has connected
    client = stage.connect()
    stage.until(lambda: player.connected)
    channel = Channel(client)
    for number in (0, 1, -1):
        assert channel.receive(8) is None
        assert player.upcoming.act.number == number
        player.step()
        assert stage.receive(client)[0] == number
    client.close()
    stage.until(lambda: player.done)
    player.step()
    assert player.result() == Played(3, 7, {})
    assert stage.told[-1] == "client closed, after 3 of 7"


def test_the_client_s_actions_are_reported(stage):
    player = stage.play(GREETING, speed=0)
    client = stage.connect()
    pipe = os.pipe()
    socket.send_fds(client, [b"hi" * 20], pipe)
    for descriptor in pipe:
        os.close(descriptor)
    stage.until(lambda: len(stage.told) == 2)
    assert stage.told[1] == f"client sent 40 bytes with 2 descriptors: {'6869' * 16}..."
    client.close()
    stage.until(lambda: player.done)


def test_a_client_that_does_not_read_is_waited_for_and_may_leave(stage):
    many = "".join(f"0 1 server {number}\n" for number in range(3000))
    player = stage.play("0 1 client connects\n" + many, speed=0)
    client = stage.connect()
    stage.until(lambda: player.connected)
    assert 0 < player.result().sent < 3000
    for number in range(1000):
        assert stage.receive(client)[0] == number
    client.close()
    stage.until(lambda: player.done)
    assert 1000 < player.result().sent < 3000
    assert not player.result().complete


def test_counters_are_read_even_if_the_client_made_them_block(stage):
    player = stage.play("0 1 client connects\n0 1 server 1 eventfd\n0 1 server 1 eventfd\n", speed=0)
    client = stage.connect()
    channel = Channel(client)
    for rings in (3, 0):
        while (received := channel.receive(8)) is None:
            stage.loop.step()
        (descriptor,) = received[1]
        os.set_blocking(descriptor, True)
        if rings:
            ring(descriptor, rings)
        os.close(descriptor)
    assert player.result().rung == {(1, 0): 3}


# The command


@contextlib.contextmanager
def replaying(file, path, *arguments, **options):
    """`ivsim replay` as a process, once it waits for its client."""
    command = [sys.executable, "-m", "sim", "replay", str(file), "-S", str(path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            assert process.stderr.readline() == f"waiting for a client at {path}\n"
            assert stat.S_ISSOCK(path.stat().st_mode)
            yield process
        finally:
            process.kill()


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "session"
    second = (
        GREETING.replace(" 1 client", " 2 client").replace(" 1 server", " 2 server").replace("server 1", "server 6")
    )
    file.write_text(f"{HEADER}\n# two connections\n{GREETING}{second}0 2 server closes\n")
    return file


@contextlib.contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(os.fspath(path))
        yield client


def numbers(client, count):
    return [int.from_bytes(client.recv(8), "little", signed=True) for _ in range(count)]


def test_a_recorded_connection_is_played_and_what_came_of_it_told(file, short_path):
    with replaying(file, short_path / "s") as process, connected(short_path / "s") as client:
        assert numbers(client, 7) == [0, 1, -1, 0, 0, 1, 1]
        client.sendall(b"x")
        client.close()
        told = process.communicate(timeout=PATIENCE_S)[0].splitlines()
    assert process.returncode == 0
    assert [line.partition(" ")[2] for line in told] == [
        "client connected",
        "client sent 1 bytes: 78",
        "client closed, after 7 of 7",
        "7 of 7",
    ]
    assert told[-1] == "sent 7 of 7"
    assert not (short_path / "s").exists()


def test_another_connection_ends_as_it_did(file, short_path):
    with replaying(file, short_path / "s", "--connection", "2", "--speed", "0") as process:
        with connected(short_path / "s") as client:
            assert numbers(client, 7) == [0, 6, -1, 0, 0, 6, 6]
            assert client.recv(8) == b""
        told = process.communicate(timeout=PATIENCE_S)[0]
    assert (process.returncode, told.splitlines()[-1]) == (0, "sent 8 of 8")


def test_enter_by_enter(file, short_path):
    with (
        replaying(file, short_path / "s", "--step", stdin=subprocess.PIPE) as process,
        connected(short_path / "s") as client,
    ):
        assert process.stderr.readline() == "next: 0 (protocol version 0); Enter sends it\n"
        for number, upcoming in (
            (0, "1 (the client's own ID: 1)"),
            (1, "-1 memfd:8192 (the shared memory: 8192 bytes"),
        ):
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stderr.readline().startswith(f"next: {upcoming}")
            assert numbers(client, 1) == [number]
        told = process.communicate(timeout=PATIENCE_S)[0]  # the end of its input
        assert client.recv(8) == b""
    assert (process.returncode, told.splitlines()[-1]) == (1, "sent 2 of 7")


def test_a_signal_ends_the_wait_for_a_client(file, short_path):
    with replaying(file, short_path / "s") as process:
        process.send_signal(signal.SIGTERM)
        told, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, told) == (1, "sent 0 of 7\n")
    assert "Traceback" not in errors
    assert not (short_path / "s").exists()


def test_a_timeout_ends_the_wait_for_a_client(file, short_path):
    command = [sys.executable, "-m", "sim", "replay", str(file), "-S", str(short_path / "s"), "--timeout", "10ms"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (1, "sent 0 of 7\n")
    assert "the time is over" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (short_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--connection", "3"], "expected one of its connections (1, 2), got --connection 3"),
        (["--connection", "0"], "0 is not in the range x>=1"),
        (["--speed", "-1"], "-1.0 is not in the range"),
        (["--timeout", "soon"], "expected a duration such as 5s"),
    ],
)
def test_wrong_use_is_told(file, short_path, arguments, message):
    command = [sys.executable, "-m", "sim", "replay", str(file), "-S", str(short_path / "s"), *arguments]
    told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert message in told.stderr
    assert "Traceback" not in told.stderr


def test_a_session_without_a_connection_cannot_be_played(tmp_path, short_path):
    (tmp_path / "session").write_text(f"{HEADER}\n")
    command = [sys.executable, "-m", "sim", "replay", str(tmp_path / "session"), "-S", str(short_path / "s")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert told.returncode == 2
    assert "expected at least one connection, got none" in told.stderr


def test_a_replayed_session_is_recorded_the_same(short_path, stage):
    """A session through player and proxy again says what it said."""
    from sim.wire.proxy import Proxy

    written = []
    player = stage.play(GREETING + "0 1 server 0\n0 1 server -7\n0 1 server closes\n", speed=0)
    proxy = stage.stack.enter_context(Proxy(stage.loop, stage.path, short_path / "p", written.append))
    client = socket.socket(socket.AF_UNIX)
    stage.stack.callback(client.close)
    client.connect(os.fspath(proxy.path))
    while stage.receive(client):
        pass
    assert player.done
    acts = [entry.act for entry in parse([HEADER, *GREETING.splitlines()]).entries]

    def plain(act):
        """Without the kernel's numbers, which are others now."""
        if not isinstance(act, SentMessage):
            return act
        return act.number, [kind.name if kind.name == "eventfd" else str(kind) for kind in act.kinds]

    assert list(map(plain, acts)) == [plain(entry.act) for entry in written][: len(acts)]
    assert [entry.act for entry in written][len(acts) : -1] == [SentMessage(0), SentMessage(-7)]


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("session", "signals", "words"),
    [
        ("clean_v0", (), ""),
        ("leaves_twice", (signal.SIGABRT,), ""),
        ("shm_last", (signal.SIGSEGV,), ""),
        ("legacy", (), "server sent version 1, expecting 0"),
    ],
)
def test_a_real_qemu_does_what_explain_says(session, signals, words, short_path):
    path = short_path / "s"
    file = Path(__file__).parents[2] / "golden" / "sessions" / f"{session}.txt"
    (entries, *_) = parse(file.read_text().splitlines()).connections.values()
    problems = explain(1, entries).problems
    arguments = ["-machine", "pc", "-accel", "tcg", "-nodefaults", "-display", "none"]
    arguments += ["-chardev", f"socket,path={path},id=iv", "-device", "ivshmem-doorbell,chardev=iv,vectors=2"]
    with replaying(file, path, "--speed", "100", "--timeout", "20s") as process:
        qemu = [find_qemu(), *arguments, "-monitor", "stdio"]
        with subprocess.Popen(
            qemu, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as machine:
            try:
                if not problems:
                    assert process.wait(PATIENCE_S) == 0  # the recorded server closes at last
                    machine.stdin.write(b"quit\n")
                told = machine.communicate(timeout=PATIENCE_S)[1].decode()
            finally:
                machine.kill()
    if signals:
        assert -machine.returncode in signals
        assert signals[0].name in problems[0].rule.qemu
    else:
        assert machine.returncode == (1 if problems else 0)
        assert words in told
