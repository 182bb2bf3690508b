"""`ivsim serve` and a real QEMU: it joins with the options that the server prints, and outlives a killed server."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from pathlib import Path

import pytest

from sim.kernel.qemu_program import find_qemu
from tests.system.test_serve import PATIENCE_S, GreetedClient, serve, serving

pytestmark = pytest.mark.qemu


def test_a_qemu_joins_with_the_printed_options_and_keeps_its_memory_when_the_server_is_killed(short_path: Path) -> None:
    path, name = short_path / "s,1", short_path.name
    arguments = ["-F", "-v", "-S", str(path), "-M", name, "-l", "64K", "-n", "2"]
    with contextlib.ExitStack() as stack:
        with serve(*arguments) as server:
            assert server.stderr is not None
            assert server.stderr.readline().startswith("serving")
            words, _, options = server.stderr.readline().partition(": ")
            assert words == "for QEMU"
            common = ["-nodefaults", "-display", "none", "-accel", "tcg", "-S", "-m", "16M", "-machine", "pc"]
            qemu = stack.enter_context(
                subprocess.Popen([find_qemu(), *common, *shlex.split(options)], stderr=subprocess.PIPE)
            )
            stack.callback(qemu.kill)
            assert server.stderr.readline().startswith(f"peer 0 joined (pid {qemu.pid}, ")
            # Until it has been greeted, it waits for the server alone.
            while f"/dev/shm/{name}" not in Path(f"/proc/{qemu.pid}/maps").read_text():
                assert qemu.poll() is None, qemu.stderr.read() if qemu.stderr else ""
            server.kill()
        with serving(path, *arguments[1:2], *arguments[4:]) as server:
            assert server.stderr is not None
            warning = server.stderr.readline()
            assert f"memory '{name}' is shared, with its content, with clients of a server that was killed" in warning
            assert f"[{qemu.pid}]): this server does not know them" in warning
            with contextlib.closing(GreetedClient(path, 2)) as visitor:
                assert visitor.client.peers == {0: 2}
            assert qemu.poll() is None
        assert server.wait(PATIENCE_S) == 0
        # The memory has lost its name with its server; the QEMU keeps it, and a new server says that it has another.
        with serving(path, *arguments[4:]) as server:
            assert server.stderr is not None
            warning = server.stderr.readline()
            assert f"memory '{name}' is new: clients of an earlier server have another memory of that name" in warning
            assert f"[{qemu.pid}])" in warning
