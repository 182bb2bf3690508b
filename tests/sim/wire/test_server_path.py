"""sim.wire.server and the file that its socket is."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

import pytest

from nodes.errors import UsageError
from sim.kernel.loop import Loop
from sim.wire.listener import PATH_BYTES_MAX
from sim.wire.server import IvshmemServer


@pytest.fixture
def path(short_path):
    return short_path / "server.sock"


def listen(path, loop):
    return IvshmemServer(loop, path, 0, vectors=1)


@pytest.fixture
def loop():
    made = Loop()
    yield made
    made.close()


def test_the_socket_is_private_from_the_first_moment(loop, path, monkeypatch):
    modes = []
    real = socket.socket.listen

    def look(self, backlog):
        modes.append(stat.S_IMODE(path.lstat().st_mode))
        real(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", look)
    before = os.umask(0)
    try:
        with listen(path, loop):
            modes.append(stat.S_IMODE(path.lstat().st_mode))
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]


def test_the_socket_is_gone_afterwards_and_closing_twice_is_no_error(loop, path):
    server = listen(path, loop)
    assert stat.S_ISSOCK(path.lstat().st_mode)
    server.close()
    server.close()
    assert not path.exists()


def test_a_socket_on_which_no_process_listens_is_replaced(loop, path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with listen(path, loop), socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_a_running_server_is_not_replaced(loop, path):
    with listen(path, loop):
        with pytest.raises(UsageError, match="another server is listening"):
            listen(path, loop)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))


def test_a_server_whose_backlog_is_full_is_not_replaced(loop, path):
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(os.fspath(path))
        busy.listen(0)
        while True:
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(os.fspath(path))
            except BlockingIOError:
                break
        with pytest.raises(UsageError, match="does not answer"):
            listen(path, loop)
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink to a socket", "dangling symlink", "fifo"])
def test_a_path_that_is_no_socket_of_a_server_stays(loop, path, kind):
    target = path.with_name("target")
    match kind:
        case "file":
            path.write_text("mine")
        case "directory":
            path.mkdir()
        case "symlink to a socket":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(os.fspath(target))
            path.symlink_to(target)
        case "dangling symlink":
            path.symlink_to(target)
        case "fifo":
            os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(UsageError, match="is not a socket"):
        listen(path, loop)
    assert path.lstat() == before
    assert target.exists() == (kind == "symlink to a socket")
    target.unlink(missing_ok=True)


def test_a_path_that_is_too_long_is_refused_and_the_longest_is_not(loop, short_path):
    longest = short_path / ("s" * (PATH_BYTES_MAX - len(os.fsencode(short_path)) - 1))
    listen(longest, loop).close()
    with pytest.raises(UsageError, match=r"107 bytes.*has 108"):
        listen(longest.with_name(longest.name + "s"), loop)


@pytest.mark.parametrize("name", ["missing/server.sock", "file/server.sock"])
def test_a_path_that_cannot_be_is_said(loop, short_path, name):
    (short_path / "file").write_text("")
    with pytest.raises(UsageError, match=name):
        listen(short_path / name, loop)


def test_a_socket_that_has_replaced_ours_stays(loop, path):
    server = listen(path, loop)
    path.unlink()
    path.write_text("somebody else's")
    server.close()
    assert path.read_text() == "somebody else's"
    path.unlink()
