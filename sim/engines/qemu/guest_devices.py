"""The ivshmem devices of a guest, and how they are removed while others ring them: device_del, which the guest answers.

A doorbell that arrives while QEMU takes a device away can end QEMU by SIGSEGV: ivshmem_exit (ivshmem.c) frees what the
handlers of the eventfds use, and leaves the handlers. So each server disconnects the device first, the removal waits
until all other peers know that and QEMU has read its counters, and then gives device_del.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sim.engines.messages import Remained, Report, Warned
from sim.engines.qemu.guest_command import connection_id, device_id
from sim.engines.qemu.guest_process import GuestProcess
from sim.kernel.loop import Loop
from sim.kernel.processes import wants_cpu, work_ticks
from sim.wire.clients import Dismissal, JoinedClient

SECOND_NS = 1_000_000_000
LOOK_NS = 2_000_000
LEAVE_NS = 15 * SECOND_NS
"""How long each step may take: the next peer that hears of it, QEMU's answer, the guest's release of its devices. Linux
lets five seconds go by first for one that is behind a port of PCI Express (pciehp: the power indicator blinks, and the
request can be taken back)."""
STARVED_TICKS = 100
ANSWERS = 3
"""After so many answers of its monitor, one after the other, QEMU's main loop has made a whole turn."""
NAMED_MAX = 8
ABORTS = "device_del aborts a QEMU that has heard of a peer's leave"


class GuestDevices:
    """Which devices are plugged in, and their removal.

    Args:
        qemu: the QEMU that they are in now.
        dismiss: lets their servers disconnect them; with None for a device that no server is connected to.
        left: is told when they have gone as ordered by ``leave``, or are disconnected at least.
        end: ends QEMU, where a removal that was ordered by ``leave`` could do so.
        report: is told what else comes of a removal.
    """

    def __init__(
        self,
        loop: Loop,
        qemu: Callable[[], GuestProcess],
        count: int,
        *,
        dismiss: Callable[[], Sequence[Dismissal | None]],
        left: Callable[[], None],
        end: Callable[[], None],
        report: Callable[[Report], None],
    ) -> None:
        self._loop, self._qemu, self._dismiss = loop, qemu, dismiss
        self._left, self._end, self._report = left, end, report
        self._still_there = set(range(count))
        self._dismissed: Sequence[Dismissal] | None = None
        self._deadline_ns = 0
        self._ticks: dict[int, int] = {}
        self._late: Callable[[], None] = lambda: None
        self._has_heard_leave = self._goes = False
        self.are_leaving = False
        """Whether they are to go, and their machine with them."""

    def hear_leave(self) -> None:
        """A peer has left, and its server tells their QEMU, if it is connected."""
        if self._dismissed is None:
            self._has_heard_leave = True

    def arrive(self) -> None:
        """They are in another QEMU, which has heard of no leave."""
        self._has_heard_leave = False

    def unplug(self) -> None:
        """Remove them all. Those that go later than awaited, after all, are gone then."""
        if self._goes:
            return
        self._goes = True
        if not self._still_there:
            self._conclude()
            return
        self._await(lambda: self._refuse(self._in_time("its QEMU has not answered")))
        self._loop.at(self._deadline_ns, self._lose_patience)
        if self._dismissed is not None:
            self._await_others()
            return
        device = f"/machine/peripheral/{device_id(min(self._still_there))}"
        self._qemu().monitor.command(
            "qom-get", self._begin, lambda _why: self._begin(True), path=device, property="hotpluggable"
        )

    def leave(self) -> None:
        """Remove them all, and tell that their machine has left."""
        self.are_leaving = True
        self.unplug()

    def _begin(self, is_hotpluggable: bool) -> None:
        """Let the servers disconnect them, unless QEMU refuses the removal or does not survive it.

        close_peer_eventfds (ivshmem.c, 2.6 to 11.1) leaves a dangling pointer for a peer that has left, and the end of
        the device frees it again.
        """
        if not self._goes:
            return
        if self._has_heard_leave:
            if self.are_leaving:
                self._end_instead(ABORTS)
            else:
                self._refuse(ABORTS)
        elif is_hotpluggable:
            self._dismissed = ()  # QEMU does not hear what the servers say from now on
            self._dismissed = [dismissal for dismissal in self._dismiss() if dismissal is not None]
            self._await_others()
        else:  # device_del does nothing then but say why
            self._delete(self._refuse)

    # Until no other peer rings them

    def _await_others(self) -> None:
        assert self._dismissed is not None
        if len(self._dismissed) < len(self._still_there):
            self._give_up("no server can tell the other peers that it leaves")
        else:
            self._look(1 + len(self._unaware()))

    def _unaware(self) -> list[JoinedClient]:
        return [peer for dismissal in self._dismissed or () for peer in dismissal.unaware()]

    def _look(self, before: int) -> None:
        """Look whether all other peers know; ``before`` did not the last time."""
        if not self._goes or not self._qemu().is_running:
            return
        unaware = self._unaware()
        if len(unaware) < before:
            self._await(self._name_unaware, *(peer.pid for peer in unaware))
        if unaware:
            self._loop.after(LOOK_NS, lambda: self._look(len(unaware)))
        else:
            self._await(lambda: self._give_up(self._in_time("its QEMU has not answered")))
            self._let_read(ANSWERS)

    def _name_unaware(self) -> None:
        unaware = [str(peer.peer) for peer in self._unaware()]
        named = ", ".join([*unaware[:NAMED_MAX], *(["..."] if len(unaware) > NAMED_MAX else [])])
        who = f"peer {named} has" if len(unaware) == 1 else f"peers {named} have"
        self._give_up(self._in_time(f"{who} not read that it leaves"))

    def _let_read(self, answers: int) -> None:
        """Let QEMU read the doorbells that came before the others knew."""
        if not self._goes:
            return
        if answers:
            self._qemu().monitor.command("query-status", lambda _state: self._let_read(answers - 1))
        else:
            self._delete(self._keep)

    # device_del

    def _delete(self, failed: Callable[[str], None]) -> None:
        """Ask the guest to release them; QEMU says when it has (DEVICE_DELETED)."""
        self._await(lambda: self._keep(self._in_time("its guest has not released its device")))
        for number in self._still_there:
            self._qemu().monitor.command("device_del", failed=failed, id=device_id(number))

    def take_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "DEVICE_DELETED":
            for number in [number for number in self._still_there if data.get("device") == device_id(number)]:
                self._still_there.remove(number)
                # The device leaves its connection open.
                self._qemu().monitor.command("chardev-remove", lambda _: self._conclude(), id=connection_id(number))

    # What comes of it

    def _conclude(self) -> None:
        self._goes = bool(self._still_there) and self._goes
        if self.are_leaving and not self._still_there:
            self.are_leaving = False
            self._left()

    def _refuse(self, why: str) -> None:
        """They are plugged in and connected, as before."""
        if self._is_over():
            return
        if self.are_leaving:
            self.are_leaving = False
            self._report(Remained(why))
        else:
            self._report(Warned(f"unplug was not done: {why}"))

    def _keep(self, why: str) -> None:
        """They are disconnected, and QEMU keeps them."""
        if self._is_over():
            return
        self._report(Warned(f"{why}: QEMU keeps it, disconnected"))
        if self.are_leaving:
            self.are_leaving = False
            self._left()

    def _give_up(self, why: str) -> None:
        """They are disconnected, and a peer may still ring them."""
        why += ", and a doorbell could end QEMU"
        if self.are_leaving:
            self._end_instead(why)
        else:
            self._keep(f"unplug was not done: {why}")

    def _end_instead(self, why: str) -> None:
        if not self._is_over():
            self._report(Warned(f"{why}: its QEMU was ended instead"))
            self.are_leaving = False
            self._end()

    def _is_over(self) -> bool:
        """Whether something has come of the removal already; something has from now on."""
        was_over, self._goes = not self._goes, False
        return was_over

    # Patience

    def _await(self, late: Callable[[], None], *pids: int) -> None:
        """A step begins; ``late`` is called when it takes too long for these processes and for QEMU."""
        self._late = late
        self._deadline_ns = self._loop.clock.now_ns() + LEAVE_NS
        own = self._qemu().pid
        self._ticks = {pid: work_ticks(pid) for pid in (*pids, *([] if own is None else [own]))}

    def _lose_patience(self) -> None:
        if not self._goes or not self._qemu().is_running:
            return
        now_ns = self._loop.clock.now_ns()
        if now_ns < self._deadline_ns:
            self._loop.at(self._deadline_ns, self._lose_patience)
        elif any(wants_cpu(pid) and work_ticks(pid) - since < STARVED_TICKS for pid, since in self._ticks.items()):
            self._loop.at(now_ns + SECOND_NS, self._lose_patience)
        else:
            self._late()

    def _in_time(self, what: str) -> str:
        return f"{what} within {LEAVE_NS / SECOND_NS:g} s"
