"""Example units for systemd, filled in with what was asked for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from nodes.errors import UsageError

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
UMask=0077
{writable}"""


def units(path: Path, mode: int, group: str | None, options: list[str], directory: Path | None) -> str:
    """A socket unit and the service that it starts. Its clients' IDs and memory last as long as the service does.

    ``directory`` is where the memory is made, if that has to be let through. Raises ``UsageError`` for a name that
    no line of a unit can hold.
    """
    program = shutil.which("ivsim") or "/usr/local/bin/ivsim"
    command = [program, "serve", "-F", *options, "--log", "-"]
    return UNITS.format(
        path=_literal(str(path.absolute())),
        mode=mode,
        group=f"SocketGroup={_literal(group)}\n" if group else "",
        command=" ".join(_quoted(word).replace("$", "$$") for word in command),
        writable=f"ReadWritePaths={_quoted(str(directory.absolute()))}\n" if directory else "",
    )


def _literal(word: str) -> str:
    """A value as it stands, without specifiers (systemd.unit(5))."""
    if not word.isprintable():
        raise UsageError(f"expected a name that a unit file can hold, got {word!r}")
    return word.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word of several, quoted if it has to be (systemd.syntax(7), "Quoting")."""
    literal = _literal(word)
    if re.fullmatch(r"[\w./:@%=+-]+", literal):
        return literal
    escaped = literal.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
