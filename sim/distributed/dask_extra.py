"""Whether Dask is installed: it comes with the extra ``dist``, and only what uses a cluster needs it."""

from __future__ import annotations

import importlib.util

from nodes.errors import UsageError


def require_dask() -> None:
    """Raise ``UsageError`` if Dask is not installed."""
    if importlib.util.find_spec("distributed") is None:
        raise UsageError("workers and schedulers need Dask: pip install 'ivshmem-sim[dist]'")
