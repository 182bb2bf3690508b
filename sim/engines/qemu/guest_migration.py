"""A machine with a guest continues in another QEMU: QMP's migrate, while the coordinator's loop goes on.

The target is started with the same command. It connects to the server of the domain that it arrives in, as QEMU does
before it takes in any state, and the source sends its state when the target's monitor answers. The machine is in the
source until the target has loaded all of it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from sim.engines.messages import Moved
from sim.engines.qemu.guest_process import GuestProcess
from sim.engines.qemu.migration import BANDWIDTH_BYTES_PER_S, SLOW_BYTES_PER_S
from sim.engines.qemu.msix_state import MsixState, read_msix_states
from sim.kernel.loop import Loop

LOOK_NS = 1_000_000_000
LOOKS = 60
HEAR_NS = 5 * LOOK_NS
CANCELLED = "it was cancelled"


class GuestMigration:
    """One migration of a guest. Owns the target until it is complete, and the connection that the state takes.

    Args:
        source: the QEMU that the machine is in.
        memory_bytes: the size of the memory in the target.
        fault: what is to go wrong (`topologies.actions.Fault`).
        start: starts a process as the target, with the descriptor that it reads the state from.
        arrived: is told when the machine is in the target.
        failed: is told why it stays in the source, and for how many nanoseconds it stood still.
    """

    def __init__(
        self,
        loop: Loop,
        source: GuestProcess,
        *,
        memory_bytes: int,
        fault: str,
        start: Callable[[GuestProcess, int], None],
        arrived: Callable[[Moved], None],
        failed: Callable[[str, int], None],
    ) -> None:
        self._loop, self._source, self._fault, self._memory_bytes = loop, source, fault, memory_bytes
        self._arrived, self._failed = arrived, failed
        self.target = GuestProcess(loop, on_event=self._take_target_event, on_exit=self._target_ended)
        self.is_over = self._is_cancelled = False
        self._stopped_ns = self._resumed_ns = 0
        self._sent: dict[str, Any] = {}
        self._is_loaded = self._is_told = False
        self._looks = self._ticks = 0
        self._state, far = socket.socketpair()
        try:
            start(self.target, far.fileno())
        except OSError as error:
            why = f"its new QEMU could not be started: {error.strerror}"
            self._loop.after(0, lambda: self.fail(why))
            return
        finally:
            far.close()
        self.target.monitor.start(self._send)
        self._loop.after(0, self._look)

    def take_source_event(self, name: str, data: dict[str, Any], at_ns: int) -> None:
        if name == "STOP":
            self._stopped_ns = at_ns
        elif name == "RESUME":
            self._resumed_ns = at_ns
        elif name == "MIGRATION" and not self.is_over:
            status = data["status"]
            if status == "active":
                self._go_wrong()
            elif status == "completed":
                self._source.monitor.command("query-migrate", self._is_sent)
            elif status in ("failed", "cancelled"):
                self._source.monitor.command("query-migrate", lambda said: self._not_sent(status, said))

    def fail(self, reason: str) -> None:
        """End the target; the machine continues in the source."""
        if self.is_over:
            return
        self.is_over = True
        # What is running already is told to run: after a failure at the very end the source stands still.
        self._source.monitor.command("migrate_cancel")
        self._source.monitor.command("cont", lambda _: self._failed(reason, self._paused_ns()))
        self.target.on_exit = lambda code: self.close()
        self.target.kill()

    def close(self) -> None:
        """End the target, unless the machine is in it."""
        if not self._is_told:
            self.is_over = True
            self.target.close()
        self._state.close()

    def _send(self, _result: Any) -> None:
        """Let the source send, once both tell how it goes."""
        events = [{"capability": "events", "state": True}]

        def begin(_result: Any) -> None:
            source = self._source.monitor
            slow = self._fault in ("target_dies", "cancel", "source_dies")
            source.command("migrate-set-capabilities", capabilities=events)
            bandwidth = SLOW_BYTES_PER_S if slow else BANDWIDTH_BYTES_PER_S
            source.command("migrate-set-parameters", **{"max-bandwidth": bandwidth})  # type: ignore[arg-type]
            source.give_descriptor("state", self._state.fileno())
            source.command("migrate", failed=lambda why: self.fail(f"migrate: {why}"), uri="fd:state")

        if not self.is_over:
            self.target.monitor.command("migrate-set-capabilities", begin, self.fail, capabilities=events)

    def _go_wrong(self) -> None:
        """The state is being sent: the moment for a fault."""
        if self._fault == "target_dies":
            self.target.kill()
        elif self._fault == "source_dies":
            self._source.kill()
        elif self._fault == "cancel":
            self._is_cancelled = True
            self._source.monitor.command("migrate_cancel")

    def _is_sent(self, said: dict[str, Any]) -> None:
        self._sent = said
        self._conclude()

    def _not_sent(self, status: str, said: dict[str, Any]) -> None:
        if self._fault == "target_dies":
            self.fail("its new QEMU died")
        elif status == "cancelled":
            self.fail(CANCELLED)
        elif not self.target.has_ended:  # otherwise that has the reason
            self.fail(f"migrate failed: {said.get('error-desc') or 'QEMU does not say why'}")

    def _take_target_event(self, name: str, data: dict[str, Any], at_ns: int) -> None:
        if name == "RESUME":
            self._resumed_ns = self._resumed_ns or at_ns
        elif name == "MIGRATION" and data["status"] == "completed":
            self._is_loaded = True
            self._conclude()

    def _target_ended(self, code: int) -> None:
        if self._fault == "target_dies":
            self.fail("its new QEMU died")
        elif self._is_cancelled:  # it has ended of that
            self.fail(CANCELLED)
        else:
            self.fail(f"its new QEMU ended: {self.target.printed or f'exit {code}'}")
        self.close()

    def _conclude(self) -> None:
        """Both have told that it is complete: look what is pending in the new device."""
        if not self._sent or not self._is_loaded or self.is_over:
            return
        self.target.monitor.ask(read_msix_states(), self._tell)
        self._loop.after(HEAR_NS, lambda: self._tell([]))

    def _tell(self, found: list[MsixState]) -> None:
        if not self.is_over:
            self.is_over = self._is_told = True
            pending = sum(state.pending_vectors for state in found)
            state_bytes = int(self._sent["ram"]["transferred"])
            self._arrived(Moved(None, self._paused_ns(), state_bytes, self._memory_bytes, pending))

    def _paused_ns(self) -> int:
        """For how long the machine has stood still, by the clock of both monitors."""
        return max(0, self._resumed_ns - self._stopped_ns) if self._stopped_ns and self._resumed_ns else 0

    def _look(self) -> None:
        """Give up a target that makes no progress: one that waits uses no CPU."""
        if self.is_over:
            return
        ticks = self.target.work_ticks()
        self._looks = self._looks + 1 if ticks == self._ticks else 0
        self._ticks = ticks
        if self._looks >= LOOKS:
            self.fail(f"its new QEMU has made no progress for {LOOKS * LOOK_NS // 1_000_000_000} s")
            return
        self._loop.after(LOOK_NS, self._look)
