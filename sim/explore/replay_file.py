"""The file of a schedule, with everything that is needed to replay it: `ivsim run --replay`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from nodes.errors import UsageError
from sim.engines.virtual.chaos import Decision
from sim.explore.outcome import Broken, Outcome
from sim.kernel.shortage import path_reason
from topologies import Topology, load, loads

VERSION = 1


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """The file: JSON.

    Attributes:
        source: the file of the topology, ``text`` what it contained.
        overrides: as of ``--set``.
        programs: the files of ``--program``, absolute.
        seed: the seed.
        decisions: the schedule.
        broken: what it breaks.
    """

    version: int = VERSION
    source: str
    text: str
    overrides: dict[str, str]
    programs: list[str]
    seed: int
    decisions: tuple[Decision, ...]
    broken: Broken

    def topology(self) -> Topology:
        """The topology: from its file, if that is as it was, so that what it names is found.

        Raises:
            TopologyError: as `topologies.load`.
        """
        source = Path(self.source)
        if source.is_file() and source.read_text() == self.text:
            return load(source, self.overrides, self.programs)
        return loads(self.text, self.source, self.overrides, self.programs)


def write_replay(file: str | Path, topology: Topology, programs: Sequence[str | Path], outcome: Outcome) -> None:
    """Write the schedule of an outcome, for ``ivsim run --replay``; ``programs`` are those of `topologies.load`.

    Raises:
        UsageError: the file cannot be written.
    """
    assert outcome.broken is not None
    replay = Replay(
        source=str(Path(topology.source_name).absolute()),
        text=topology.source_text,
        overrides=dict(topology.overrides),
        programs=[str(Path(program).absolute()) for program in programs],
        seed=outcome.seed,
        decisions=outcome.decisions,
        broken=outcome.broken,
    )
    try:
        Path(file).write_bytes(msgspec.json.format(msgspec.json.encode(replay), indent=1) + b"\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {path_reason(error)}") from error


def read_replay(file: str | Path) -> Replay:
    """Read a schedule.

    Raises:
        UsageError: there is none in the file.
    """
    try:
        replay = msgspec.json.decode(Path(file).read_bytes(), type=Replay)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{file} is no schedule of `ivsim explore`: {error}") from error
    if replay.version != VERSION:
        raise UsageError(f"{file}: a schedule of version {replay.version}, this program has {VERSION}")
    return replay
