"""`ivsim record` as a process: sessions that are whole however it ends, and a real QEMU's."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

import pytest

from nodes.wire.analyzer import explain
from nodes.wire.capture import Connects, SentMessage, parse
from sim.engines.qemu.qtest import Qemu
from sim.kernel.loop import Loop
from sim.kernel.memory import Region
from sim.kernel.qemu_program import find_qemu
from sim.wire.attachment import Attachment
from sim.wire.server import IvshmemServer

PATIENCE_S = 60.0


@contextlib.contextmanager
def recording(directory, file, *arguments, server=None):
    """`ivsim record` as a process, ended by SIGTERM at the end of the block; it then has ended well."""
    command = [
        sys.executable,
        "-m",
        "sim",
        "record",
        "-S",
        server or directory / "s",
        "-L",
        directory / "p",
        "-o",
        file,
    ]
    with subprocess.Popen([*map(str, command), *arguments], stderr=subprocess.PIPE, text=True) as recorder:
        try:
            assert "recording clients of" in recorder.stderr.readline()
            yield recorder
        finally:
            recorder.send_signal(signal.SIGTERM)
            told = recorder.communicate(timeout=PATIENCE_S)[1]
        assert (recorder.returncode, "Traceback" in told) == (0, False)
        assert not (directory / "p").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_however_it_ends_the_file_is_whole(number, short_path):
    file = short_path / "session"
    with contextlib.ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        region = Region.create(4096, kind="memfd")
        stack.callback(region.close)
        server = stack.enter_context(IvshmemServer(loop, short_path / "s", region.descriptor, vectors=1))
        command = [sys.executable, "-m", "sim", "record", "-S", server.path, "-L", short_path / "p", "-o", file]
        recorder = stack.enter_context(subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True))
        stack.callback(recorder.kill)
        assert "recording clients of" in recorder.stderr.readline()
        peer = stack.enter_context(contextlib.closing(Attachment(loop, short_path / "p", vectors=1)))
        peer.meet()
        recorder.send_signal(number)
        assert recorder.wait(PATIENCE_S) == (-number if number == signal.SIGKILL else 0)
        while peer.served or server.peers:  # both sides see the end
            loop.step()
    entries = parse(file.read_text().splitlines()).entries
    assert [type(entry.act) for entry in entries] == [Connects, *[SentMessage] * 4]
    assert explain(1, entries).problems == []
    (short_path / "p").unlink(missing_ok=True)  # a SIGKILL leaves it


def test_wrong_use_is_told(short_path):
    file = short_path / "session"
    file.write_text("kept")

    def told(*arguments):
        command = [sys.executable, "-m", "sim", "record", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    paths = ["-S", short_path / "s", "-L", short_path / "p"]
    for arguments, message in (
        ([*paths, "-o", file], f"{file} exists: choose another file, or overwrite it with --force"),
        ([*paths, "-o", "/nonexistent/f"], "/nonexistent/f cannot be written: No such file or directory"),
        ([*paths, "-L", "/tmp/../tmp/s", "-S", "/tmp/s", "-o", "-"], "expected a socket of its own for the clients"),
        ([*paths, "-S", "/tmp/" + "x" * 120, "-o", "-"], "a socket's path may have 107 bytes"),
        (["-S", "s", "-L", file, "-o", short_path / "new"], f"{file} exists and is not a socket"),
        (["-S", "s", "-o", short_path / "other"], "Missing option '-L' / '--listen'"),
    ):
        result = told(*arguments)
        assert (result.returncode, message in result.stderr, "Traceback" in result.stderr) == (2, True, False), result
    assert file.read_text() == "kept"
    full = told(*paths, "-o", "/dev/full", "--force")
    assert (full.returncode, full.stderr) == (3, "ivsim: /dev/full cannot be written: No space left on device\n")
    with recording(short_path, file, "--force"):
        assert file.read_text().startswith("ivshmem-session 1\n")


def test_a_server_that_is_not_there_is_told_at_once_and_nothing_recorded_is_not_clean(short_path):
    file = short_path / "session"
    with recording(short_path, file) as recorder:
        assert (
            recorder.stderr.readline()
            == f"ivsim: no server listens on {short_path / 's'} yet: No such file or directory\n"
        )
    told = subprocess.run(
        [sys.executable, "-m", "sim", "explain", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "no connection was recorded\n", "")
    with contextlib.ExitStack() as stack:  # one that is there hears nothing of being looked for
        loop = stack.enter_context(contextlib.closing(Loop()))
        region = stack.enter_context(contextlib.closing(Region.create(4096, kind="memfd")))
        server = stack.enter_context(IvshmemServer(loop, short_path / "s", region.descriptor, vectors=1))
        with recording(short_path, file, "--force") as recorder:
            peer = stack.enter_context(contextlib.closing(Attachment(loop, short_path / "p", vectors=1)))
            peer.meet()
            assert (peer.peer, list(server.peers)) == (0, [0])
            recorder.send_signal(signal.SIGTERM)
            assert recorder.stderr.readline() == "recorded 1 connections\n"


@pytest.mark.qemu
def test_a_real_qemu_joins_through_it_and_its_session_is_clean(short_path):
    qemu = find_qemu()
    file = short_path / "session"
    arguments = ["-machine", "pc", "-chardev", f"socket,path={short_path / 'p'},id=iv"]
    arguments += ["-device", "ivshmem-doorbell,chardev=iv,vectors=2,addr=04.0"]
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "sim", "serve", "-F", "-S", str(short_path / "s"), "-n", "2", "-l", "1M"]
        command += ["-M", f"ivt-{short_path.name}"]
        server = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        stack.callback(server.send_signal, signal.SIGTERM)
        assert "serving" in server.stderr.readline()
        loop = stack.enter_context(contextlib.closing(Loop()))
        with recording(short_path, file):
            peer = stack.enter_context(contextlib.closing(Attachment(loop, short_path / "p", vectors=2)))
            peer.meet()
            with Qemu(qemu, arguments) as machine:
                machine.config_write(4, 0x10, 4, 0xFEB00000)
                machine.config_write(4, 0x04, 2, 0x0006)
                assert machine.read(0xFEB00000 + 8, 4) == 1  # IVPosition
                while peer.peers != {0: 2, 1: 2}:
                    loop.step()
                machine.write(0xFEB00000 + 12, 4, 0 << 16 | 1)
                while not peer.unseen:
                    loop.step()
                assert peer.unseen == {1: 1}
            while 1 in peer.peers:
                loop.step()
    told = subprocess.run(
        [sys.executable, "-m", "sim", "explain", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert "2 connections: clean" in told.stdout
    assert "connection 2: ID 1, 1048576 bytes of memory, clean" in told.stdout
    assert "peer 1 has left" in told.stdout
