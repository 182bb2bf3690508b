"""Where runs are carried out: by this process, by the workers of a scheduler, or by workers in this process."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from nodes.errors import UsageError
from sim.distributed.addresses import Tls, check_address, make_tls


class Where(NamedTuple):
    """The cluster that does the work: that of a scheduler, or ``workers`` in this process."""

    scheduler: str | None
    workers: int
    tls: Tls | None

    def open(self) -> AbstractContextManager[Any]:
        """The cluster as a `sim.distributed.dask.client.DaskCluster`."""
        from sim.distributed.dask.client import connect, local

        return local(self.workers) if self.scheduler is None else connect(self.scheduler, self.tls)


def where_of(scheduler: str | None, workers: int | None, tls: Tls | None) -> Where | None:
    """The cluster of a scheduler, or of so many workers of this host; None for neither: this process does the work.

    Raises:
        UsageError: both are given, certificates without a scheduler, or an address that `check_address` refuses; or
            Dask is not installed.
    """
    if scheduler is not None and workers is not None:
        raise UsageError("expected a scheduler or workers, not both: a scheduler knows its workers")
    if scheduler is None and tls is not None:
        raise UsageError("certificates go with a scheduler")
    if scheduler is None and workers is None:
        return None
    if scheduler is not None:
        check_address(scheduler, tls)
    elif not isinstance(workers, int) or workers < 1:
        raise UsageError(f"workers: expected a number from 1, got {workers!r}")
    require_dask()
    return Where(scheduler, workers or 0, tls)


def tls_of(files: Sequence[str | os.PathLike[str]] | None) -> Tls | None:
    """The certificates in the files of an authority, a certificate and its key. Raises as `make_tls`."""
    if files is None:
        return None
    if isinstance(files, str | bytes) or len(files) != 3:
        raise UsageError(f"tls: expected the files of an authority, a certificate and a key, got {files!r}")
    return make_tls(*map(Path, files))


def require_dask() -> None:
    """Raise ``UsageError`` if Dask, which comes with the extra ``dist``, is not installed."""
    if importlib.util.find_spec("distributed") is None:
        raise UsageError("workers and schedulers need Dask: pip install 'ivshmem-sim[dist]'")
