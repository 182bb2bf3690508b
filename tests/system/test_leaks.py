"""The leak check itself sees what a test could leave behind."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
import zmq

from tests import conftest


@contextlib.contextmanager
def open_descriptor():
    descriptor = os.eventfd(0)
    yield
    os.close(descriptor)


@contextlib.contextmanager
def thread():
    end = threading.Event()
    running = threading.Thread(target=end.wait)
    running.start()
    yield
    end.set()
    running.join()


@contextlib.contextmanager
def zmq_thread():
    with zmq.Context() as context, context.socket(zmq.PUB):
        yield


@contextlib.contextmanager
def child():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield
        process.kill()


@contextlib.contextmanager
def orphan():
    """A grandchild whose parent has ended."""
    started = subprocess.run(["sh", "-c", "sleep 60 >&- & echo $!"], stdout=subprocess.PIPE, check=True)
    yield
    os.kill(int(started.stdout), 9)
    os.waitpid(int(started.stdout), 0)


@contextlib.contextmanager
def socket_file():
    path = Path(tempfile.gettempdir(), "left")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    yield
    path.unlink()


@contextlib.contextmanager
def segment():
    path = Path(f"/dev/shm/ivsim-{os.getpid()}-left")
    path.touch()
    yield
    path.unlink()


def eventually(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("leave", "kind"),
    [
        (open_descriptor, "descriptors"),
        (thread, "threads"),
        (zmq_thread, "threads"),
        (child, "processes"),
        (orphan, "processes"),
        (socket_file, "sockets"),
        (segment, "segments"),
    ],
)
def test_it_is_seen_and_no_longer_once_it_is_gone(leave, kind):
    before = conftest.held()
    with leave():
        eventually(lambda: kind in conftest.held().beyond(before))  # a thread takes its name as it starts
    eventually(lambda: not conftest.held().beyond(before))
