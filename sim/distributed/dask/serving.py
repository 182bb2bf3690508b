"""Dask's scheduler and worker, as long as no signal comes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
from distributed.utils import get_ip

from nodes.errors import HostError
from sim.distributed.addresses import Tls, check_address
from sim.distributed.dask.common import LOOPBACK_ANY_PORT, RUN, configure, reason_of, resource_of, security_of
from sim.distributed.dask.work import Jobs
from sim.distributed.job_process import JobServer
from sim.kernel.signals import signals_taken


def serve_scheduler(host: str, port: int, tls: Tls | None, tell: Callable[[str], object]) -> None:
    """Run a scheduler until a signal comes; ``tell`` gets its address. Raises ``HostError`` if the port is taken."""

    async def serve(ended: asyncio.Event) -> None:
        scheduler = distributed.Scheduler(
            host=host,
            port=port,
            protocol="tls://" if tls else "tcp://",
            security=security_of(tls),
            dashboard=False,
            dashboard_address=LOOPBACK_ANY_PORT,
        )
        await _start(scheduler, f"a scheduler cannot listen at {host}, port {port}")
        async with scheduler:
            tell(f"{'tls' if tls else 'tcp'}://{host}:{scheduler.port}")
            await ended.wait()

    configure()
    asyncio.run(_until_signal(serve))


def serve_worker(address: str, name: str, host: str | None, tls: Tls | None, scratch: Path, tell: Any) -> bool:
    """Run a worker of a scheduler until a signal comes, or the scheduler is gone.

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
            resources={RUN: 1, resource_of(name): 1},
            plugins=(Jobs(server),),
            host=host or get_ip(scheduler_host),
            security=security_of(tls),
            memory_limit=0,
            local_directory=str(scratch),
            dashboard_address=LOOPBACK_ANY_PORT,
        )
        signalled = asyncio.create_task(ended.wait())
        started = asyncio.create_task(_start(worker, "the worker cannot be started"))
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

    configure()
    with JobServer() as server:
        return bool(asyncio.run(_until_signal(serve)))


async def _start(server: Any, failure: str) -> None:
    try:
        await server
    except (OSError, RuntimeError) as error:
        raise HostError(f"{failure}: {reason_of(error)}") from error


async def _until_signal(serve: Callable[[asyncio.Event], Any]) -> Any:
    """Run ``serve`` with an event that a signal sets; a further signal changes nothing."""
    ended = asyncio.Event()
    for number in signals_taken():
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    return await serve(ended)
