"""A machine that is a real QEMU with a guest of its own, started, watched and ended by the coordinator's process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sim.engines import messages
from sim.engines.messages import Ended, Failed, Order, Placed, Printed, Ready, Report, Stopped, Warned
from sim.engines.qemu.guest_command import connection_id, device_id, guest_command
from sim.engines.qemu.guest_console import GuestConsole
from sim.engines.qemu.guest_monitor import GuestMonitor
from sim.engines.qemu.hearing import Hearing, hearings
from sim.kernel.loop import Loop
from sim.kernel.processes import (
    RUN_VARIABLE,
    ChildProcess,
    describe_exit,
    end_with_parent,
    has_stopped,
    wants_cpu,
    work_ticks,
)
from sim.recording import Recording, State, header
from topologies import Machine

__all__ = ["GuestMachine"]

SECOND_NS = 1_000_000_000
QUIET_NS = SECOND_NS // 2
ANSWER_NS = SECOND_NS  # with QUIET_NS less than the patience of the coordinator with a machine that is to stop
HEAR_NS = SECOND_NS // 2
END_NS = 5 * SECOND_NS
STARVED_TICKS = 100
PRINTED_CHARACTERS = 400
KVM = "/dev/kvm"
PANIC = re.compile(r"Kernel panic - not syncing.*")
TOTALS = re.compile(r"ivsim: (?=.*=)(\w+=\d+(?: \w+=\d+)*)$")
"""A line by which a guest tells what it has counted: ``ivsim: rung=10 interrupts=9``."""


class GuestMachine:
    """One incarnation of a machine with an image (`topologies.guest_image`); a `sim.engines.base.LiveMachine`.

    It is ready when its server has admitted it and its console has matched ``ready_when``. A guest that has printed
    totals is asked for them once more at the end, by a line on its console ("report"): they are its statistics.

    Args:
        servers: the sockets of the servers that it has a device at.
        console_path: where its console is kept.
        watched: regular expressions that are reported when a line first contains them.
        on_process: called with the process ID of its QEMU.
    """

    def __init__(
        self,
        machine: Machine,
        servers: Sequence[str],
        recordings: Sequence[Recording],
        loop: Loop,
        *,
        console_path: Path,
        watched: Iterable[str],
        runtime: Path,
        on_process: Callable[[int], None],
        report: Callable[[Report], None],
    ) -> None:
        assert machine.guest is not None
        self._machine, self._image, self._servers = machine, machine.guest, servers
        self._recordings, self._loop = recordings, loop
        self._runtime, self._on_process, self._report = runtime, on_process, report
        self._ready_when = re.compile(self._image.ready_when)
        self._watched = [re.compile(pattern) for pattern in watched]
        self._console = GuestConsole(loop, console_path, self._take_line)
        self._monitor = GuestMonitor(loop, self._take_event)
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  (close() closes it)
        self._process: ChildProcess | None = None
        self._awaited = {"admission", "line"} if self._image.ready_when else {"admission"}
        self._ended = self._ready = self._told_to_end = self._is_finishing = False
        self._has_heard_leave = False
        self._deadline_ns = 0
        self._ticks_at_stop = 0
        self._totals: dict[str, int | float] = {}
        self._on_totals: Callable[[], None] = lambda: None
        self._failure = ""
        for recording in recordings:
            recording.words[header.GUEST] = 1

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and not self._ended

    @property
    def is_still(self) -> bool:
        return self.pid is not None and has_stopped(self.pid)

    @property
    def is_starved(self) -> bool:
        return (
            self.pid is not None and wants_cpu(self.pid) and work_ticks(self.pid) - self._ticks_at_stop < STARVED_TICKS
        )

    def start_progress(self, now_ns: int) -> int:
        """Grows as long as the guest may take its time to become ready: its own timeout decides."""
        return now_ns // SECOND_NS if self.is_running and not self._ready and now_ns < self._deadline_ns else 0

    def start(self) -> None:
        descriptors = [self._console.far.fileno(), self._monitor.far.fileno()]
        command = guest_command(self._machine, self._servers, console=descriptors[0], monitor=descriptors[1])
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=self._printed,
                pass_fds=descriptors,
                env={**os.environ, RUN_VARIABLE: str(self._runtime)},
                start_new_session=True,  # a terminal's signals are for its user
                preexec_fn=end_with_parent,  # noqa: PLW1509  (this process has one thread that forks)
            )
        except OSError as error:
            why = f"could not be started: {command[0]}: {error.strerror}"
            self._ended = True
            self._soon(lambda: self._report(Ended(why, started=False)))
            return
        self._console.far.close()
        self._process = ChildProcess(process.pid)
        process.returncode = 0  # only that waits for it
        self._on_process(self._process.pid)
        self._loop.add(self._process.descriptor, self._collect_exit)
        self._monitor.start()
        self._enter(State.CONNECTED)
        self._deadline_ns = self._loop.clock.now_ns() + round(self._image.ready_timeout_s * SECOND_NS)
        self._loop.at(self._deadline_ns, self._give_up)
        self._soon(lambda: self._report(Placed()))

    def tell(self, order: Order) -> bool:
        if not self.is_running:
            return False
        match order:
            case messages.Expect():
                self._progress("admission")
            case messages.Start(start_ns=start_ns):
                self._enter(State.RUNNING, header.STARTED_NS, start_ns)
            case messages.Stop() | messages.Leave():
                self._stop()
            case messages.Ping(number):
                for recording in self._recordings:
                    recording.words[header.PING] = number
                    recording.words[header.PING_NS] = self._loop.clock.now_ns()
            case messages.Act(do="reset"):
                # Until now a reset ends QEMU (-no-reboot). Firmware may ask for a second one.
                self._monitor.command("set-action", reboot="reset")
                self._monitor.command("system_reset")
            case messages.Act(do="unplug"):
                self._unplug()
            case messages.Act(do=do):
                self._report(Warned(f"{do} was not done: what runs in this machine is a guest of its own"))
            case _:
                pass  # it learns IDs from its device alone
        return True

    def stall(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._ended = True
        if self._process is not None:
            self._loop.remove(self._process.descriptor)
            self._process.close()
        self._monitor.close()
        self._console.close()
        self._printed.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and not self._ended:
            self._process.signal(number)

    def _soon(self, callback: Callable[[], None]) -> None:
        """Call back from the loop, not from within the call that caused it."""
        self._loop.at(self._loop.clock.now_ns(), callback)

    def _enter(self, state: int, stamp: int | None = None, moment_ns: int = 0) -> None:
        for recording in self._recordings:
            if stamp is not None:
                recording.words[stamp] = moment_ns or self._loop.clock.now_ns()
            recording.words[header.STATE] = state

    def hear_leave(self) -> None:
        """A peer has left, and its server has told QEMU so."""
        self._has_heard_leave = self._has_heard_leave or "admission" not in self._awaited

    def _unplug(self) -> None:
        """Ask the guest to release its devices; QEMU says when it has (DEVICE_DELETED)."""
        if self._has_heard_leave:
            self._refuse_unplug("device_del aborts a QEMU that has heard of a peer's leave")
            return
        for number in range(len(self._servers)):
            self._monitor.command("device_del", failed=self._refuse_unplug, id=device_id(number))

    def _refuse_unplug(self, why: str) -> None:
        self._report(Warned(f"unplug was not done: {why}"))

    def _take_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "DEVICE_DELETED":
            for number in range(len(self._servers)):
                if data.get("device") == device_id(number):
                    # The device leaves its connection open: its server would not know that it has left.
                    self._monitor.command("chardev-remove", id=connection_id(number))

    # Until it is ready

    def _take_line(self, line: str) -> None:
        if self._awaited and self._ready_when.search(line):
            self._progress("line")
        for pattern in [each for each in self._watched if each.search(line)]:
            self._watched.remove(pattern)
            self._report(Printed(pattern.pattern))
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
            self._soon(lambda: self._report(Ready()))

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
        self._report(Failed("guest", summary))
        self.kill()

    # The end

    def _stop(self) -> None:
        """Look whether its device can interrupt it, ask for its totals, then end QEMU."""
        if self._told_to_end:
            return
        self._told_to_end = True
        assert self.pid is not None
        self._ticks_at_stop = work_ticks(self.pid)
        if not self._ready:
            self._terminate()
            return
        self._monitor.ask(hearings(), self._hear)
        self._loop.at(self._loop.clock.now_ns() + HEAR_NS, self._let_finish)

    def _hear(self, found: list[Hearing]) -> None:
        for each in found:
            if each.reason:
                self._report(Warned(f"its device could not interrupt it at the end of the run: {each.reason}"))
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
        self._signal(signal.SIGTERM)
        self._loop.at(self._loop.clock.now_ns() + END_NS, self.kill)

    def _collect_exit(self) -> None:
        assert self._process is not None
        code = self._process.exit_code()
        if code is None:
            return
        self._console.read()
        self._loop.remove(self._process.descriptor)
        self._ended = True
        clean = self._told_to_end or (code == 0 and self._ready and not self._failure)
        if clean:
            self._enter(State.STOPPED, header.STOPPED_NS)
            self._report(Stopped(self._totals))
            self._report(Ended(""))
            return
        if not self._failure:
            self._report(Failed("guest", f"QEMU ended{self._last_words()}"))
        self._report(Ended(describe_exit(code)))

    def _last_words(self) -> str:
        """What QEMU has printed, and the last lines of the guest."""
        self._printed.seek(0)
        printed = self._printed.read().decode(errors="replace").strip()[-PRINTED_CHARACTERS:]
        return (f": {printed}" if printed else "") + self._console.last_words
