"""Opening a run directory: a finished run is read; a run whose coordinator died is finished first."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from nodes.errors import UsageError
from nodes.spelling import meant_by
from sim.results.ending import Ending
from sim.results.run import Run
from sim.results.store import files
from sim.results.store.manifest import Manifest

RUNS = Path("runs")
COMPARED_MAX = 200


def open(path: str | os.PathLike[str]) -> Run:
    """The run in a directory.

    A run whose coordinator died is recovered: tables and figures are computed from its recordings, its status
    becomes ``died``, and the summary says what could only be derived. Where the directory cannot be written, the
    results are made in a temporary place that lasts as long as the ``Run``; ``Run.problems`` says so. A damaged run is
    opened as far as it can be read.

    Raises:
        UsageError: the directory holds no run, a run of another schema, or one that is still running.
    """
    run = Run(Path(path))
    if not run.path.is_dir():
        raise no_such_run(run.path)
    if not (run.path / files.MANIFEST).exists() and not (run.path / files.SUMMARY).exists():
        runs = sorted(run.path.glob(f"*/{files.MANIFEST}"), key=lambda each: each.stat().st_mtime)
        hint = f"; it has runs in it, such as {runs[-1].parent}" if runs else ""
        missing = f"neither {files.MANIFEST} nor {files.SUMMARY} is there"
        raise UsageError(f"{run.path}: not a run directory: {missing}{hint}")
    if _unfinished(run):
        return _recovered(run)
    if (run.path / files.MANIFEST).exists() and not (run.path / files.SUMMARY).exists():
        # Refuses a manifest of another schema; with a summary, the rest can be read without it.
        _ = run.origin
    return run


def _unfinished(run: Run) -> bool:
    """Whether there are no results yet: it runs, its coordinator died, or the disk was full at its end."""
    if run.status == files.RUNNING or _without_status(run):
        return True
    return not (run.path / files.SUMMARY).exists() and bool(files.recordings(run.path) or run.parts)


def _without_status(run: Run) -> bool:
    """Whether its coordinator died between manifest and first status: only the end of a run removes .reserve."""
    return (run.path / files.RESERVE).exists() and not (run.path / files.STATUS).exists()


def _recovered(run: Run) -> Run:
    manifest = run.origin
    with _locked(run.path):
        # Another process may have recovered it while this one waited for the lock.
        if not _unfinished(Run(run.path)):
            return Run(run.path)
        if (run.status == files.RUNNING or _without_status(run)) and manifest.owner.is_running():
            raise UsageError(f"{run.path}: still running, in process {manifest.owner.pid}")
        from sim.results.finalize import conclude

        ending = None
        if (run.path / files.ENDING).exists():
            with contextlib.suppress(UsageError):
                ending = files.read_json(run.path / files.ENDING, Ending)
        try:
            conclude(run.path, manifest, ending)
        except OSError as error:
            return _elsewhere(run, manifest, ending, error)
        return Run(run.path)


def _elsewhere(run: Run, manifest: Manifest, ending: Ending | None, refused: OSError) -> Run:
    """The results in a temporary directory, for a run directory that cannot be written."""
    from sim.results.finalize import conclude

    why = refused.strerror or str(refused)
    try:
        place = Path(tempfile.mkdtemp(prefix="ivsim-results-"))
        made = Run(run.path, place, [f"never finished, and nothing is kept: the directory cannot be written ({why})"])
        weakref.finalize(made, shutil.rmtree, place, ignore_errors=True)
        conclude(run.path, manifest, ending, into=place)
    except OSError as error:
        raise UsageError(
            f"{run.path}: never finished, and its results can be written neither there ({why}) nor in "
            f"{tempfile.gettempdir()} ({error.strerror or error})"
        ) from error
    return made


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One recovery of a directory at a time."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some read-only file systems have no locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def no_such_run(path: Path) -> UsageError:
    """The error for ``path``, which is no directory."""
    what = "a file, and no such run directory" if path.exists() else "no such run directory"
    hint = nearest_directory(path, files.MANIFEST) or "`ivsim run` prints the one that it makes"
    return UsageError(f"{path}: {what}; {hint}")


def nearest_directory(path: Path, file: str) -> str:
    """A hint with the directory that ``path`` probably stands for, or "".

    Compared are directories with a ``file`` in them: beside ``path``, and in ``runs`` for a name without a parent. The
    latest one wins whose name begins as ``path`` does, as for a name without its time.
    """
    found = {place.name: place for place in islice(_directories(path, file), COMPARED_MAX)}
    begun = [name for name in found if name.startswith(path.name)]
    name = begun[0] if begun and path.name else meant_by(path.name, found)
    return f'did you mean "{found[name]}"?' if name else ""


def _directories(path: Path, file: str) -> Iterator[Path]:
    """The latest first."""
    for parent in (path.parent, RUNS) if path.parent == Path() else (path.parent,):
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            ordered = sorted((entry.stat().st_mtime, entry.name) for entry in entries if entry.is_dir())
            yield from (parent / name for _, name in reversed(ordered) if (parent / name / file).exists())
