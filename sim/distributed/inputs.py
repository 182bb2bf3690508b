"""The files that a topology needs on another host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nodes.errors import UsageError
from topologies import Topology

TOPOLOGY, PROGRAMS = "topology", "programs"


class Inputs(NamedTuple):
    """The files by their names there, and the arguments of a command that name them."""

    files: dict[str, bytes]
    arguments: list[str]


def collect_inputs(topology: Topology, programs: Sequence[str | Path]) -> Inputs:
    """The text of a topology, its traces, and the programs that the user has named; no other file travels.

    Raises:
        UsageError: a file cannot be read, two programs have the same name, or the topology needs an image of a guest.
    """
    if guest := next((machine for machine in topology.machines if machine.guest is not None), None):
        raise UsageError(f"{guest.name} has an image of a guest, which is not sent to other hosts")
    name = f"{TOPOLOGY}/{Path(topology.source_name).name}"
    files = {name: topology.source_text.encode()}
    for trace, source in topology.files.items():
        if Path(trace).is_absolute() or ".." in Path(trace).parts:
            raise UsageError(f"{trace}: only files below the topology's directory are sent to other hosts")
        files[f"{TOPOLOGY}/{trace}"] = _read(Path(source))
    arguments = [name]
    for program in map(Path, programs):
        sent = f"{PROGRAMS}/{program.name}"
        if sent in files:
            raise UsageError(f"two programs are called {program.name}; other hosts have them in one directory")
        files[sent] = _read(program)
        arguments += ["--program", sent]
    for key, value in topology.overrides.items():
        arguments += ["--set", f"{key}={value}"]
    return Inputs(files, arguments)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
