"""The client of Dask's scheduler: sends jobs, and learns from the topic `TOPIC` which job runs where.

A worker runs one job at a time: it has one unit of the resource `RUN`, which each job needs. Jobs travel as bytes.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import distributed
import msgspec

from nodes.errors import HostError, RunError
from sim.distributed.addresses import Tls, check_address
from sim.distributed.dask import common
from sim.distributed.dask.work import Jobs, run_job
from sim.distributed.job import Job, JobResult
from sim.distributed.job_process import JobServer
from sim.host.runtime_directory import runtime_directory

LOCK = "ivsim-hosts"
LOCK_LOOK_S = 0.5
STOP_PATIENCE_S = 20.0


class Done(NamedTuple):
    """The end of a job: its result, or why there is none."""

    name: str
    result: JobResult | None
    error: Exception | None


class _Place(NamedTuple):
    """A worker: the name of its host, and its address."""

    host: str
    address: str


class DaskCluster:
    """The client of a scheduler. Used by one thread.

    Attributes:
        title: the address of the scheduler; "" for workers in this process.
    """

    def __init__(self, client: Any, title: str) -> None:
        self.title = title
        self._running: dict[str, _Place] = {}
        self._begun: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._client = client
        self._futures: dict[str, tuple[str, Any]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._arrived: set[str] = set()
        client.subscribe_topic(common.TOPIC, self._heard)

    def begun(self) -> list[tuple[str, str]]:
        """The jobs that have begun since the last call, and the host of each; a job that is repeated begins again."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._begun.get_nowait())
        return found

    def hosts(self) -> dict[str, int]:
        """The hosts that can run jobs, and how many workers each has. Raises ``RunError`` without a scheduler."""
        return Counter(place.host for place in self._workers())

    def _workers(self) -> list[_Place]:
        self._check()
        try:
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        except OSError as error:
            raise RunError(f"the scheduler {self.title} does not answer: {common.reason_of(error)}") from error
        return [
            _Place(common.host_of(worker["name"]), address)
            for address, worker in workers.items()
            if worker["resources"].get(common.RUN)
        ]

    def submit(self, name: str, job: Job, host: str | None = None) -> None:
        """Send a job to any host, or to one, for which it waits."""
        self._check()
        # A resource, and not the addresses of its workers: a worker that is started again has another one.
        needs = {common.RUN: 1} if host is None else {common.RUN: 1, common.resource_of(host): 1}
        key = f"ivsim-{uuid.uuid4().hex}"
        future = self._client.submit(run_job, msgspec.msgpack.encode(job), key=key, resources=needs, pure=False)
        self._futures[key] = (name, future)
        future.add_done_callback(lambda ended: self._ended.put(ended.key))

    def arrived(self) -> set[str]:
        """The jobs that have arrived at their barrier."""
        return set(self._arrived)

    def lost(self) -> dict[str, str]:
        """The jobs whose worker is gone, with the name of its host. Raises ``RunError`` without a scheduler."""
        there = set(self._workers())
        return {name: place.host for name, place in list(self._running.items()) if place not in there}

    def open_barrier(self, name: str) -> None:
        """Start all jobs that wait there."""
        common.barrier_event(name, common.START, self._client).set()

    def end_barrier(self, name: str) -> None:
        """End all jobs that have this barrier, with what they have measured."""
        common.barrier_event(name, common.END, self._client).set()

    def remove_barrier(self, name: str) -> None:
        """Forget the barrier, when no job has it any more."""
        with contextlib.suppress(Exception):  # the scheduler may be gone
            for what in (common.START, common.END):
                common.barrier_event(name, what, self._client).clear()

    @contextlib.contextmanager
    def alone(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        """One client at a time: it has all workers of its jobs before the next one asks for some of them."""
        lock = distributed.Lock(LOCK, scheduler_rpc=self._client.scheduler, loop=self._client.loop)
        while is_wanted() and not (has := lock.acquire(timeout=LOCK_LOOK_S)):
            self._check()
        try:
            yield
        finally:
            if has:
                with contextlib.suppress(Exception):  # the scheduler may be gone
                    lock.release()

    def wait(self, timeout_s: float) -> Done | None:
        """The next job that has ended; None when none does within the time.

        Raises:
            RunError: the scheduler is gone.
        """
        try:
            key = self._ended.get(timeout=timeout_s)
        except queue.Empty:
            self._check()
            return None
        if key not in self._futures:
            return None
        name, future = self._futures.pop(key)
        self._running.pop(name, None)
        try:
            return Done(name, msgspec.msgpack.decode(future.result(), type=JobResult), None)
        except distributed.client.FutureCancelledError:
            self._check()
            raise RunError(f"the scheduler {self.title} has lost its jobs: it was restarted") from None
        except Exception as error:  # whatever a worker raises arrives here
            return Done(name, None, error)
        finally:
            future.release()

    def drop(self, name: str) -> None:
        """Forget a job whose worker is gone; no other worker is to run it."""
        for key in [key for key, (its, _) in self._futures.items() if its == name]:
            _, future = self._futures.pop(key)
            with contextlib.suppress(Exception):  # the scheduler may be gone
                self._client.cancel([future], force=True)
        self._running.pop(name, None)

    def cancel(self) -> list[str]:
        """Stop all jobs; returns the hosts on which one may still be running, after 20 s of patience."""
        waiting = [future for _, future in self._futures.values()]
        with contextlib.suppress(Exception):  # the scheduler may be gone, which ends them too
            self._client.cancel(waiting, force=True)
        deadline_s = time.monotonic() + STOP_PATIENCE_S
        while self._running and self._client.status == "running" and time.monotonic() < deadline_s:
            time.sleep(0.05)
            with contextlib.suppress(Exception):  # the scheduler may go now
                # A worker that is gone has ended its job: if it was killed, its supervisor has.
                workers = set(self._workers())
                self._running = {name: place for name, place in self._running.items() if place in workers}
        self._futures.clear()
        return sorted({place.host for place in self._running.values()})

    def _check(self) -> None:
        if self._client.status != "running":
            raise RunError(f"the scheduler {self.title} is gone")

    def _heard(self, event: tuple[float, dict[str, str]]) -> None:
        """A worker has begun or ended a job. In the thread of Dask's loop."""
        _, message = event
        if (known := self._futures.get(message["key"])) is None:
            return
        if message["state"] == "begins":
            self._running[known[0]] = _Place(message["host"], message["worker"])
            self._begun.put((known[0], message["host"]))
        elif message["state"] == "arrived":
            self._arrived.add(known[0])
        else:
            self._running.pop(known[0], None)


@contextlib.contextmanager
def connect(address: str, tls: Tls | None) -> Iterator[DaskCluster]:
    """The client of the scheduler at an address.

    Raises:
        UsageError: as `check_address`.
        HostError: no scheduler answers.
    """
    check_address(address, tls)
    common.configure()
    try:
        client = distributed.Client(
            address, security=common.security_of(tls), timeout=common.CONNECT_S, set_as_default=False
        )
    except OSError as error:
        raise HostError(f"no scheduler answers at {address}: {error}; `ivsim scheduler` starts one") from error
    with _closing(client):
        yield DaskCluster(client, address)


@contextlib.contextmanager
def local(workers: int) -> Iterator[DaskCluster]:
    """A scheduler and workers in this process, which open no port for others: their jobs are processes."""
    common.configure()
    with (
        runtime_directory(Path(tempfile.gettempdir())) as scratch,
        JobServer() as server,
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            protocol="inproc://",
            resources={common.RUN: 1},
            plugins=(Jobs(server),),
            memory_limit=0,
            local_directory=str(scratch),
            silence_logs=logging.CRITICAL,
            dashboard_address=common.LOOPBACK_ANY_PORT,
            worker_dashboard_address=common.LOOPBACK_ANY_PORT,
        ) as cluster,
        _closing(distributed.Client(cluster, set_as_default=False)) as client,
    ):
        yield DaskCluster(client, "")


@contextlib.contextmanager
def _closing(client: Any) -> Iterator[Any]:
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.close(timeout=5)
