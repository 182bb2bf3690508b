"""Example units for systemd, with the options that were given."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from nodes.errors import UsageError

# Directories that a dynamic user (DynamicUser=) may not read, or of which a service has its own (PrivateTmp=).
HIDDEN = ("/home", "/root", "/tmp", "/var/tmp", "/run/user")

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
{warning}ExecStart={command}
DynamicUser=yes
{member}LimitNOFILE=524288
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
SystemCallArchitectures=native
UMask=0077
{writable}"""


def units(path: Path, mode: int, group: str | None, options: list[str], directory: Path | None) -> str:
    """A socket unit and the service that it starts. The clients' IDs and their memory last as long as the service.

    ``directory`` is where the memory is made, if the service must be able to write there. The service joins ``group``,
    so that it can give its named memory to it. Raises ``UsageError`` for a name that no line of a unit can hold.
    """
    command = [_program(), "serve", "-F", *options, "--log", "-"]
    warning = hidden_program()
    return UNITS.format(
        warning=f"# {_literal(warning)}\n" if warning else "",
        path=_literal(str(path.absolute())),
        mode=mode,
        group=f"SocketGroup={_literal(group)}\n" if group else "",
        member=f"SupplementaryGroups={_literal(group)}\n" if group else "",
        command=" ".join(_quoted(word).replace("$", "$$") for word in command),
        writable=f"ReadWritePaths={_quoted(str(directory.absolute()))}\n" if directory else "",
    )


def _program() -> str:
    """The `ivsim` that is running, or where one is usually installed."""
    beside = Path(sys.executable).with_name("ivsim")
    return shutil.which("ivsim") or (str(beside) if beside.exists() else "/usr/local/bin/ivsim")


def hidden_program() -> str:
    """Why a service cannot start the program from where it is installed; nothing when it can."""
    path = Path(_program()).absolute()
    where = next((directory for directory in HIDDEN if path.is_relative_to(directory)), None)
    if where is None:
        return ""
    return (
        f"{path} lies below {where}, where a service may not find or read it (DynamicUser=, PrivateTmp=): "
        f"install it elsewhere, as in /opt or /usr/local, and change ExecStart="
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
