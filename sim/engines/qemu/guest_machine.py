"""A machine that is a real QEMU with a guest of its own, started, watched and ended by the coordinator's process."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sim.engines import messages
from sim.engines.qemu.guest_command import guest_command
from sim.engines.qemu.guest_console import GuestConsole
from sim.engines.qemu.guest_devices import GuestDevices
from sim.engines.qemu.guest_migration import GuestMigration
from sim.engines.qemu.guest_process import GuestProcess
from sim.engines.qemu.msix_state import MsixState, read_msix_states
from sim.kernel.loop import Loop
from sim.kernel.processes import describe_exit
from sim.kernel.qemu_program import chosen_qemu
from sim.recording import Recording, State, header
from sim.wire.clients import Dismissal
from topologies import Machine

SECOND_NS = 1_000_000_000
QUIET_NS = SECOND_NS // 2
ANSWER_NS = SECOND_NS  # with QUIET_NS less than the patience of the coordinator with a machine that is to stop
HEAR_NS = SECOND_NS // 2
END_NS = 5 * SECOND_NS
STARVED_TICKS = 100
KVM = "/dev/kvm"
PANIC = re.compile(r"Kernel panic - not syncing.*")
TOTALS = re.compile(r"ivsim: (?=.*=)(\w+=\d+(?: \w+=\d+)*)$")
"""A line by which a guest tells what it has counted: ``ivsim: rung=10 interrupts=9``."""


class GuestMachine:
    """One incarnation of a machine with an image (`topologies.guest_image`); a `sim.engines.base.LiveMachine`.

    It is ready when its server has admitted it and its console has matched ``ready_when``. A guest that has printed
    totals is asked for them once more at the end, by a line on its console ("report"): they are its statistics.

    Args:
        domains: the numbers of the domains that it has a device in.
        server_path: the path of a domain's server, by the domain's number.
        memory_bytes: the size of the memory of each domain.
        console_path: where its console is kept.
        watched: regular expressions that are reported when a line first contains them.
        on_process: called with the process ID of its QEMU.
        dismiss: lets the server of that domain disconnect the client with that process ID.
    """

    def __init__(
        self,
        machine: Machine,
        domains: Sequence[int],
        recordings: Sequence[Recording],
        loop: Loop,
        *,
        server_path: Callable[[int], str],
        memory_bytes: Sequence[int],
        console_path: Path,
        watched: Iterable[str],
        runtime: Path,
        on_process: Callable[[int], None],
        dismiss: Callable[[int, int], Dismissal | None],
        report: Callable[[messages.Report], None],
    ) -> None:
        assert machine.guest is not None
        self._machine, self._image, self._domains = machine, machine.guest, domains
        self._server_path, self._memory_bytes = server_path, memory_bytes
        self._recordings, self._loop = recordings, loop
        self._runtime, self._on_process, self._report = runtime, on_process, report
        self._ready_when = re.compile(self._image.ready_when)
        self._watched = [re.compile(pattern) for pattern in watched]
        self._console = GuestConsole(loop, console_path, self._take_line)
        self._qemu = GuestProcess(loop, on_event=self._take_event, on_exit=self._end)
        self._emptied: list[GuestProcess] = []
        """Those that it has migrated from."""
        self._migration: GuestMigration | None = None
        self._awaited = {"admission", "line"} if self._image.ready_when else {"admission"}
        self._ended = self._ready = self._told_to_end = self._is_finishing = False
        self._has_left = self._may_reboot = False
        self._devices = GuestDevices(
            loop,
            lambda: self._qemu,
            len(domains),
            dismiss=lambda: [dismiss(domain, self._qemu.pid or 0) for domain in self._domains],
            left=self._leave,
            end=self._stop,
            report=report,
        )
        self._deadline_ns = 0
        self._ticks_at_stop = 0
        self._totals: dict[str, int | float] = {}
        self._on_totals: Callable[[], None] = lambda: None
        self._failure = ""
        for recording in recordings:
            recording.words[header.GUEST] = 1

    @property
    def pid(self) -> int | None:
        return self._qemu.pid

    @property
    def is_running(self) -> bool:
        return self._qemu.pid is not None and not self._ended

    @property
    def is_still(self) -> bool:
        return self._qemu.is_still

    @property
    def is_starved(self) -> bool:
        return self._qemu.waits_for_cpu(self._ticks_at_stop, STARVED_TICKS)

    def start_progress(self, now_ns: int) -> int:
        """Grows as long as the guest may take its time to become ready: its own timeout decides."""
        return now_ns // SECOND_NS if self.is_running and not self._ready and now_ns < self._deadline_ns else 0

    def start(self) -> None:
        try:
            self._launch(self._qemu, self._domains)
        except OSError as error:
            why = f"could not be started: {self._image.qemu or chosen_qemu()}: {error.strerror}"
            self._ended = True
            self._loop.after(0, lambda: self._report(messages.Ended(why, started=False)))
            return
        self._qemu.monitor.start()
        self._enter(State.CONNECTED)
        self._deadline_ns = self._loop.clock.now_ns() + round(self._image.ready_timeout_s * SECOND_NS)
        self._loop.at(self._deadline_ns, self._give_up)
        self._loop.after(0, lambda: self._report(messages.Placed()))

    def _launch(self, qemu: GuestProcess, domains: Sequence[int], *, gone: str = "", state: int | None = None) -> None:
        """Start a QEMU for this machine; ``gone`` is added to the path of its server.

        Raises:
            OSError: the program cannot be executed.
        """
        with self._console.connect() as console:
            descriptors = [console.fileno(), qemu.monitor.far.fileno(), *([] if state is None else [state])]
            servers = [self._server_path(domain) + gone for domain in domains]
            command = guest_command(self._machine, servers, console=descriptors[0], monitor=descriptors[1], state=state)
            self._on_process(qemu.start(command, descriptors, self._runtime))

    def tell(self, order: messages.Order) -> bool:
        if not self.is_running:
            return False
        match order:
            case messages.Expect():
                self._progress("admission")
            case messages.Start(start_ns=start_ns):
                self._enter(State.RUNNING, header.STARTED_NS, start_ns)
            case messages.Stop():
                self._stop()
            case messages.Leave():
                self._begin_to_leave()
            case messages.Migrate():
                self._migrate(order)
            case messages.Ping(number):
                for recording in self._recordings:
                    recording.words[header.PING] = number
                    recording.words[header.PING_NS] = self._loop.clock.now_ns()
            case messages.Act(do="reset"):
                # Until now a reset ends QEMU (-no-reboot). Firmware may ask for a second one.
                self._may_reboot = True
                self._allow_reboot()
                self._qemu.monitor.command("system_reset")
            case messages.Act(do="unplug"):
                self._devices.unplug()
            case messages.Act(do=do):
                self._report(messages.Warned(f"{do} was not done: what runs in this machine is a guest of its own"))
            case _:
                pass  # it learns IDs from its device alone
        return True

    def stall(self) -> None:
        self._qemu.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._qemu.signal(signal.SIGCONT)

    def kill(self) -> None:
        self._qemu.signal(signal.SIGKILL)

    def close(self) -> None:
        self._ended = True
        if self._migration is not None:
            self._migration.close()
        for qemu in (self._qemu, *self._emptied):
            qemu.close()
        self._console.close()

    def _enter(self, state: int, stamp: int | None = None, moment_ns: int = 0) -> None:
        for recording in self._recordings:
            if stamp is not None:
                recording.words[stamp] = moment_ns or self._loop.clock.now_ns()
            recording.words[header.STATE] = state

    def hear_leave(self, domain: int) -> None:
        """A peer has left this domain, and its server has told the QEMUs that are in it."""
        if domain in self._domains and "admission" not in self._awaited:
            self._devices.hear_leave()

    def _take_event(self, name: str, data: dict[str, Any], at_ns: int) -> None:
        if self._migration is not None:
            self._migration.take_source_event(name, data, at_ns)
        self._devices.take_event(name, data)

    def _begin_to_leave(self) -> None:
        """Remove its devices. End QEMU where there is no guest yet that could release them."""
        if self._ready:
            self._devices.leave()
        else:
            self._stop()

    def _leave(self) -> None:
        """It takes part no more, and runs on."""
        if not self._told_to_end:
            self._has_left = True
            self._enter(State.STOPPED, header.STOPPED_NS)
            self._loop.after(0, lambda: self._report(messages.Departed()))

    # Migration

    def _migrate(self, order: messages.Migrate) -> None:
        """Continue in another QEMU, which connects to the server of that domain."""

        def start(qemu: GuestProcess, state: int) -> None:
            gone = ".gone" if order.fault == "server_gone" else ""
            self._launch(qemu, [order.domain], gone=gone, state=state)

        def failed(why: str, paused_ns: int) -> None:
            self._migration = None
            self._report(messages.Stayed(why, paused_ns))

        self._migration = GuestMigration(
            self._loop,
            self._qemu,
            memory_bytes=self._memory_bytes[order.domain],
            fault=order.fault,
            start=start,
            arrived=lambda moved: self._arrive(moved, order.domain),
            failed=failed,
        )

    def _arrive(self, moved: messages.Moved, domain: int) -> None:
        migration, self._migration = self._migration, None
        assert migration is not None
        self._qemu.on_exit = lambda code: None
        self._qemu.kill()
        self._emptied.append(self._qemu)
        self._qemu = migration.target
        self._qemu.on_exit, self._qemu.monitor.on_event = self._end, self._take_event
        migration.close()
        if self._may_reboot:
            self._allow_reboot()
        self._devices.arrive()
        self._domains = [domain]
        self._recordings[0].words[header.DOMAIN] = domain
        self._report(messages.Placed())
        self._report(moved)

    def _allow_reboot(self) -> None:
        self._qemu.monitor.command("set-action", reboot="reset")

    # Until it is ready

    def _take_line(self, line: str) -> None:
        if self._awaited and self._ready_when.search(line):
            self._progress("line")
        for pattern in [pattern for pattern in self._watched if pattern.search(line)]:
            self._watched.remove(pattern)
            self._report(messages.Printed(pattern.pattern))
        if (totals := TOTALS.search(line)) is not None:
            words = (word.partition("=") for word in totals[1].split())
            self._totals = {name: int(value[:18]) for name, _, value in words}
            if "rung" in self._totals:
                self._recordings[0].words[header.GUEST_RUNG] = int(self._totals["rung"]) + 1
            self._on_totals()
        if (panic := PANIC.search(line)) is not None and not self._failure and not self._told_to_end:
            self._fail(panic[0])

    def _progress(self, what: str) -> None:
        self._awaited.discard(what)
        if not self._awaited and not self._ready:
            self._ready = True
            self._enter(State.READY, header.READY_NS)
            self._loop.after(0, lambda: self._report(messages.Ready()))

    def _give_up(self) -> None:
        if self._ready or self._ended or self._told_to_end:
            return
        missing = f"no line has matched {self._image.ready_when!r}" if "line" in self._awaited else "it did not connect"
        hint = ""
        if not self._console.lines and self._image.accel != "tcg" and os.access(KVM, os.R_OK | os.W_OK):
            hint = '; it runs with KVM, accel = "tcg" does without'
        self._fail(f"{missing} within {self._image.ready_timeout_s:g} s{self._console.last_words}{hint}")

    def _fail(self, summary: str) -> None:
        """The guest cannot continue: say so, and end its QEMU."""
        self._failure = summary
        self._report(messages.Failed("guest", summary))
        self.kill()

    # The end

    def _stop(self) -> None:
        """Look whether its device can interrupt it, ask for its totals, then end QEMU."""
        if self._told_to_end:
            return
        self._told_to_end = True
        if self._devices.are_leaving:
            self._report(messages.Warned("its guest has not released its device by the end of the run"))
        if self._migration is not None:
            self._migration.fail("the run is over")
        self._ticks_at_stop = self._qemu.work_ticks()
        if not self._ready:
            self._terminate()
            return
        self._qemu.monitor.ask(read_msix_states(), self._tell_msix_states)
        self._loop.after(HEAR_NS, self._let_finish)

    def _tell_msix_states(self, found: list[MsixState]) -> None:
        for device in found:
            if device.reason:
                self._report(
                    messages.Warned(f"its device could not interrupt it at the end of the run: {device.reason}")
                )
        self._let_finish()

    def _let_finish(self) -> None:
        """Let the guest handle what is under way and tell its totals, if it has any."""
        if self._is_finishing or self._ended:
            return
        self._is_finishing = True
        now_ns = self._loop.clock.now_ns()
        if not self._totals:
            self._terminate()
            return
        self._loop.at(now_ns + QUIET_NS, self._ask)
        self._loop.at(now_ns + QUIET_NS + ANSWER_NS, self._terminate)

    def _ask(self) -> None:
        self._on_totals = self._terminate
        self._console.write("report\n")

    def _terminate(self) -> None:
        """End QEMU: by SIGTERM, as it flushes its disks then, and by SIGKILL if it does not end."""
        self._on_totals = lambda: None
        self._qemu.signal(signal.SIGTERM)
        self._loop.after(END_NS, self.kill)

    def _end(self, code: int) -> None:
        if self._migration is not None:
            self._migration.close()
        self._console.read()
        self._ended = True
        outside = self._qemu.monitor.shut_down_by()
        if self._told_to_end or (code == 0 and self._ready and not self._failure and not outside):
            if not self._has_left:
                self._enter(State.STOPPED, header.STOPPED_NS)
            self._report(messages.Stopped(self._totals))
            self._report(messages.Ended(""))
            return
        if not self._failure:
            self._report(messages.Failed("guest", f"QEMU ended{outside and f' ({outside})'}{self._last_words()}"))
        self._report(messages.Ended("ended by the run" if self._failure else describe_exit(code)))

    def _last_words(self) -> str:
        printed = self._qemu.printed
        return (f": {printed}" if printed else "") + self._console.last_words
