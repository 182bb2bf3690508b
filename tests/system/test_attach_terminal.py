"""`ivsim attach` at a terminal: what it shows, and keys."""

from __future__ import annotations

import codecs
import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from tests.system.test_attach_command import PATIENCE_S, attach, attached, command_line, serving


@pytest.fixture
def path(short_path):
    path = short_path / "s"
    with serving(path):
        yield path


class Terminal:
    """`ivsim attach` at a pseudo terminal: what it shows, and keys."""

    def __init__(self, path, *arguments):
        self.descriptor, other_end = pty.openpty()
        # As a login would: a session of its own, whose terminal this is, so that keys are signals.
        code = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *command_line(path, *arguments)],
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(other_end)
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def type(self, keys):
        os.write(self.descriptor, keys.encode())

    def until(self, pattern):
        """Read until ``pattern`` has been shown; what comes after it is kept for the next time."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not (match := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self.descriptor], [], [], max(0, deadline_s - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.shown!r}"
            self.shown += self._decoder.decode(os.read(self.descriptor, 4096))
        self.shown = self.shown[match.end() :]
        return match

    def exit_code(self):
        """Read to the end, and wait for it."""
        with contextlib.suppress(OSError):  # EIO: no process holds the other end any more
            while said := os.read(self.descriptor, 4096):
                self.shown += self._decoder.decode(said)
        return self.process.wait(PATIENCE_S)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)


@pytest.fixture
def terminal(path):
    with contextlib.closing(Terminal(path)) as terminal:
        yield terminal


def test_at_a_terminal(path, terminal):
    terminal.until(r"peer 0 of .* 0 others")
    terminal.until("ivsim> ")
    terminal.type("peers\n")
    terminal.until(r"peer 0: 2 vectors \(this one\)")
    terminal.until("ivsim> ")
    terminal.type("pee")  # a line at hand, above which things are shown
    terminal.until("pee")
    with attached(path) as other:
        other.stdin.write("ring 0 1\n")
        terminal.until(r"peer 1 has joined\r\nivsim> pee")
        terminal.until(r"\d\.\d{6} interrupt vector 1\r\nivsim> pee")
    terminal.until(r"peer 1 has left\r\nivsim> pee")
    terminal.type("k 0 1\n")
    terminal.until(r"00000000  00 +\|\.\|")
    terminal.until("ivsim> ")
    terminal.type("nonsense\n")
    terminal.until("expected one of peers")
    terminal.type("quit\n")
    assert terminal.exit_code() == 1


def test_a_key_ends_what_is_watched_and_no_more(path, terminal):
    terminal.until("ivsim> ")
    terminal.type("watch --json\n")
    line = ""
    while "doorbells" not in line:  # then it watches
        attach(path, "ring", "0", "1")
        line = terminal.until(r".*\n").group()
    terminal.type("\x03")
    # A terminal sends the signal and then echoes the key, behind what is under way: before the prompt or behind it.
    terminal.until("ivsim> ")
    terminal.type("quit\n")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize(
    ("key", "code", "last"), [("\x04", 0, ""), ("\x03", 130, "ivsim: interrupted\r\n")], ids=["ctrl-d", "ctrl-c"]
)
def test_a_key_ends_it(terminal, key, code, last):
    """And what is shown next, by the shell if not by us, is not shown behind the prompt."""
    terminal.until("ivsim> ")
    terminal.type(key)
    assert terminal.exit_code() == code
    shown = terminal.shown.replace("\x1b[?2004l", "").replace("^C", "").replace("^D", "").replace("\b", "")
    assert shown.lstrip("\r") == f"\n{last}"


def test_while_there_is_no_server_every_command_says_so(short_path):
    path = short_path / "s"
    with contextlib.ExitStack() as stack:
        with serving(path):
            terminal = stack.enter_context(contextlib.closing(Terminal(path, "--reconnect")))
            terminal.until(r"peer 0 of .*: 2 vectors, 65536 bytes of memory, 0 others, dialect v0; `help`")
            terminal.until("ivsim> ")
        terminal.until("the server has closed the connection; trying again every second")
        for command in ("peers", "peek 0 16", "ring 0", "poke 0 1", "wait --vector 0", "watch"):
            terminal.type(f"{command}\n")
            name = command.split()[0]
            terminal.until(rf"ivsim: {name}: not connected: waiting for a server at {path}\r\n")
        with serving(path, "--ids", "7"):  # another server, another ID
            terminal.until(r"peer 7 of .*: 2 vectors, 65536 bytes of memory, 0 others, dialect v0\r\n")
            terminal.type("peers\n")
            terminal.until(r"peer 7: 2 vectors \(this one\)")
            terminal.type("quit\n")
            assert terminal.exit_code() == 1
