"""The process of one machine, from its birth to its end.

It never outlives the coordinator: the control socket ends when that dies, and should the program never let go, the
kernel ends the process with the fork server (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import os
import signal as signals
import socket
import sys
import traceback
from pathlib import Path

from nodes.errors import HostError, ProtocolError, UsageError
from sim.engines.process import control
from sim.engines.process.configuration import WorkerConfiguration
from sim.engines.process.control import Control
from sim.engines.process.worker import ProgramError, Worker
from sim.kernel.processes import schedule, tie_to_fork_server
from sim.kernel.segments import remove_orphaned
from sim.kernel.signals import ENDING
from sim.recording import Recording, State, header

__all__ = ["main"]


def main(plan: WorkerConfiguration, control_socket: socket.socket) -> None:
    """The target of the process: run one machine from birth to Stop."""
    for number in ENDING:
        signals.signal(number, signals.SIG_IGN)
    tie_to_fork_server()
    link = Control(control_socket)
    code = 1
    try:
        with contextlib.ExitStack() as stack:
            books = [stack.enter_context(Recording.open(device.recording)) for device in plan.devices]
            try:
                schedule(plan.cpus, plan.policy, plan.priority, plan.nice)
                with contextlib.closing(Worker(plan, link, books)) as worker:
                    worker.run()
                code = 0
            except EOFError:
                _clean_up_orphaned(Path(plan.runtime))
            except BaseException as error:  # the last frame of the process: whatever it is, it must be told
                for book in books:
                    book.words[header.STATE] = State.FAILED
                link.send(_explain(error))
    finally:
        # Straight out: a guest program may hold views of the memory, which would only make the exit complain.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _explain(error: BaseException) -> control.Failed:
    """Whose fault it is, in one line, and the traceback where it helps to find it."""
    whose, cause = "simulator", error
    if isinstance(error, ProgramError) and error.__cause__ is not None:
        whose, cause = "program", error.__cause__
    elif isinstance(error, ProtocolError | UsageError):
        whose = "server"
    elif isinstance(error, HostError):
        whose = "host"
    summary = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    if whose == "program" and (frames := traceback.extract_tb(cause.__traceback__)):
        summary += f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"
    trace = "".join(traceback.format_exception(cause)) if whose in ("program", "simulator") else ""
    return control.Failed(whose, summary[: control.TEXT_MAX], trace[-control.TEXT_MAX :])


def _clean_up_orphaned(runtime: Path) -> None:
    """Remove what a killed coordinator left: its memory and its sockets. The last worker removes the directory."""
    remove_orphaned()
    with contextlib.suppress(OSError):
        for entry in runtime.iterdir():
            with contextlib.suppress(OSError):
                entry.unlink()
        runtime.rmdir()
