"""The process of one machine, from its fork to its end.

It never outlives the coordinator: the kernel ends it when that ends (PR_SET_PDEATHSIG), and what its program has
started ends with it.
"""

from __future__ import annotations

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


def make_template(configuration: WorkerConfiguration) -> Worker:
    """A worker that holds no descriptor yet: forks of this process become machines of its kind.

    What all machines of a kind have in common is made once, and each fork shares its pages.
    """
    return Worker(
        configuration,
        [Recording.create(None, device.layout, machine=0, sample_every=0) for device in configuration.devices],
    )


def main(
    configuration: int, control_socket: socket.socket, parent: int, coordinator: int, template: Worker | None
) -> None:
    """Run one machine until Stop, then end this process. The signals that end a program are ignored as in its parent.

    Args:
        configuration: a descriptor of the encoded `WorkerConfiguration`.
        control_socket: the worker's end of the control socket.
        parent: the process that forked this one, which ends at once.
        coordinator: the process that adopts this one.
        template: of a machine of this kind; None: this process makes all that it needs.
    """
    keep_orphans()
    link = Control(control_socket)
    code = 1
    try:
        if not tie_to(parent, coordinator):
            return
        try:
            with open(configuration, "rb", buffering=0) as file:
                machine = decode_configuration(file.read())
            code = _run(machine, link, coordinator, template)
        except EOFError:
            pass  # the coordinator has gone
        except BaseException as error:  # the last frame of the process: it reports every error
            link.send(explain(error))
    finally:
        # Straight out: a guest program may hold views of the memory, and the exit would complain of them.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _run(machine: WorkerConfiguration, link: Control, coordinator: int, template: Worker | None) -> int:
    """Run the machine; its exit code."""
    recordings = _recordings(machine, template)
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
        worker = template or _worker(machine.kind)(machine, recordings)
        worker.attach(machine, link, coordinator)
        try:
            worker.run()
        finally:
            worker.close()
    except EOFError:
        raise
    except BaseException as error:  # reported while the recordings are open, for their state tells of it, too
        for recording in recordings:
            recording.words[header.STATE] = State.FAILED
        link.send(explain(error))
        end_children()
        return 1
    return 0


def _recordings(machine: WorkerConfiguration, template: Worker | None) -> list[Recording]:
    """The recordings of the machine's devices, open until the process ends."""
    if template is None:
        return [Recording.open(device.recording) for device in machine.devices]
    for device, recording in zip(machine.devices, template.recordings, strict=True):
        recording.move_into(device.recording)
    return template.recordings


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
