"""The names, settings and addresses that a client, a scheduler and a worker share."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import dask.config
import distributed

from sim.distributed.addresses import Tls

RUN = "ivsim-run"
TOPIC = "ivsim-jobs"
START, END = "start", "end"
LOOPBACK_ANY_PORT = "127.0.0.1:0"
CONNECT_S = 10

# Dask's HTTP servers cannot be turned off: they are bound to the loopback, and serve nothing. What the user has
# configured (DASK_..., ~/.config/dask) remains.
DEFAULTS = {
    "distributed": {
        "scheduler": {"worker-ttl": "60s", "http": {"routes": []}},
        "worker": {"http": {"routes": []}, "profile": {"enabled": False}},
        "comm": {"timeouts": {"connect": f"{CONNECT_S}s"}},
    }
}


def configure() -> None:
    # A scheduler that listens at all addresses looks for one that it could name.
    warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address", RuntimeWarning)
    dask.config.update_defaults(DEFAULTS)
    for name in ("distributed", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def security_of(tls: Tls | None) -> Any:
    if tls is None:
        return distributed.Security(require_encryption=False)
    files: dict[str, Any] = {"tls_ca_file": str(tls.ca)}
    for role in ("client", "scheduler", "worker"):
        files |= {f"tls_{role}_cert": str(tls.cert), f"tls_{role}_key": str(tls.key)}
    return distributed.Security(require_encryption=True, **files)


def reason_of(error: BaseException) -> str:
    """The first cause of an error that Dask has wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def resource_of(host: str) -> str:
    """What only the workers of a host have."""
    return f"ivsim-host-{host}"


def host_of(worker: object) -> str:
    """The name of the host in the name of a worker; "" for workers in the client's process, which are numbered."""
    return str(worker).rpartition("#")[0]


def barrier_event(name: str, what: str, client: Any) -> Any:
    return distributed.Event(f"{name}-{what}", client=client)
