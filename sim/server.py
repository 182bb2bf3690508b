"""An ivshmem server in this process: `serve`, a context manager, for tests and for programs that need one.

The server runs in a thread of its own: a peer of the same process that waits for its greeting would wait for ever if
the same thread had to send it. The thread sleeps unless a client joins or leaves, or a simulated machine has something
to do; doorbells between other peers do not pass through it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nodes.errors import UsageError
from nodes.guest import Program
from nodes.spelling import did_you_mean
from nodes.wire.capture import HEADER, Entry, format_entry, parse
from nodes.wire.protocol import V0
from nodes.wire.v2.protocol import ALL_DIALECTS, V2, DomainNumbers
from sim.client import Peer
from sim.host.runtime_directory import runtime_directory
from sim.kernel.closeable import Closeable
from sim.kernel.eventfd import EventFd
from sim.kernel.loop import Loop
from sim.kernel.qemu_program import assumed_version
from sim.simulated_peer import SimulatedPeer
from sim.wire.proxy import Proxy
from sim.wire.qemu_options import qemu_options
from sim.wire.service import DEFAULT_PEERS, Service, ServiceSettings, check_numbers
from topologies.language.sizes import MEMORY_SIZE_MAX_BYTES, MEMORY_SIZE_MIN_BYTES, parse_size, show_size

VECTORS_MAX = 2048
ENTRIES_MAX = 100_000
SETTLE_NS, SETTLE_PAUSE_S = 10_000_000_000, 0.001
SERVER_NAME, PROXY_NAME = "server.sock", "ivshmem.sock"

_Result = TypeVar("_Result")


class Server(Closeable):
    """A server in a thread of this process, see `serve`. A context manager.

    Attributes:
        path: the socket that clients connect to.
        size_bytes, vectors: the memory, and how many vectors each client gets.
        dialect: the name of the dialect.
    """

    def __init__(self, settings: ServiceSettings, *, has_path: bool, record: bool, timeout: float | None) -> None:
        """Serve. Without ``has_path``, the socket is in a private directory."""
        self.size_bytes, self.vectors, self.dialect = settings.size_bytes, settings.vectors, settings.dialect.name
        self._timeout = timeout
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._entries: list[Entry] = []
        self._records = record
        self._machines: list[SimulatedPeer] = []
        self._ended = False
        self._failure: BaseException | None = None
        with contextlib.ExitStack() as stack:
            self._loop = Loop()
            stack.callback(self._loop.close)
            private = stack.enter_context(runtime_directory()) if record or not has_path else Path()
            self.path = settings.path if has_path else private / PROXY_NAME
            served_path = private / SERVER_NAME if record else self.path
            self._service = stack.enter_context(Service(self._loop, dataclasses.replace(settings, path=served_path)))
            if record:
                stack.enter_context(Proxy(self._loop, served_path, self.path, self._record))
            stack.callback(self._stop_machines)
            self._wake = EventFd.create()
            stack.callback(self._wake.close)
            self._loop.add(self._wake.descriptor, self._carry_out)
            self._stack = stack.pop_all()
        self._thread = threading.Thread(target=self._run, name=f"ivshmem server {self.path}", daemon=True)
        self._thread.start()

    # The thread

    def _run(self) -> None:
        try:
            while not self._ended:
                self._loop.step()
        except BaseException as error:  # raised where the server is used or closed
            self._failure = error

    def _carry_out(self) -> None:
        """Make one call a turn of the loop: what it has caused elsewhere on this loop is seen before the next one."""
        self._wake.take()
        with contextlib.suppress(queue.Empty):
            self._calls.get_nowait()()
        if not self._calls.empty():
            self._wake.add(1)

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """Call a function in the server's thread, which owns the loop; return its result."""
        done: queue.SimpleQueue[tuple[bool, object]] = queue.SimpleQueue()

        def call() -> None:
            try:
                done.put((True, function()))
            except Exception as error:
                done.put((False, error))

        if self._ended:
            raise UsageError("the server is closed")
        self._calls.put(call)
        self._wake.add(1)
        while True:
            try:
                returned, value = done.get(timeout=1)
            except queue.Empty:
                if not self._thread.is_alive():
                    raise UsageError("the server is closed") from self._failure
                continue
            if isinstance(value, Exception) and not returned:
                raise value
            return value  # type: ignore[return-value]

    # What it offers

    @property
    def peers(self) -> list[int]:
        """The IDs of the peers that are connected now."""
        return sorted(self._service.server.peers.copy())

    @property
    def qemu_options(self) -> str:
        """The options with which a real QEMU joins (of dialect v2, the QEMU fork): ``-chardev ... -device ...``."""
        return qemu_options(self.path, self.vectors, ALL_DIALECTS[self.dialect])

    def connect(self, *, vectors: int | None = None, timeout: float | None = None) -> Peer:
        """A peer of this server, as `sim.connect`; by default with as many vectors as the server gives.

        All simulated machines know it when this returns.
        """
        peer = Peer(self.path, vectors=vectors or self.vectors, timeout=self._timeout if timeout is None else timeout)
        self.settle()
        return peer

    def machine(
        self, program: str | Callable[..., Program], *, vectors: int | None = None, **parameters: object
    ) -> SimulatedPeer:
        """A simulated machine as one more peer, in the thread of the server, until the server is closed.

        Args:
            program: a generator function as `nodes.guest` describes, or the name of one that is shipped.
            vectors: how many the device of the machine has; by default as many as the server gives.
            parameters: the parameters of the program. One of type `Peers` takes IDs or "others", all that are there.

        Returns:
            The machine, once it has its ID and memory, and its program runs.
        """
        machine = SimulatedPeer(program, parameters)

        def attach() -> None:
            machine.attach(self._loop, self.path, vectors or self.vectors)
            self._machines.append(machine)

        self._call(attach)
        machine.wait_until_running()
        self.settle()
        return machine

    def stop_machine(self, machine: SimulatedPeer) -> None:
        """Stop a machine, which leaves the server; its statistics stay."""
        self._call(machine.close)
        self.settle()

    def _stop_machines(self) -> None:
        for machine in self._machines:
            machine.close()

    def settle(self) -> None:
        """Wait until all clients have been sent which peers there are, and all simulated machines have taken that in.

        A peer that rings a machine right after it has connected may otherwise be unknown to it still. Gives up after
        ten seconds, which happens only where a client does not read.
        """
        self._call(lambda: None)  # what has happened until now is seen in the turn of this call, or before
        deadline_ns = time.monotonic_ns() + SETTLE_NS
        while not self._call(self._is_settled) and time.monotonic_ns() < deadline_ns:
            time.sleep(SETTLE_PAUSE_S)

    def _is_settled(self) -> bool:
        server = self._service.server
        if server.is_waited_for or (self._records and server.is_unread):
            return False
        return all(machine.knows(server.peers) for machine in self._machines)

    # What was sent

    def _record(self, entry: Entry) -> None:
        if len(self._entries) < ENTRIES_MAX:
            self._entries.append(entry)

    @property
    def session(self) -> str:
        """What the server and its clients have sent, as a session file (`ivsim explain`, `ivsim replay`).

        Only with ``record``. The first 100,000 messages are kept.
        """
        return "".join(f"{line}\n" for line in (HEADER, *map(format_entry, self._entries.copy())))

    def transcript(self) -> str:
        """`session` explained: the meaning of each message, and what is wrong with it. Only with ``record``."""
        from nodes.wire.analyzer import explain
        from sim.views.session import analysis_lines

        session = parse(self.session.splitlines(keepends=True))
        lines: list[str] = []
        for number, entries in session.connections.items():
            explained = explain(number, entries, dialect=ALL_DIALECTS[self.dialect], vectors=None)
            lines += analysis_lines(explained, assumed_version())
        if len(self._entries) >= ENTRIES_MAX:
            lines.append(f"only the first {ENTRIES_MAX} messages were recorded")
        return "\n".join(lines)

    # The end

    def close(self) -> None:
        """Stop all machines, disconnect all clients and remove the socket and the memory. Closing twice is no error.

        Raises:
            Exception: what ended the server before.
        """
        if self._ended:
            return
        self._ended = True
        self._wake.add(1)
        self._thread.join()
        self._stack.close()
        if self._failure is not None:
            raise self._failure

    def __repr__(self) -> str:
        return f"<Server {'closed' if self._ended else self.path}>"


def _bytes(name: str, size: int | str) -> int:
    """The bytes of the argument ``name``, given as a number or as in "64K"."""
    try:
        return size if isinstance(size, int) else parse_size(size)
    except ValueError as error:
        raise UsageError(f"{name}: {error}, got {size!r}") from None


def _size_bytes(size: int | str) -> int:
    size_bytes = _bytes("size", size)
    if size_bytes & (size_bytes - 1) or not MEMORY_SIZE_MIN_BYTES <= size_bytes <= MEMORY_SIZE_MAX_BYTES:
        least, most = show_size(MEMORY_SIZE_MIN_BYTES), show_size(MEMORY_SIZE_MAX_BYTES)
        raise UsageError(f"size: expected a power of two from {least} to {most}, got {size!r}")
    return size_bytes


def serve(
    path: str | os.PathLike[str] | None = None,
    size: int | str = "4M",
    vectors: int = 2,
    dialect: str = V0.name,
    *,
    memory_name: str | None = None,
    reuse_ids: bool = False,
    record: bool = False,
    timeout: float | None = None,
    max_peers: int | None = None,
    output_size: int | str = 0,
    protocol: int = 0,
) -> Server:
    """Serve shared memory to all clients that connect: peers of this process, simulated machines, real QEMUs.

    Args:
        path: the socket; by default one in a private directory.
        size: the bytes of the memory, a power of two of at least a page; or as in "64K", "4M".
        vectors: how many eventfds each client gets.
        dialect: "v0" (QEMU 2.5 and later), "v0-shm-last" (Cuttlefish), "legacy" (the server of 2012) or "v2" (ivshmem
            version 2).
        memory_name: the memory's name in /dev/shm; by default it has none and is sealed against shrinking.
        reuse_ids: give the lowest free ID again. A real QEMU (7.2 and earlier) corrupts its heap when an ID comes back.
        record: keep what the server and its clients send: `Server.session` and `Server.transcript`.
        timeout: the default of the timeouts of peers made by `Server.connect`, seconds.
        max_peers: of dialect v2, how many peers there can be: 2 by default.
        output_size: of dialect v2, the bytes of the output section of each peer, whole pages.
        protocol: of dialect v2, what the peers speak: 1 is Ethernet, 0x8003 a virtio console.

    Returns:
        The server, which serves already: a context manager that leaves nothing behind.

    Raises:
        UsageError: the path is in use, or an argument is wrong.
        HostError: there is no room for the memory.
    """
    size_bytes = _size_bytes(size)
    if not 1 <= vectors <= VECTORS_MAX:
        raise UsageError(f"expected 1 to {VECTORS_MAX} vectors, got {vectors}")
    if dialect not in ALL_DIALECTS:
        hint = did_you_mean(dialect, ALL_DIALECTS)
        raise UsageError(f"expected a dialect, one of {', '.join(ALL_DIALECTS)}, got {dialect!r}{hint}")
    numbers = None
    if dialect == V2.name:
        if reuse_ids:
            raise UsageError("reuse_ids does not go with dialect v2: it gives the lowest free ID")
        peers = DEFAULT_PEERS if max_peers is None else max_peers
        numbers = DomainNumbers(peers, vectors, protocol, _bytes("output_size", output_size))
        check_numbers(numbers, size_bytes)
    elif max_peers is not None or output_size or protocol:
        raise UsageError("max_peers, output_size and protocol go with dialect v2")
    settings = ServiceSettings(
        Path(path or ""),
        size_bytes,
        vectors,
        ALL_DIALECTS[dialect],
        memory_name=memory_name,
        reuse_peers=reuse_ids,
        numbers=numbers,
    )
    return Server(settings, has_path=path is not None, record=record, timeout=timeout)
