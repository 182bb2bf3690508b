"""A program for a machine that is in more than one domain."""

from __future__ import annotations

from nodes.guest import FOREVER, Guest, Program

__all__ = ["relay"]


def relay(guest: Guest) -> Program:
    """Pass each interrupt of one device on to the other devices: on each, the next peer is rung, on the same vector.

    Peers without that vector are passed over. Statistics: how many doorbells were passed ``on``.
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
