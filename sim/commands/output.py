"""Files that commands write, and the errors of doing so."""

from __future__ import annotations

from pathlib import Path

import click

from sim.kernel.shortage import error_of_path


def echo_json(value: object) -> None:
    """Print structures or plain data as indented JSON."""
    import json

    import msgspec

    click.echo(json.dumps(msgspec.to_builtins(value), indent=2))


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file of any kind in place.

    Raises:
        UsageError: the path cannot be written.
        HostError: this host has no room for the content.
    """
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise error_of_path(error, f"{path} cannot be written") from error


def write_result(path: Path, content: str | bytes) -> None:
    """Write a file whole and print its path; - is standard output. Raises as `write_file`."""
    if str(path) == "-":
        click.echo(content, nl=False)
    else:
        write_whole(path, content.encode() if isinstance(content, str) else content)
        click.echo(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it: readers find it whole or not at all. Raises as `write_file`."""
    from sim.results.store.files import replace

    try:
        replace(path, content)
    except OSError as error:
        raise error_of_path(error, f"{path} cannot be written") from error
