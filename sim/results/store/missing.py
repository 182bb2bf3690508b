"""The error for a run directory that does not exist, with the nearest one that does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from nodes.errors import UsageError
from nodes.spelling import meant_by
from sim.results.store import files

RUNS = Path("runs")
COMPARED_MAX = 200


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
