"""Admission of clients that connect to a server: some join at once, some wait, some are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from nodes.wire.protocol import Message
from sim.kernel.channel import Outbox
from sim.kernel.loop import Loop
from sim.wire.clients import PendingClient
from sim.wire.listener import Listener

ACCEPTED_AT_ONCE = 1024


@dataclass(frozen=True)
class AdmissionRules:
    """At most ``clients_max`` clients, each a process of one of the users ``uids`` (none: of any user).

    A client that is refused is sent ``refusal``, if given: a real QEMU waits forever where a server closes without one.
    """

    clients_max: int | None = None
    uids: Collection[int] = ()
    refusal: Message[int] | None = None


class Admission:
    """Accepts clients from ``listener``. ``on_arrivals`` gets all that are let in at the same moment, in order.

    ``connected()`` is the number of clients that have joined already. ``on_refuse`` gets each refused client and the
    reason, ``on_pause`` the reason why accepting pauses: a lack of descriptors.
    """

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        rules: AdmissionRules,
        *,
        connected: Callable[[], int],
        on_arrivals: Callable[[list[PendingClient]], None],
        on_refuse: Callable[[PendingClient, str], None],
        on_pause: Callable[[str], None],
    ) -> None:
        self._loop, self._listener, self._rules = loop, listener, rules
        self._connected, self._on_arrivals = connected, on_arrivals
        self._on_refuse, self._on_pause = on_refuse, on_pause
        self._waiting: dict[int, PendingClient] = {}  # socket number -> not joined yet
        loop.add(listener, self._accept_all)

    def _accept_all(self) -> None:
        arrivals: list[PendingClient] = []
        try:
            self._accept(arrivals)
        finally:
            if arrivals:
                self._on_arrivals(arrivals)

    def _accept(self, arrivals: list[PendingClient]) -> None:
        """Accept clients, up to a number. When descriptors run out, pause."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock = self._listener.accept()
            except OSError as error:
                self._listener.pause(self._loop, self._accept_all, error)
                self._on_pause(error.strerror or str(error))
                return
            if sock is None:
                return
            arrival = PendingClient(sock)
            if reason := self._objection(arrival):
                self.refuse(arrival, reason)
                continue
            self._waiting[sock.fileno()] = arrival
            # A client that leaves before it has joined is noticed too.
            self._loop.add(sock, partial(self._dismiss, arrival))
            arrivals.append(arrival)

    def _objection(self, arrival: PendingClient) -> str:
        rules = self._rules
        if rules.clients_max is not None and self._connected() + len(self._waiting) >= rules.clients_max:
            return f"there are {rules.clients_max} clients already"
        if rules.uids and arrival.uid not in rules.uids:
            return f"expected a process of user {' or '.join(map(str, rules.uids))}"
        return ""

    def take(self, arrival: PendingClient) -> bool:
        """Stop waiting for a client, which joins now; False when it has left."""
        return self._waiting.pop(arrival.socket.fileno(), None) is not None

    def refuse(self, arrival: PendingClient, reason: str) -> None:
        self._loop.remove(arrival.socket)
        if self._rules.refusal is not None:
            with contextlib.suppress(OSError):  # gone already
                farewell = Outbox(arrival.socket, 1)
                farewell.put(self._rules.refusal)
                farewell.flush()
        arrival.socket.close()
        self._on_refuse(arrival, reason)

    def _dismiss(self, arrival: PendingClient) -> None:
        if self.take(arrival):
            self._loop.remove(arrival.socket)
            arrival.socket.close()

    def close(self) -> None:
        """Disconnect clients that have not joined, and listen no more."""
        for arrival in list(self._waiting.values()):
            self._dismiss(arrival)
        if self._listener.fileno() >= 0:
            self._loop.remove(self._listener)
        self._listener.close()
