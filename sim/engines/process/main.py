"""The process of one machine, from its fork to its end.

It never outlives the coordinator: the kernel ends it when that ends (PR_SET_PDEATHSIG), and what its program has
started ends with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from sim.engines.messages import Leave, Stop, Stopped
from sim.engines.process.control import Control, Forked, Proceed
from sim.engines.process.worker import Worker
from sim.engines.shared.configuration import WorkerConfiguration, decode_configuration
from sim.engines.shared.failures import explain
from sim.kernel.processes import end_children, keep_orphans, schedule, tie_to
from sim.kernel.waiting import readable_within
from sim.recording import Recording, State, header

__all__ = ["main"]


def main(configuration: int, control_socket: socket.socket, parent: int, coordinator: int) -> None:
    """Run one machine until Stop, then end this process. The signals that end a program are ignored as in its parent.

    Args:
        configuration: a descriptor of the encoded `WorkerConfiguration`.
        control_socket: the worker's end of the control socket.
        parent: the process that forked this one, which ends at once.
        coordinator: the process that adopts this one.
    """
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
            link.send(explain(error))
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
                for recording in recordings:
                    recording.words[header.STATE] = State.STOPPED
                link.send(Stopped())
                return 0
            schedule(machine.cpus, machine.policy, machine.priority, machine.nice)
            if machine.collections_from_ns:
                from sim.engines.process.gc_pauses import record_collections

                record_collections(recordings[0].words, machine.collections_from_ns)
            with contextlib.closing(_worker(machine.kind)(machine, link, recordings, coordinator)) as worker:
                worker.run()
        except EOFError:
            raise
        except BaseException as error:  # reported while the recordings are open, for their state tells of it, too
            for recording in recordings:
                recording.words[header.STATE] = State.FAILED
            link.send(explain(error))
            end_children()
            return 1
    return 0


def _worker(kind: str) -> type[Worker]:
    """What runs a machine of that kind. What only some kinds need is loaded by those."""
    if kind == "qemu":
        from sim.engines.qemu.worker import QemuWorker

        return QemuWorker
    if kind == "external":
        from sim.engines.qemu.external import ExternalWorker

        return ExternalWorker
    return Worker


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
