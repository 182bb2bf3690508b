"""The cost of announcing all clients to each other: our server and one in C, with the same clients, in C.

The figure is the CPU time of the server and of all clients on one core: on an idle host, this is how long it takes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sim.kernel.loop import Loop
from sim.kernel.memory import Region
from sim.wire.server import IvshmemServer
from tests.bench.figure import Bar, Figure, alternate
from tests.bench.placement import pinned
from tests.bench.setting import Setting

__all__ = ["measure_greetings"]

ONE_BY_ONE = Bar(0.7, 0.6)
WITH_DEAF = Bar(1.2, 1.0)
VECTORS, GREETING_MESSAGES = 4, 3
MEMORY_BYTES = 4096


def measure_greetings(setting: Setting) -> Iterator[Figure]:
    """Each client is a process; all of them wait when the server starts."""
    with pinned(setting.cpu), contextlib.closing(Region.create(MEMORY_BYTES, kind="memfd")) as region:
        clients, memory = setting.size(256, 5), region.descriptor
        pairs = alternate(setting.size(5, 1), _ours(setting, memory, clients), _theirs(setting, memory, clients))
        yield Figure("greetings", f"{clients} clients, {VECTORS} vectors", "ns", pairs, ONE_BY_ONE)
        clients = setting.size(64, 5)
        for deaf in setting.size((1, 10), (1,)):
            pairs = alternate(
                setting.size(9, 1), _ours(setting, memory, clients, deaf), _ours(setting, memory, clients)
            )
            yield Figure("greetings", f"{clients} clients, {deaf} dead / 0 dead", "ns", pairs, WITH_DEAF)


def _messages(clients: int) -> int:
    return GREETING_MESSAGES + clients * VECTORS


def _ours(setting: Setting, memory: int, clients: int, deaf: int = 0) -> Callable[[], float]:
    def measure() -> float:
        loop, done = Loop(), False

        def end() -> None:
            nonlocal done
            done = True

        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            path = Path(folder) / "s"
            with (
                IvshmemServer(loop, path, memory, vectors=VECTORS),
                setting.reference.clients(str(path), clients, deaf, _messages(clients)) as processes,
            ):
                loop.add(processes.report, end)
                begin_ns = time.thread_time_ns()
                while not done:
                    loop.step()
                spent_ns = time.thread_time_ns() - begin_ns + processes.cpu_ns
                assert processes.report.read(1) == b"d"
                loop.remove(processes.report)
        loop.close()
        return float(spent_ns)

    return measure


def _theirs(setting: Setting, memory: int, clients: int) -> Callable[[], float]:
    def measure() -> float:
        with (
            tempfile.TemporaryDirectory(dir=setting.folder) as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener,
        ):
            path = os.path.join(folder, "s")
            listener.bind(path)
            listener.listen(socket.SOMAXCONN)
            with setting.reference.clients(path, clients, 0, _messages(clients)) as processes:
                spent_ns = setting.reference.serve_one_by_one(
                    listener.fileno(), memory, clients, VECTORS, processes.report.fileno()
                )
                return spent_ns + processes.cpu_ns

    return measure
