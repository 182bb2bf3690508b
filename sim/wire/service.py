"""A server as a service: its limits, memory, socket, pid file, log, and the signal that ends it."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nodes.device.v2.sections import SectionLayout
from nodes.errors import HostError, RemoteProtocolError, UsageError
from nodes.wire.client import REFUSED
from nodes.wire.protocol import LEGACY, PEERS_MAX, Dialect, Message
from nodes.wire.v2.protocol import V2, DomainNumbers
from nodes.wire.v2.server import FramedServer
from sim.kernel.closeable import Closeable
from sim.kernel.loop import Loop, ended_by_signal
from sim.kernel.memory import Region, made_smaller
from sim.kernel.segments import mappings
from sim.wire.admission import AdmissionRules
from sim.wire.clients import JoinedClient, PendingClient
from sim.wire.daemon import PidFile
from sim.wire.event_log import EventLog, open_log
from sim.wire.listener import Listener
from sim.wire.nonblocking_guard import NonBlockingGuard
from sim.wire.qemu_options import qemu_options
from sim.wire.server import IvshmemServer

DEFAULT_PEERS = 2
"""ivshmem2-server's default."""
OWN_DESCRIPTORS = 32
# A client that is refused reads this in place of a version: QEMU exits with "server sent version -87, expecting 0". At
# the mere end of the connection it would wait for ever (hw/misc/ivshmem.c, ivshmem_recv_msg).
REFUSAL: Message[int] = Message(REFUSED)
STANDARD_ERROR = 2
PEERS_SHOWN = 8


@dataclass(frozen=True)
class ServiceSettings:
    """The options of a server. Without ``memory_name`` and ``directory`` the memory is a sealed memfd."""

    path: Path
    size_bytes: int
    vectors: int
    dialect: Dialect
    mode: int = 0o600
    group: int | None = None
    memory_name: str | None = None
    directory: Path | None = None
    reuse_memory: bool = False
    first_peer: int = 0
    reuse_peers: bool = False
    clients_max: int | None = None
    uids: tuple[int, ...] = ()
    pid_file: Path | None = None
    log: str | None = None
    verbose: bool = False
    numbers: DomainNumbers | None = None
    """Of a server of ivshmem v2."""

    @property
    def memory(self) -> str:
        return self.memory_name or (f"a file in {self.directory}" if self.directory else "memfd")


def check_numbers(numbers: DomainNumbers, size_bytes: int) -> None:
    """Check the numbers of a server of ivshmem v2.

    Raises:
        UsageError: no server has such numbers, or the memory is too small for its sections.
    """
    FramedServer(0, numbers)
    try:
        SectionLayout(size_bytes, numbers.max_peers, numbers.output_bytes)
    except RemoteProtocolError as error:
        raise UsageError(str(error)) from None


class Served(NamedTuple):
    """The socket of a ready server, and the lines that its operator gets."""

    path: Path
    text: str
    qemu_options: str
    warnings: list[str]


def run_service(settings: ServiceSettings, ready: Callable[[Served], object], warn: Callable[[str], object]) -> None:
    """Serve until a signal comes that ends a program; then nothing of the server is left.

    ``ready`` is called once clients can connect, ``warn`` with what the operator has to know afterwards. Raises
    ``UsageError`` or ``HostError`` before, and then nothing of the server is left either.
    """
    with contextlib.ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        ended = stack.enter_context(ended_by_signal(loop))
        clients_max = _clients_max(settings)
        if settings.pid_file is not None:
            stack.enter_context(PidFile(settings.pid_file))
        service = stack.enter_context(Service(loop, settings, clients_max=clients_max, activation=True, warn=warn))
        ready(service.served)
        while not ended():
            loop.step()
        service.report_end()


class Service(Closeable):
    """A server on a loop, with its memory, its socket and its log. A context manager.

    Args:
        loop: what the server waits with; close it after the service.
        settings: the options of the server. ``pid_file`` is the caller's business.
        clients_max: a further client is refused; None: as many as there are descriptors.
        activation: take the socket that systemd passed, if it passed one.
        warn: ``warn(text)`` is called with what the operator has to know.

    Attributes:
        server: the server.
        served: what the operator is told when clients can connect.

    Raises:
        UsageError, HostError: it cannot serve; nothing of it is left.
    """

    def __init__(
        self,
        loop: Loop,
        settings: ServiceSettings,
        *,
        clients_max: int | None = None,
        activation: bool = False,
        warn: Callable[[str], object] = lambda text: None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            region = _region(settings)
            stack.callback(region.close)
            listener = Listener.from_systemd() if activation else None
            if listener is None:
                listener = Listener(settings.path, mode=settings.mode, group=settings.group)
            stack.enter_context(listener)
            reporter = self._reporter = _Reporter(stack, settings, warn)

            def joined(client: JoinedClient) -> None:
                reporter.joined(client)
                guard.start()

            def refused(arrival: PendingClient, reason: str) -> None:
                reporter.refused(arrival, reason)
                reporter.memory_fault(made_smaller(region.descriptor, region.size_bytes))

            self.server = IvshmemServer(
                loop,
                listener,
                region.descriptor,
                vectors=settings.vectors,
                dialect=settings.dialect,
                first_peer=settings.first_peer,
                reuse_peers=settings.reuse_peers,
                rules=AdmissionRules(
                    clients_max=clients_max,
                    uids=settings.uids,
                    refusal=None if settings.dialect in (LEGACY, V2) else REFUSAL,  # these have no such message
                ),
                on_join=joined,
                on_leave=reporter.left,
                on_refuse=refused,
                on_pause=reporter.paused,
                numbers=settings.numbers,
            )
            stack.enter_context(self.server)
            guard = NonBlockingGuard(loop, self.server)
            warnings = _warnings(settings, region)
            reporter.listening(listener, clients_max, warnings)
            self.served = Served(
                Path(listener.path),
                f"serving {settings.size_bytes} bytes ({settings.memory}) and {settings.vectors} "
                f"{'vector' if settings.vectors == 1 else 'vectors'} at {listener.path}",
                qemu_options(listener.path, settings.vectors, settings.dialect),
                warnings,
            )
            self._stack = stack.pop_all()

    def report_end(self) -> None:
        """Tell the operator, and the log, which clients are still connected."""
        self._reporter.ended(self.server)

    def close(self) -> None:
        """Disconnect all clients, and remove the socket and the memory."""
        self._stack.close()


def _warnings(settings: ServiceSettings, region: Region) -> list[str]:
    """The processes that have memory of an earlier server of this name: this server does not know them."""
    name = settings.memory_name
    if name is None:
        return []
    others = [mapping for mapping in mappings(name) if mapping.pid != os.getpid()]
    unknown = "this server does not know them, and no client can ring them until they connect to it"
    warnings = []
    if region.adopted:
        who = ", ".join(str(other) for other in others if other.current) or "processes of other users"
        warnings.append(
            f"memory {name!r} is shared, with its content, with clients of a server that was killed ({who}): {unknown}"
        )
    if former := [str(other) for other in others if not other.current]:
        warnings.append(
            f"memory {name!r} is new: clients of an earlier server have another memory of that name "
            f"({', '.join(former)}); {unknown}"
        )
    return warnings


def _clients_max(settings: ServiceSettings) -> int:
    """How many clients there can be; raises the limit on descriptors as far as possible.

    Raises ``HostError`` with the sum when the wanted number does not fit.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    each = 1 + settings.vectors
    wanted = settings.clients_max or 1
    needed = wanted * each + OWN_DESCRIPTORS
    if needed > limit:
        raise HostError(
            f"{wanted} clients need {needed} descriptors ({each} each, {OWN_DESCRIPTORS} for the server), the limit "
            f"is {limit}: raise it (ulimit -Hn, LimitNOFILE=), or take fewer vectors or clients"
        )
    return settings.clients_max or min(PEERS_MAX, (limit - OWN_DESCRIPTORS) // each)


def _region(settings: ServiceSettings) -> Region:
    if settings.directory is not None:
        return Region.create_in(settings.directory, settings.size_bytes)
    if settings.memory_name is None:
        return Region.create(settings.size_bytes, kind="memfd")
    if settings.reuse_memory:
        return Region.open(settings.memory_name, settings.size_bytes)
    return Region.create(
        settings.size_bytes, name=settings.memory_name, mode=settings.mode, group=settings.group, adopt=True
    )


class _Reporter:
    """Writes what happens to the log, and to standard error with ``verbose``."""

    def __init__(self, stack: contextlib.ExitStack, settings: ServiceSettings, warn: Callable[[str], object]) -> None:
        self._settings, self._warn = settings, warn
        self._faulty = False
        self._log: EventLog | None = None
        if settings.log is not None:
            self._log = open_log(settings.log)
            stack.callback(self._log.close)
        self._console = EventLog(STANDARD_ERROR, owned=False) if settings.verbose else None

    def _tell(self, text: str | None, event: str, **details: object) -> None:
        if self._log is not None:
            self._log.write(event, **details)
        if self._console is not None and text is not None:
            self._console.put(text)

    def listening(self, listener: Listener, clients_max: int | None, warnings: list[str]) -> None:
        self._tell(
            None,  # standard error has it already
            "listening",
            path=str(listener.path),
            activated=listener.activated,
            dialect=self._settings.dialect.name,
            memory=self._settings.memory,
            size_bytes=self._settings.size_bytes,
            vectors=self._settings.vectors,
            clients_max=clients_max,
            warnings=warnings or None,
        )
        if self._log is not None and self._log.failure:
            raise UsageError(f"cannot write the log {self._settings.log}: {self._log.failure}")

    def joined(self, peer: JoinedClient) -> None:
        text = f"peer {peer.peer} joined (pid {peer.pid}, uid {peer.uid})"
        self._tell(text, "joined", peer=peer.peer, pid=peer.pid, uid=peer.uid, gid=peer.gid)

    def left(self, peer: JoinedClient, reason: str) -> None:
        text = f"peer {peer.peer} left: {reason}"
        self._tell(text, "left", peer=peer.peer, pid=peer.pid, uid=peer.uid, gid=peer.gid, reason=reason)

    def refused(self, arrival: PendingClient, reason: str) -> None:
        text = f"a client (pid {arrival.pid}, uid {arrival.uid}) was refused: {reason}"
        self._tell(text, "refused", pid=arrival.pid, uid=arrival.uid, gid=arrival.gid, reason=reason)

    def memory_fault(self, text: str) -> None:
        if text and not self._faulty:
            self._faulty = True
            self._warn(f"{text}; no further client can join this server")
            self._tell(None, "memory_fault", reason=text)

    def paused(self, reason: str) -> None:
        self._tell(f"accepting pauses: {reason}", "paused", reason=reason)

    def ended(self, server: IvshmemServer) -> None:
        """Name the clients that are still connected: they keep the memory, but no later server knows them."""
        peers = [*server.peers.values()]
        warning = None
        if peers:
            shown = ", ".join(f"{peer.peer} (pid {peer.pid})" for peer in peers[:PEERS_SHOWN])
            more = f" and {len(peers) - PEERS_SHOWN} more" if len(peers) > PEERS_SHOWN else ""
            warning = (
                f"still connected: peer{'s' if peers[1:] else ''} {shown}{more}. They keep this memory, and a server "
                "that is started later does not know them"
            )
            self._warn(warning)
        self._tell(f"ended with {len(peers)} clients", "ended", clients=len(peers), warning=warning)
