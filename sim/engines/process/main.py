"""The process of one machine, from its fork to its end.

It never outlives the coordinator: the kernel ends it when that ends (PR_SET_PDEATHSIG), and what its program has
started ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal as signals
import socket
import sys
import traceback

from nodes.device.qemu_1_1.properties import DeviceExitError
from nodes.errors import HostError, ModelledFault, ProtocolError, UsageError
from sim.engines.messages import Failed, Leave, Stop, Stopped
from sim.engines.process.configuration import WorkerConfiguration, decode_configuration
from sim.engines.process.control import TEXT_MAX, Control, Forked, Proceed
from sim.engines.process.program_error import ProgramError
from sim.engines.process.worker import Worker
from sim.kernel.processes import end_children, keep_orphans, schedule, tie_to
from sim.kernel.signals import ENDING
from sim.kernel.waiting import readable_within
from sim.recording import Recording, State, header

__all__ = ["main"]


def main(configuration: int, control_socket: socket.socket, parent: int, coordinator: int) -> None:
    """Run one machine until Stop, then end this process.

    Args:
        configuration: a descriptor of the encoded `WorkerConfiguration`.
        control_socket: the worker's end of the control socket.
        parent: the process that forked this one, which ends at once.
        coordinator: the process that adopts this one.
    """
    for number in ENDING:
        signals.signal(number, signals.SIG_IGN)
    keep_orphans()
    link = Control(control_socket)
    code = 1
    try:
        if not tie_to(parent, coordinator):
            return
        try:
            with open(configuration, "rb") as file:
                machine = decode_configuration(file.read())
            code = _run(machine, link, coordinator)
        except EOFError:
            pass  # the coordinator has gone
        except BaseException as error:  # the last frame of the process: it reports every error
            link.send(_explain(error))
    finally:
        # Straight out: a guest program may hold views of the memory, and the exit would complain of them.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(machine: WorkerConfiguration, link: Control, coordinator: int) -> int:
    """Run the machine; its exit code."""
    with contextlib.ExitStack() as stack:
        recordings = [stack.enter_context(Recording.open(device.recording)) for device in machine.devices]
        try:
            if not _is_awaited(link):
                for each in recordings:
                    each.words[header.STATE] = State.STOPPED
                link.send(Stopped())
                return 0
            schedule(machine.cpus, machine.policy, machine.priority, machine.nice)
            with contextlib.closing(Worker(machine, link, recordings, coordinator)) as worker:
                worker.run()
        except EOFError:
            raise
        except BaseException as error:  # reported while the recordings are open, for their state tells of it, too
            for each in recordings:
                each.words[header.STATE] = State.FAILED
            link.send(_explain(error))
            end_children()
            return 1
    return 0


def _is_awaited(link: Control) -> bool:
    """Report this process and wait until the coordinator knows it; False when the machine is to stop already."""
    link.send(Forked(os.getpid()))
    while True:
        readable_within(link.fileno(), None)
        match link.receive():
            case Proceed():
                return True
            case Stop() | Leave():
                return False


def _explain(error: BaseException) -> Failed:
    """Whose fault an error is, in one line, and the traceback where it helps to find it."""
    whose, cause = "simulator", error
    if isinstance(error, ProgramError) and error.__cause__ is not None:
        whose, cause = "program", error.__cause__
    if isinstance(cause, ModelledFault | DeviceExitError):
        whose = "modelled device"
    elif isinstance(error, ProtocolError | UsageError):
        whose = "server"
    elif isinstance(error, HostError):
        whose = "host"
    summary = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    if whose == "program" and (frames := traceback.extract_tb(cause.__traceback__)):
        summary += f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"
    trace = "".join(traceback.format_exception(cause)) if whose in ("program", "simulator") else ""
    return Failed(whose, summary[:TEXT_MAX], trace[-TEXT_MAX:])
