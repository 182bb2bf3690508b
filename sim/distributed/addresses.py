"""Addresses of schedulers, and the rule about them: beyond this host's loopback only with TLS."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import NamedTuple

from nodes.errors import UsageError

PORT = 8786

_ADDRESS = re.compile(r"(?P<scheme>tcp|tls)://(?P<host>\[[^\]]+\]|[^:/\[\]]+):(?P<port>\d{1,5})")
HELP = "docs/distributed.md says how to make certificates"


class Tls(NamedTuple):
    """The files with which one side proves who it is: the authority's certificate, its own, and its key; PEM."""

    ca: Path
    cert: Path
    key: Path


def make_tls(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """All three files, or none. Raises ``UsageError`` for a part of them, and for a file that is missing."""
    if ca is None or cert is None or key is None:
        if ca or cert or key:
            raise UsageError(f"expected --tls-ca, --tls-cert and --tls-key together; {HELP}")
        return None
    for file in (ca, cert, key):
        if not file.is_file():
            raise UsageError(f"{file}: there is no such file; {HELP}")
    return Tls(ca, cert, key)


def check_address(address: str, tls: Tls | None) -> str:
    """Check the address of a scheduler; returns its host.

    Raises:
        UsageError: it is no address; it is tls:// without certificates, or tcp:// with them; it is tcp:// and not on
            this host's loopback.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise UsageError(f"expected tcp://HOST:PORT or tls://HOST:PORT, such as tcp://127.0.0.1:{PORT}, got {address}")
    host = found["host"].strip("[]")
    if found["scheme"] == "tls" and tls is None:
        raise UsageError(f"{address}: expected --tls-ca, --tls-cert and --tls-key; {HELP}")
    if found["scheme"] == "tcp":
        if tls is not None:
            raise UsageError(f"{address}: with certificates, expected tls:// and not tcp://")
        check_listening(host, None)
    return host


def check_listening(host: str, tls: Tls | None) -> None:
    """Raises ``UsageError`` if ``host`` is not on the loopback, unless there is TLS."""
    if tls is None and not _is_loopback(host):
        raise UsageError(
            f"{host} is not on this host's loopback: a scheduler runs the code that it is sent, so that beyond this "
            f"host it needs TLS: expected --tls-ca, --tls-cert and --tls-key; {HELP}"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
