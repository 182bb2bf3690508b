"""A program for a machine that has devices in several domains."""

from __future__ import annotations

from nodes.guest import FOREVER, Guest, Program


def relay(guest: Guest) -> Program:
    """Forward each interrupt of one device through all others: on each, ring the next peer, on the same vector.

    Peers without that vector are skipped. Statistics: ``relayed``, the number of doorbells that were forwarded.
    """
    turns = [0] * len(guest.devices)
    guest.statistics["relayed"] = 0
    while True:
        interrupt = yield FOREVER
        if interrupt is None:
            continue
        for number, device in enumerate(guest.devices):
            if number == interrupt.device:
                continue
            able = [peer for peer, has in device.peers.items() if peer != device.peer and has > interrupt.vector]
            if able:
                device.ring(able[turns[number] % len(able)], interrupt.vector)
                turns[number] += 1
                guest.statistics["relayed"] += 1
