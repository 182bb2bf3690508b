"""`ivsim serve` as a service of systemd: the socket that was made for it, and the units that say so."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sim.commands.systemd import hidden_program
from sim.wire.listener import Listener
from tests.system.test_serve import PATIENCE_S
from tests.system.test_serve_dropin import start

ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "sim", "serve", "--memfd", "--log", "-", *sys.argv[3:]])
"""


def activated(descriptor: int, count: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ACTIVATE, str(descriptor), str(count)],
        pass_fds=[descriptor],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_socket_that_systemd_made_is_served_and_stays(short_path: Path) -> None:
    """A client that connected before the server started is served too."""
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(os.fspath(path))
            with activated(listener.fileno()) as server:
                early.settimeout(PATIENCE_S)
                assert early.recv(8) == bytes(8)
                server.terminate()
                stdout, _ = server.communicate(timeout=PATIENCE_S)
        assert server.returncode == 0
        events = [json.loads(line) for line in stdout.splitlines()]
        assert [event["event"] for event in events] == ["listening", "joined", "ended"]
        assert events[0]["activated"] is True
        assert events[0]["path"] == str(path)
        assert events[1]["pid"] == os.getpid()
        assert path.exists()
        path.unlink()


@pytest.mark.parametrize("kind", ["a file", "a pair", "a datagram socket", "two"])
def test_a_passed_descriptor_that_does_not_listen_is_refused(kind: str, short_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "a file":
            descriptor = os.open("/dev/null", os.O_RDWR)
            stack.callback(os.close, descriptor)
        elif kind == "a datagram socket":
            descriptor = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).fileno()
        else:
            pair = socket.socketpair()
            descriptor = stack.enter_context(pair[0]).fileno()
            stack.enter_context(pair[1])
        server = stack.enter_context(activated(descriptor, 2 if kind == "two" else 1))
        _, stderr = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 2
    assert "systemd" in stderr


def test_anothers_activation_is_not_ours() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert Listener.from_systemd(environment) is None
    assert environment == {"LISTEN_PID": "1", "LISTEN_FDS": "1"}


def test_the_units_say_what_was_asked_for() -> None:
    printed = start("--systemd-unit", "-n", "4", "-l", "64K", "--mode", "660", "--group", "kvm", "-S", "/run/i").stdout
    assert "ListenStream=/run/i\nSocketMode=0660\nSocketGroup=kvm\n" in printed
    assert "serve -F -n 4 -l 65536 --dialect v0 --ids 0 --memfd --log -\n" in printed
    named = start("--systemd-unit", "-M", "name", "--mode", "660", "--group", "kvm").stdout
    assert "--ids 0 --mode 660 --group kvm -M name --log -\nDynamicUser=yes\nSupplementaryGroups=kvm\n" in named
    odd = start("--systemd-unit", "-m", '/a b/$c"%d', "-S", "/run/100%").stdout
    assert "ListenStream=/run/100%%\n" in odd
    assert '--ids 0 -m "/a b/$$c\\"%%d" --log -\n' in odd
    assert 'ReadWritePaths="/a b/$c\\"%%d"\n' in odd
    refused = start("--systemd-unit", "-S", "/run/i\nExecStartPre=/bin/false")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "expected a name that a unit file can hold" in refused.stderr


def test_a_program_that_a_service_cannot_find_is_told() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        shutil.copy("/bin/true", Path(place, "ivsim"))
        printed = start("--systemd-unit", environment={"PATH": place})
    warning = f"{place}/ivsim lies below /tmp, where a service may not find or read it"
    assert f"[Service]\n# {warning}" in printed.stdout
    assert f"\nExecStart={place}/ivsim serve" in printed.stdout
    assert "ProtectHome=read-only\n" in printed.stdout
    assert (printed.returncode, printed.stderr.startswith(f"ivsim: {warning}")) == (0, True)


@pytest.mark.parametrize(
    ("program", "below"),
    [
        ("/home/me/src/.venv/bin/ivsim", "/home"),
        ("/var/tmp/ivsim", "/var/tmp"),
        ("/run/user/1000/ivsim", "/run/user"),
        ("/homestead/ivsim", ""),
        ("/usr/local/bin/ivsim", ""),
    ],
)
def test_where_a_service_finds_no_program(program: str, below: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: program)
    told = hidden_program()
    assert told.startswith(f"{program} lies below {below}, " if below else "")
    assert bool(told) == bool(below)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("memory", [["-M", "name", "--reuse-memory"], ["-m", "/tmp/a b%"], ["--memfd"]])
def test_systemd_finds_nothing_wrong_with_the_units(memory: list[str], tmp_path: Path) -> None:
    printed = start("--systemd-unit", "-S", "/run/a b%1", "--max-clients", "3", "--group", "root", *memory).stdout
    at = printed.index("# /etc/systemd/system/ivsim-serve.service")
    (tmp_path / "ivsim-serve.socket").write_text(printed[:at])
    # The program of this installation need not be where a unit looks for it.
    (tmp_path / "ivsim-serve.service").write_text(printed[at:].replace("/usr/local/bin/ivsim", sys.executable))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "./ivsim-serve.socket", "./ivsim-serve.service"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
