"""The task of a worker: it runs a job as soon as Dask gives it one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import distributed
import msgspec
from distributed.core import Status

from sim.distributed.dask.common import END, START, TOPIC, barrier_event, host_of
from sim.distributed.execute import JobStoppedError, execute
from sim.distributed.job import Job
from sim.distributed.job_process import JobServer

BARRIER_LOOK_S = 0.5


class Jobs(distributed.WorkerPlugin):  # type: ignore[misc]  # Dask has no types
    """Gives the workers of this process what forks their jobs."""

    name = "ivsim-jobs"

    def __init__(self, server: JobServer) -> None:
        self.server = server


class _DaskBarrier:
    """A `sim.distributed.execute.Barrier` of two events of the scheduler; ``tell`` gets that the job has arrived."""

    def __init__(self, name: str, tell: Callable[[], None]) -> None:
        self.arrive = tell
        self._start, self._end = (barrier_event(name, what, None) for what in (START, END))

    def is_open(self) -> bool:
        with contextlib.suppress(Exception):  # without the scheduler the job ends: it is not wanted any more
            return bool(self._start.wait(timeout=BARRIER_LOOK_S))
        return False

    def is_over(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self._end.is_set())
        return False


def run_job(data: bytes) -> bytes:
    """Run a job; Dask calls this in a thread of the worker."""
    worker = distributed.get_worker()
    key = worker.get_current_task()
    host = host_of(worker.name)

    def is_running() -> bool:
        return bool(worker.status == Status.running)

    def is_wanted() -> bool:
        # Dask cannot end a thread: a key that was released while its task runs is "cancelled" until the task ends
        # (distributed, docs/source/worker-state.rst).
        task = worker.state.tasks.get(key)
        return is_running() and task is not None and task.state != "cancelled"

    message = {"key": key, "host": host, "worker": worker.address}
    worker.log_event(TOPIC, message | {"state": "begins"})
    try:
        job = msgspec.msgpack.decode(data, type=Job)
        arrive = partial(worker.log_event, TOPIC, message | {"state": "arrived"})
        barrier = _DaskBarrier(job.barrier, arrive) if job.barrier else None
        server = worker.plugins[Jobs.name].server
        return msgspec.msgpack.encode(execute(job, server, Path(worker.local_directory), host, is_wanted, barrier))
    except JobStoppedError:
        if not is_running():
            raise distributed.Reschedule from None
        raise
    finally:
        worker.log_event(TOPIC, message | {"state": "ended"})
