"""Hosts for tests: network namespaces of this machine, each linked to a hub, where the scheduler and the client run.

A namespace exists as long as a process in it: it goes with the test, however that ends. Hosts share the file system and
the memory of the machine; their links can be cut or slowed down, and their monotonic clocks can differ.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

__all__ = ["Network", "make_certificates", "network"]

TOOLS = ("unshare", "nsenter", "ip", "tc", "openssl")


class Network:
    """A hub with the address ``10.77.N.1`` for host N, which has ``10.77.N.2``."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._pids: dict[str, int] = {}
        self._numbers: dict[str, int] = {}

    def add(self, name: str, *, ahead_s: int = 0) -> None:
        """Add a host; its monotonic clock and its uptime are ahead of the machine's."""
        clocks = ["--time", "--monotonic", str(ahead_s), "--boottime", str(ahead_s)] if ahead_s else []
        holder = self._stack.enter_context(
            subprocess.Popen(
                ["unshare", "--net", *clocks, "--fork", "--kill-child", "--", "sh", "-c", "echo $$; exec cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        self._stack.callback(holder.stdin.close)
        self._pids[name] = int(holder.stdout.readline())
        self.run(name, "ip link set lo up")
        if name == "hub":
            return
        number = self._numbers[name] = len(self._numbers) + 1
        self.run("hub", f"ip link add {name} type veth peer name uplink netns {self._pids[name]}")
        self.run("hub", f"ip address add 10.77.{number}.1/24 dev {name}")
        self.run("hub", f"ip link set {name} up")
        self.run(name, f"ip address add 10.77.{number}.2/24 dev uplink")
        self.run(name, "ip link set uplink up")
        self.run(name, f"ip route add default via 10.77.{number}.1")

    def number(self, name: str) -> int:
        """The number of a host in its addresses."""
        return self._numbers[name]

    def inside(self, name: str) -> list[str]:
        """The words before a command that is to run on a host."""
        return ["nsenter", "--target", str(self._pids[name]), "--net", "--time", "--"]

    def run(self, name: str, command: str) -> None:
        """Run a command on a host."""
        subprocess.run([*self.inside(name), *command.split()], check=True, capture_output=True, timeout=60)

    def cut(self, name: str) -> None:
        """Let no packet through to a host, nor from it: the other end is not told."""
        self.run("hub", f"tc qdisc replace dev {name} root tbf rate 8bit burst 1b limit 1b")
        self.run(name, "tc qdisc replace dev uplink root tbf rate 8bit burst 1b limit 1b")

    def slow(self, name: str, rate: str) -> None:
        """Limit the rate of a link in both directions."""
        self.run("hub", f"tc qdisc replace dev {name} root tbf rate {rate} burst 32kbit latency 2s")
        self.run(name, f"tc qdisc replace dev uplink root tbf rate {rate} burst 32kbit latency 2s")

    def mend(self, name: str) -> None:
        """Make a link as it was."""
        self.run("hub", f"tc qdisc delete dev {name} root")
        self.run(name, "tc qdisc delete dev uplink root")

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def network(hosts: Sequence[str], ahead_s: Mapping[str, int] | None = None) -> Iterator[Network]:
    """A hub and hosts. Skips the test where namespaces are not permitted, or a tool is missing."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {' '.join(missing)}")
    tried = subprocess.run(["unshare", "--net", "--time", "--fork", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"no right to make namespaces: {tried.stderr.decode().strip()}")
    made = Network()
    try:
        for name in ("hub", *hosts):
            made.add(name, ahead_s=(ahead_s or {}).get(name, 0))
        yield made
    finally:
        made.close()


def make_certificates(place: Path) -> list[str]:
    """The certificates of docs/distributed.md, by its own commands; returns the options that name them."""
    page = (Path(__file__).parent.parent / "docs" / "distributed.md").read_text()
    section = page.partition("## Certificates")[2].partition("```\n")[2].partition("```")[0]
    assert section.count("openssl") == 3
    subprocess.run(["sh", "-ec", section], cwd=place, check=True, capture_output=True, timeout=120)
    return [
        word
        for option, name in (("ca", "ca.pem"), ("cert", "host.pem"), ("key", "host.key"))
        for word in (f"--tls-{option}", str(place / name))
    ]
