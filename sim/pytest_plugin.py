"""Fixtures for tests of drivers and protocols on ivshmem: servers, peers, machines, runs, a real QEMU.

pytest loads this module where the package is installed (entry point ``pytest11``). It imports nothing of the simulator
until a test asks for a fixture. A test that uses one is checked afterwards: no process, descriptor, segment, socket or
server is left. When it fails, the report has what was sent on the wire, explained.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 20.0
LEAK_PATIENCE_S = 5.0
# Descriptors of other kinds (files, pipes, terminals) may be those of other fixtures and libraries.
OWN_KINDS = ("anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[pidfd]", "socket:", "/memfd:", "/dev/shm/")
TRANSCRIPT_LINES_MAX = 400


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "ivshmem_timeout(seconds): how long peers wait for interrupts and for each other (20 s by default)"
    )


class Lab:
    """The servers, peers and machines of one test; its end closes them, the newest first."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.servers: list[Any] = []
        self.machines: list[Any] = []
        self.runs: list[Any] = []
        self._opened: list[Any] = []

    def opens(self, closable: Any) -> Any:
        """Close ``closable`` at the end of the test."""
        self._opened.append(closable)
        return closable

    def server(self, **options: Any) -> Any:
        """One more server, with a record of what it sends."""
        import sim

        options = {"record": True, "timeout": self.timeout_s} | options
        server = self.opens(sim.serve(**options))
        self.servers.append(server)
        return server

    def chosen(self, server: Any) -> Any:
        """The server that a test names, or else its newest, or else a new one."""
        return server or (self.servers[-1] if self.servers else self.server())

    def close(self) -> None:
        """Close everything, and raise what went wrong with it."""
        problems: list[Exception] = []
        while self._opened:
            try:
                self._opened.pop().close()
            except Exception as error:
                problems.append(error)
        problems += [machine.failure for machine in self.machines if machine.failure is not None]
        if problems:
            raise problems[0] if len(problems) == 1 else ExceptionGroup("ivshmem: at the end of the test", problems)

    def sections(self) -> Iterator[tuple[str, str]]:
        """The sections of a failure report: the explained wire of each server."""
        for machine in self.machines:
            if machine.failure is not None:
                yield "ivshmem machine", f"{machine}: {machine.failure!r}"
        for run in self.runs:
            yield "ivshmem run", f"{run.path}: {run.status}. {run.reason}".strip()
        for server in self.servers:
            lines = server.transcript().splitlines() or ["no client has connected"]
            if len(lines) > TRANSCRIPT_LINES_MAX:
                left_out = len(lines) - TRANSCRIPT_LINES_MAX
                lines = [*lines[:TRANSCRIPT_LINES_MAX], f"... {left_out} further lines are left out"]
            yield f"ivshmem wire of {server.path}", "\n".join(lines)


LAB = pytest.StashKey[Lab]()
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lab = item.stash.get(LAB, None)
    if lab is not None and report.failed:
        item.stash[FAILED] = True
        if report.when != "teardown":
            report.sections.extend(lab.sections())
    return report


@pytest.fixture
def ivshmem_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab that the other fixtures share; checks that the test leaves nothing behind."""
    from sim.host.holdings import Holdings, holdings
    from sim.host.runtime_directory import runtime_directories

    def held() -> Holdings:
        now = holdings(str(directory.path) for directory in runtime_directories() if directory.pid == os.getpid())
        return now._replace(
            descriptors=frozenset(each for each in now.descriptors if each[1].startswith(OWN_KINDS)),
            threads=frozenset(thread for thread in now.threads if thread.startswith("ivshmem server")),
        )

    marker = request.node.get_closest_marker("ivshmem_timeout")
    lab = Lab(float(marker.args[0]) if marker is not None else TIMEOUT_S)
    before = held()
    request.node.stash[LAB] = lab
    yield lab
    lab.close()
    deadline_s = time.monotonic() + LEAK_PATIENCE_S
    while left := held().beyond(before):
        if FAILED in request.node.stash:
            return  # what a failed test holds, its traceback may hold
        if time.monotonic() >= deadline_s:
            pytest.fail(f"the test has left behind: {left}", pytrace=False)
        gc.collect()  # garbage in a cycle is no leak
        time.sleep(0.01)


@pytest.fixture
def ivshmem_server(ivshmem_lab: Lab) -> Callable[..., Any]:
    """``ivshmem_server(vectors=2, size="4M", dialect="v0", ...)``: a server in this process; arguments of `sim.serve`.

    ``server.path`` is its socket, ``server.connect()`` a peer, ``server.qemu_options`` the options of a QEMU.
    """
    return ivshmem_lab.server


@pytest.fixture
def ivshmem_peer(ivshmem_lab: Lab) -> Callable[..., Any]:
    """``ivshmem_peer(server=None, vectors=None)``: a peer in this process, as `sim.connect`.

    Of the server that is given, or the newest of this test, or a new one.
    """

    def connect(server: Any = None, *, vectors: int | None = None) -> Any:
        return ivshmem_lab.opens(ivshmem_lab.chosen(server).connect(vectors=vectors))

    return connect


@pytest.fixture
def ivshmem_machines(ivshmem_lab: Lab) -> Callable[..., list[Any]]:
    """``ivshmem_machines(program, count=1, server=None, **parameters)``: simulated machines that run a program.

    The program is a generator function or the name of an included one ("echo", "storm"). They run until the end of
    the test, which fails with what a program raises.
    """

    def start(program: Any, count: int = 1, *, server: Any = None, **parameters: object) -> list[Any]:
        chosen = ivshmem_lab.chosen(server)
        machines = [chosen.machine(program, **parameters) for _ in range(count)]
        ivshmem_lab.machines += machines
        return machines

    return start


@pytest.fixture
def ivshmem_run(ivshmem_lab: Lab, tmp_path: Path) -> Callable[..., Any]:
    """``ivshmem_run(topology, **options)``: run a topology (name, file or TOML text) as `sim.run`; returns its `Run`.

    The run directory is in ``tmp_path``. A run that is neither finished nor degraded fails the test, unless
    ``check=False``.
    """

    def run(topology: Any, *, check: bool = True, **options: Any) -> Any:
        import sim

        if isinstance(topology, str) and "\n" in topology:
            file = tmp_path / f"topology-{len(ivshmem_lab.runs)}.toml"
            file.write_text(topology)
            topology = file
        result = sim.run(topology, **{"runs": tmp_path / "runs"} | options)
        ivshmem_lab.runs.append(result)
        if check and result.status not in ("finished", "degraded"):
            pytest.fail(f"the run has {result.status}: {result.reason}")
        return result

    return run


@pytest.fixture
def ivshmem_qemu(ivshmem_lab: Lab) -> Callable[..., Any]:
    """``ivshmem_qemu(server=None, vectors=None, arguments=())``: a real QEMU without a guest, as a peer.

    ``qemu.ring()``, ``qemu.wait()``, ``qemu.read()`` and ``qemu.write()`` do what a driver in its guest would. Skips
    the test where there is no qemu-system-x86_64, or the variable IVSHMEM_QEMU does not name one.
    """
    from nodes.errors import UsageError
    from sim.engines.qemu.peer import QemuPeer
    from sim.kernel.qemu_program import find_qemu

    try:
        program = find_qemu()
    except UsageError as error:
        pytest.skip(str(error))

    def start(server: Any = None, *, vectors: int | None = None, arguments: tuple[str, ...] = ()) -> Any:
        chosen = ivshmem_lab.chosen(server)
        peer = QemuPeer(chosen.path, vectors=vectors or chosen.vectors, arguments=arguments, program=program)
        ivshmem_lab.opens(peer)
        chosen.settle()
        return peer

    return start
