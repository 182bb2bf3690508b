"""Opening a run directory: one that is over is read, one whose owner died is finished first."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nodes.errors import UsageError
from sim.results.ending import Ending
from sim.results.run import Run
from sim.results.store import files

__all__ = ["open"]


def open(path: str | os.PathLike[str]) -> Run:
    """The run in a directory.

    A run whose coordinator died is recovered: tables and figures are computed from its recordings, its status
    becomes ``died``, and the summary says what could only be derived. A damaged run is opened as far as it
    can be read, see ``Run.problems``. Raises ``UsageError`` when the directory holds no run, one of another
    schema, or one that is still running.
    """
    run = Run(Path(path))
    if not run.path.is_dir():
        raise UsageError(f"{run.path}: no such run directory")
    if not (run.path / files.MANIFEST).exists() and not (run.path / files.SUMMARY).exists():
        raise UsageError(f"{run.path}: not a run directory: neither {files.MANIFEST} nor {files.SUMMARY} is there")
    if _unfinished(run):
        _recover(run)
        return Run(run.path)
    if (run.path / files.MANIFEST).exists() and not (run.path / files.SUMMARY).exists():
        # Refuses a manifest of another schema; with a summary, the rest can be read without it.
        _ = run.origin
    return run


def _unfinished(run: Run) -> bool:
    """Whether figures are still to be made: it runs, its owner died, or the disk was full at its end."""
    if run.status == files.RUNNING:
        return True
    return not (run.path / files.SUMMARY).exists() and bool(files.recordings(run.path))


def _recover(run: Run) -> None:
    manifest = run.origin
    with _locked(run.path):
        # Somebody else may have recovered it while this process waited for the lock.
        if not _unfinished(Run(run.path)):
            return
        if run.status == files.RUNNING and manifest.owner.lives():
            raise UsageError(f"{run.path}: still running, in process {manifest.owner.pid}")
        from sim.results.finalize import conclude

        ending = None
        if (run.path / files.ENDING).exists():
            with contextlib.suppress(UsageError):
                ending = files.read_json(run.path / files.ENDING, Ending)
        try:
            conclude(run.path, manifest, ending)
        except OSError as error:
            raise UsageError(
                f"{run.path}: never finished, and its results cannot be written: {error.strerror or error}"
            ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One recovery of a directory at a time."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
