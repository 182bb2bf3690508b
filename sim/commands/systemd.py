"""Example units for systemd, filled in with what was asked for."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

__all__ = ["units"]

UNITS = """\
# /etc/systemd/system/ivsim-serve.socket
[Unit]
Description=ivshmem server (socket)

[Socket]
ListenStream={path}
SocketMode={mode:04o}
{group}
[Install]
WantedBy=sockets.target

# /etc/systemd/system/ivsim-serve.service
[Unit]
Description=ivshmem server
Requires=ivsim-serve.socket
After=ivsim-serve.socket

[Service]
ExecStart={command}
DynamicUser=yes
LimitNOFILE=524288
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
SystemCallArchitectures=native
"""


def units(path: Path, mode: int, group: str | None, options: list[str]) -> str:
    """A socket unit and the service that it starts. Its clients' IDs and memory last as long as the service does."""
    program = shutil.which("ivsim") or "/usr/local/bin/ivsim"
    return UNITS.format(
        path=path.absolute(),
        mode=mode,
        group=f"SocketGroup={group}\n" if group else "",
        command=shlex.join([program, "serve", "-F", *options, "--log", "-"]),
    )
