"""A worker as the coordinator's process holds it: forked, watched, ended; a migration takes it to another process."""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Sequence

from sim.engines import messages
from sim.engines.process.control import Continue, Control, Forked, Hosted, Proceed, ToWorker
from sim.engines.process.forkserver import ForkServer
from sim.engines.shared.configuration import WorkerConfiguration
from sim.kernel.loop import Loop
from sim.kernel.processes import ChildProcess, describe_exit, has_stopped, wants_cpu, work_ticks
from sim.recording import Recording, State, header

SECOND_NS = 1_000_000_000
LAST_WORDS_NS = 200_000_000
STARVED_TICKS = 100  # a second: more CPU time than the end of any program that yields takes


class WorkerHandle:
    """One incarnation of a machine as a process of this host; a `sim.engines.base.LiveMachine`.

    Owns the control socket and the process. In a migration there are several: the candidate, which exists and has not
    taken over yet, and those that took over while the exit of the one before them is not known yet.

    Args:
        server_path: the path of a domain's server, by the domain's number.
        on_process: called with each process ID that becomes this machine's.
        memory_fault: says, when the machine has died of SIGBUS, what is wrong with the memory.
        report: called with what happens; ``Ended`` comes last.
    """

    def __init__(
        self,
        configuration: WorkerConfiguration,
        recordings: Sequence[Recording],
        loop: Loop,
        fork_server: ForkServer,
        *,
        server_path: Callable[[int], str],
        on_process: Callable[[int], None],
        memory_fault: Callable[[], str],
        report: Callable[[messages.Report], None],
    ) -> None:
        self._configuration = configuration
        self._recordings = recordings
        self._loop, self._fork_server = loop, fork_server
        self._server_path, self._on_process, self._report = server_path, on_process, report
        self._memory_fault = memory_fault
        self._control, self._worker_end = Control.pair()
        self._listening = self._ended = False
        self._migrating = False
        self._failure = ""
        self._ticks_at_stop = self._started_ns = 0
        self._processes: deque[ChildProcess] = deque()
        """The process that it is in, then those that it has moved on to."""
        self._candidate: ChildProcess | None = None
        self._hosted: ChildProcess | None = None
        """The QEMU that the machine is in, beside the process that drives it."""
        self._hosted_is_ours = True
        self._standing_by: list[ChildProcess] = []
        """QEMUs that the machine was to continue in, or has left."""

    @property
    def pid(self) -> int | None:
        return self._hosted.pid if self._hosted is not None else self._worker_pid

    @property
    def _worker_pid(self) -> int | None:
        return self._processes[-1].pid if self._processes else None

    @property
    def is_running(self) -> bool:
        return self._listening and not self._ended

    @property
    def is_still(self) -> bool:
        return self._worker_pid is not None and has_stopped(self._worker_pid)

    @property
    def is_starved(self) -> bool:
        pid = self._worker_pid
        return pid is not None and wants_cpu(pid) and work_ticks(pid) - self._ticks_at_stop < STARVED_TICKS

    def is_awaited(self, now_ns: int) -> bool:
        """Whether its external QEMU may still be started."""
        timeout_ns = round(self._configuration.ready_timeout_s * SECOND_NS)
        return self._started_ns > 0 and self._hosted is None and now_ns < self._started_ns + timeout_ns

    def start(self) -> None:
        self._listening = True
        self._started_ns = self._loop.clock.now_ns()
        self._loop.add(self._control, self._listen)
        self._fork_server.fork(self._configuration, self._worker_end)

    def tell(self, order: messages.Order) -> bool:
        if not self.is_running:
            return False
        if isinstance(order, messages.Stop) and self._worker_pid is not None:
            self._ticks_at_stop = work_ticks(self._worker_pid)
        if not isinstance(order, messages.Migrate):
            return self._control.send(order)
        server = "" if order.hand_over else self._server_path(order.domain)
        if order.fault == "server_gone":
            server += ".gone"
        self._migrating = self._control.send(Continue(server, order.domain, order.fault))
        return self._migrating

    def stall(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        for process in self._all():
            if process is not self._hosted or self._hosted_is_ours:
                process.signal(signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._ended = True
        self._loop.remove(self._control)
        self._control.close()
        self._worker_end.close()
        for process in self._all():
            self._loop.remove(process.descriptor)
            process.close()
        self._processes.clear()
        self._standing_by.clear()
        self._candidate = self._hosted = None

    def _all(self) -> list[ChildProcess]:
        others = (self._candidate, self._hosted)
        return [*self._processes, *self._standing_by, *(other for other in others if other is not None)]

    def _signal(self, number: signal.Signals) -> None:
        if self._processes and not self._ended:
            self._processes[-1].signal(number)
            if self._hosted is not None:
                self._hosted.signal(number)

    def _listen(self) -> None:
        try:
            while (message := self._control.receive()) is not None:
                if isinstance(message, ToWorker):
                    continue  # an order: only a program that writes into the control socket sends one
                match message:
                    case Forked(pid):
                        self._add_process(pid)
                        continue
                    case Hosted(pid, ours, stands_by):
                        self._add_hosted(pid, ours=ours, stands_by=stands_by)
                        continue
                    case messages.Moved():
                        self._arrive()
                    case messages.Stayed():
                        self._lose_candidate()
                    case messages.Failed(summary=summary):
                        self._failure = summary
                self._report(message)
        except EOFError:
            self._loop.remove(self._control)
            if not self._processes and not self._ended:
                # The fork server may be about to end, which is the reason then.
                wait_ns = 0 if self._failure or self._fork_server.has_ended else LAST_WORDS_NS
                self._loop.at(self._loop.clock.now_ns() + wait_ns, self._report_not_started)

    def _report_not_started(self) -> None:
        if self._ended:
            return
        self._ended = True
        why = self._failure
        if not why:
            why = self._fork_server.state() if self._fork_server.has_ended else "its process ended at once"
        self._report(messages.Ended(f"could not be started: {why}", started=False))

    def _add_process(self, pid: int) -> None:
        """A new process is this machine's: its first one, or the one that it is about to continue in."""
        try:
            process = ChildProcess(pid)
        except ProcessLookupError:
            return  # its source will say so
        self._on_process(pid)
        if not self._processes:
            self._processes.append(process)
            self._loop.add(process.descriptor, self._collect_exit)
            self._report(messages.Placed())
        else:
            self._candidate = process
            if not self._migrating:  # the source has been killed meanwhile, and the machine with it
                self._lose_candidate()
        self._control.send(Proceed())

    def _add_hosted(self, pid: int, *, ours: bool, stands_by: bool) -> None:
        """The machine is in that process from now on: what it costs is measured there."""
        if ours:
            self._on_process(pid)
        with contextlib.suppress(ProcessLookupError):  # it has ended, which the worker tells
            hosted = ChildProcess(pid)
            if stands_by:
                self._standing_by.append(hosted)
                return
            if self._hosted is not None:  # a QEMU that has migrated to this one
                self._standing_by.append(self._hosted)
            self._hosted, self._hosted_is_ours = hosted, ours
            self._report(messages.Placed())

    def _arrive(self) -> None:
        """The machine continues in the candidate."""
        self._migrating = False
        if self._candidate is not None:
            self._processes.append(self._candidate)
            self._candidate = None

    def _lose_candidate(self) -> None:
        """The machine does not continue in the candidate; what that still waits for, it ends."""
        self._migrating = False
        if self._candidate is not None:
            self._candidate.signal(signal.SIGKILL)
            self._candidate.close()
            self._candidate = None

    def _collect_exit(self) -> None:
        """The process that the machine is in has ended, unless it is a false alarm."""
        current = self._processes[0]
        code = current.exit_code()
        if code is None:
            return
        with contextlib.suppress(EOFError):
            self._listen()
        self._loop.remove(current.descriptor)
        if len(self._processes) == 1 and code == 0:
            self._arrive()  # the candidate has not spoken yet, but the source has committed
        if len(self._processes) > 1:
            self._processes.popleft().close()
            self._loop.add(self._processes[0].descriptor, self._collect_exit)
            self._report(messages.Placed())
            return
        self._lose_candidate()
        self._ended = True
        clean = code == 0 and self._recordings[0].words[header.STATE] == State.STOPPED
        how = "" if clean else describe_exit(code)
        if code == -signal.SIGBUS and (fault := self._memory_fault()):
            how += f": {fault}"
        self._report(messages.Ended(how))
