"""Dask's scheduler, workers and client, as this program uses them: the one module that imports ``distributed``.

A worker runs one job at a time: it has one unit of the resource `RUN`, and each job needs it. A job is sent and
answered as bytes. The client learns from the topic `TOPIC` which job runs where.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import tempfile
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dask.config
import distributed
import msgspec
from distributed.core import Status
from distributed.utils import get_ip

from nodes.errors import HostError, RunError
from sim.distributed.addresses import Tls, check_address
from sim.distributed.execute import JobStoppedError, execute
from sim.distributed.job import Job, JobResult
from sim.host.runtime_directory import runtime_directory
from sim.kernel.signals import signals_taken

__all__ = ["DaskCluster", "Done", "connect", "local", "serve_scheduler", "serve_worker"]

RUN = "ivsim-run"
TOPIC = "ivsim-jobs"
LOOPBACK_ANY_PORT = "127.0.0.1:0"
CONNECT_S = 10
STOP_PATIENCE_S = 20.0

# Dask's HTTP servers cannot be turned off: they are bound to the loopback, and serve nothing. What the user has
# configured (DASK_..., ~/.config/dask) remains.
DEFAULTS = {
    "distributed": {
        "scheduler": {"worker-ttl": "60s", "http": {"routes": []}},
        "worker": {"http": {"routes": []}, "profile": {"enabled": False}},
        "comm": {"timeouts": {"connect": f"{CONNECT_S}s"}},
    }
}


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
        client.subscribe_topic(TOPIC, self._heard)

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
            raise RunError(f"the scheduler {self.title} does not answer: {_reason(error)}") from error
        return [_Place(_host_of(its["name"]), address) for address, its in workers.items() if its["resources"].get(RUN)]

    def submit(self, name: str, job: Job, host: str | None = None) -> None:
        """Send a job to any host, or to one, for which it waits."""
        self._check()
        # A resource, and not the addresses of its workers: a worker that is started again has another one.
        needs = {RUN: 1} if host is None else {RUN: 1, _resource(host): 1}
        key = f"ivsim-{uuid.uuid4().hex}"
        future = self._client.submit(_work, msgspec.msgpack.encode(job), key=key, resources=needs, pure=False)
        self._futures[key] = (name, future)
        future.add_done_callback(lambda its: self._ended.put(its.key))

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
    _configure()
    try:
        client = distributed.Client(address, security=_security(tls), timeout=CONNECT_S, set_as_default=False)
    except OSError as error:
        raise HostError(f"no scheduler answers at {address}: {error}; `ivsim scheduler` starts one") from error
    with _closing(client):
        yield DaskCluster(client, address)


@contextlib.contextmanager
def local(workers: int) -> Iterator[DaskCluster]:
    """A scheduler and workers in this process, which open no port for others: their jobs are processes."""
    _configure()
    with (
        runtime_directory(Path(tempfile.gettempdir())) as scratch,
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            protocol="inproc://",
            resources={RUN: 1},
            memory_limit=0,
            local_directory=str(scratch),
            silence_logs=logging.CRITICAL,
            dashboard_address=LOOPBACK_ANY_PORT,
            worker_dashboard_address=LOOPBACK_ANY_PORT,
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


def serve_scheduler(host: str, port: int, tls: Tls | None, tell: Callable[[str], object]) -> None:
    """Be a scheduler until a signal comes; ``tell`` gets its address. Raises ``HostError`` if the port is taken."""

    async def serve(ended: asyncio.Event) -> None:
        scheduler = distributed.Scheduler(
            host=host,
            port=port,
            protocol="tls://" if tls else "tcp://",
            security=_security(tls),
            dashboard=False,
            dashboard_address=LOOPBACK_ANY_PORT,
        )
        try:
            await scheduler
        except (OSError, RuntimeError) as error:
            raise HostError(f"a scheduler cannot listen at {host}, port {port}: {_reason(error)}") from error
        async with scheduler:
            tell(f"{'tls' if tls else 'tcp'}://{host}:{scheduler.port}")
            await ended.wait()

    _configure()
    asyncio.run(_until_signal(serve))


def serve_worker(address: str, name: str, host: str | None, tls: Tls | None, scratch: Path, tell: Any) -> bool:
    """Be a worker of a scheduler until a signal comes, or the scheduler is gone.

    Args:
        address: the scheduler; it may come later.
        name: the name of this host.
        host: the address to listen at; None: the one from which the scheduler is reached.
        tls: the certificates.
        scratch: a directory for jobs.
        tell: gets the address of this worker, once it is registered.

    Returns:
        Whether a signal came.
    """
    scheduler_host = check_address(address, tls)

    async def serve(ended: asyncio.Event) -> bool:
        worker = distributed.Worker(
            address,
            name=f"{name}#{uuid.uuid4().hex[:8]}",
            nthreads=1,
            resources={RUN: 1, _resource(name): 1},
            host=host or get_ip(scheduler_host),
            security=_security(tls),
            memory_limit=0,
            local_directory=str(scratch),
            dashboard_address=LOOPBACK_ANY_PORT,
        )
        signalled = asyncio.create_task(ended.wait())
        started = asyncio.create_task(_start(worker))
        await asyncio.wait({signalled, started}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            started.result()
            tell(worker.address)
            finished = asyncio.create_task(worker.finished())
            await asyncio.wait({signalled, finished}, return_when=asyncio.FIRST_COMPLETED)
        else:
            started.cancel()
        signalled.cancel()
        await worker.close()
        return ended.is_set()

    _configure()
    return bool(asyncio.run(_until_signal(serve)))


async def _start(worker: Any) -> None:
    try:
        await worker
    except (OSError, RuntimeError) as error:
        raise HostError(f"the worker cannot be started: {_reason(error)}") from error


async def _until_signal(serve: Callable[[asyncio.Event], Any]) -> Any:
    """Run ``serve`` with an event that a signal sets; a further signal changes nothing."""
    ended = asyncio.Event()
    for number in signals_taken():
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    return await serve(ended)


def _configure() -> None:
    # A scheduler that listens at all addresses looks for one that it could name.
    warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address", RuntimeWarning)
    dask.config.update_defaults(DEFAULTS)
    for name in ("distributed", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _security(tls: Tls | None) -> Any:
    if tls is None:
        return distributed.Security(require_encryption=False)
    files: dict[str, Any] = {"tls_ca_file": str(tls.ca)}
    for role in ("client", "scheduler", "worker"):
        files |= {f"tls_{role}_cert": str(tls.cert), f"tls_{role}_key": str(tls.key)}
    return distributed.Security(require_encryption=True, **files)


def _reason(error: BaseException) -> str:
    """The first cause of an error that Dask has wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def _resource(host: str) -> str:
    """What only the workers of a host have."""
    return f"ivsim-host-{host}"


def _host_of(worker: object) -> str:
    """The name of the host in the name of a worker; "" for workers in the client's process, which are numbered."""
    return str(worker).rpartition("#")[0]


def _work(data: bytes) -> bytes:
    """Run a job; Dask calls this in a thread of the worker."""
    worker = distributed.get_worker()
    key = worker.get_current_task()
    host = _host_of(worker.name)

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
        return msgspec.msgpack.encode(execute(job, Path(worker.local_directory), host, is_wanted))
    except JobStoppedError:
        if not is_running():
            raise distributed.Reschedule from None
        raise
    finally:
        worker.log_event(TOPIC, message | {"state": "ended"})
