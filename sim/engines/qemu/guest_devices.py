"""The ivshmem devices of a guest, and how they go: device_del, which is the guest's to answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.engines.qemu.guest_command import connection_id, device_id
from sim.engines.qemu.guest_process import GuestProcess
from sim.kernel.loop import Loop

__all__ = ["ABORTS", "GuestDevices"]

SECOND_NS = 1_000_000_000
LEAVE_NS = 15 * SECOND_NS
"""How long a guest may take to release its devices. Linux lets five seconds go by first for one that is behind a port
of PCI Express (pciehp: the power indicator blinks, and the request can be taken back)."""
STARVED_TICKS = 100
ABORTS = "device_del aborts a QEMU that has heard of a peer's leave"


class GuestDevices:
    """Which devices are plugged in. A machine leaves when all have gone.

    Args:
        qemu: the QEMU that they are in now.
        left: is told when all have gone, as ordered by ``leave``.
        remained: is told why they have not.
    """

    def __init__(
        self,
        loop: Loop,
        qemu: Callable[[], GuestProcess],
        count: int,
        *,
        left: Callable[[], None],
        remained: Callable[[str], None],
    ) -> None:
        self._loop, self._qemu, self._left, self._remained = loop, qemu, left, remained
        self._still_there = set(range(count))
        self._ticks = 0
        self.has_heard_leave = False
        """Whether a peer has left, and their QEMU knows."""
        self.are_leaving = False

    @property
    def would_abort(self) -> bool:
        """Whether device_del would end QEMU.

        close_peer_eventfds (ivshmem.c, 2.6 to 11.1) leaves a dangling pointer for a peer that has left, and the end of
        the device frees it again.
        """
        return self.has_heard_leave and bool(self._still_there)

    def unplug(self, refused: Callable[[str], None]) -> None:
        """Ask the guest to release them; QEMU says when it has (DEVICE_DELETED)."""
        if self.would_abort:
            refused(ABORTS)
            return
        for number in self._still_there:
            self._qemu().monitor.command("device_del", failed=refused, id=device_id(number))

    def take_event(self, name: str, data: dict[str, Any]) -> None:
        """An event of QEMU's monitor."""
        if name == "DEVICE_DELETED":
            for number in [number for number in self._still_there if data.get("device") == device_id(number)]:
                self._still_there.remove(number)
                # The device leaves its connection open: its server would not know that it has left.
                self._qemu().monitor.command("chardev-remove", lambda _: self._conclude(), id=connection_id(number))

    def leave(self) -> None:
        """Unplug them all, and tell what comes of it. One that goes later, after all, has left then."""
        self.are_leaving = True
        self._ticks = self._qemu().work_ticks()
        self.unplug(self._remain)
        self._conclude()  # they may have been unplugged before
        self._loop.at(self._loop.clock.now_ns() + LEAVE_NS, self._lose_patience)

    def _conclude(self) -> None:
        if self.are_leaving and not self._still_there:
            self.are_leaving = False
            self._left()

    def _lose_patience(self) -> None:
        """The guest has not released them, though it could run."""
        if not self.are_leaving or not self._qemu().is_running:
            return
        if self._qemu().waits_for_cpu(self._ticks, STARVED_TICKS):
            self._loop.at(self._loop.clock.now_ns() + SECOND_NS, self._lose_patience)
        else:
            self._remain(f"its guest has not released its device within {LEAVE_NS / SECOND_NS:g} s")

    def _remain(self, why: str) -> None:
        if self.are_leaving:
            self.are_leaving = False
            self._remained(why)
