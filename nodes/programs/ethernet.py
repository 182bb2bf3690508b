"""A program that speaks Ethernet over ivshmem v2: two peers that ping each other."""

from __future__ import annotations

import struct

from nodes.ethernet import Link
from nodes.guest import FOREVER, Guest, Program
from nodes.programs.arrivals import SECOND_NS

ETHERTYPE = 0x88B5
"""IEEE 802, local experimental Ethertype 1."""
REQUEST, REPLY = 1, 2
_HEADER = struct.Struct(">6s6sH")
_ECHO = struct.Struct(">HIQ")
FRAME_BYTES_MIN = 60


def ethernet(guest: Guest, *, rate_hz: float = 100.0, frame_bytes: int = 64) -> Program:
    """Bring the link up, and ping the other peer over it.

    The domain has two peers, output sections and the protocol 1. The States go from RESET through INIT and READY to
    RUN. While the link is up, the machine sends ``rate_hz`` requests in a second, and answers those of the other side.
    Its statistics: ``ups`` and ``resets`` of the link, ``state`` at the end, frames ``sent``, ``received``,
    ``answered``, ``full`` (no room in the queue), and the round trips ``rtt_mean_us``, ``rtt_max_us``.

    Args:
        rate_hz: requests in a second; 0: none.
        frame_bytes: the length of a request and of its reply, at least 60.
    """
    link = Link(guest)
    size_bytes = max(frame_bytes, FRAME_BYTES_MIN)
    period_ns = round(SECOND_NS / rate_hz) if rate_hz else None
    own, other = _address(guest.peer), _address(link.peer)
    statistics = guest.statistics
    statistics.update(ups=0, resets=0, state=0, sent=0, received=0, answered=0, full=0, rtt_mean_us=0, rtt_max_us=0)
    sequence = total_ns = 0
    due_ns: int | None = FOREVER
    while True:
        if not link.advance():
            due_ns = FOREVER
        elif due_ns is None and period_ns is not None:
            due_ns = guest.clock()
        statistics.update(ups=link.ups, resets=link.resets, state=int(link.state))
        for frame in link.receive():
            statistics["received"] += 1
            _, _, ethertype = _HEADER.unpack_from(frame)
            kind, number, sent_ns = _ECHO.unpack_from(frame, _HEADER.size)
            if ethertype == ETHERTYPE and kind == REQUEST:
                reply = _HEADER.pack(other, own, ETHERTYPE) + _ECHO.pack(REPLY, number, sent_ns)
                statistics["full"] += not link.send(reply.ljust(len(frame), b"\0"))
            elif ethertype == ETHERTYPE and kind == REPLY:
                rtt_ns = guest.clock() - sent_ns
                total_ns += rtt_ns
                statistics["answered"] += 1
                statistics["rtt_mean_us"] = total_ns / statistics["answered"] / 1e3
                statistics["rtt_max_us"] = max(statistics["rtt_max_us"], rtt_ns / 1e3)
        now_ns = guest.clock()
        if due_ns is not None and period_ns is not None and now_ns >= due_ns:
            sequence += 1
            request = _HEADER.pack(other, own, ETHERTYPE) + _ECHO.pack(REQUEST, sequence & 0xFFFF_FFFF, now_ns)
            if link.send(request.ljust(size_bytes, b"\0")):
                statistics["sent"] += 1
            else:
                statistics["full"] += 1
            due_ns = max(due_ns + period_ns, now_ns)
        yield due_ns


def _address(peer: int) -> bytes:
    """A locally administered MAC address."""
    return bytes([0x02, 0, 0, 0, 0, peer])
