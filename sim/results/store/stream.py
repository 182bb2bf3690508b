"""The stream of resource rows to the disk, in Arrow's format: a file that was cut still yields every whole batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class ResourceStream:
    """Appends batches to one file; owns its descriptor from the first batch on until :meth:`close`.

    ``refused`` counts the rows that the disk did not take. After a batch that failed half way nothing can
    follow it in the stream, so everything later is refused, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused = 0
        self._file: Any = None
        self._writer: Any = None
        self._broken = False

    def append(self, rows: Iterable[tuple[object, ...]]) -> None:
        """Write one batch and hand it to the kernel. Raises ``ValueError`` for a row of the wrong shape."""
        import pyarrow as pa

        from sim.results.store.schemas import RESOURCES

        columns = list(zip(*rows, strict=True))
        if not columns:
            return
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, RESOURCES, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=RESOURCES)
        if self._broken:
            self.refused += batch.num_rows
            return
        try:
            if self._writer is None:
                self._file = open(self.path, "xb")  # noqa: SIM115 - it stays open between batches
                self._writer = pa.ipc.new_stream(self._file, RESOURCES)
            self._writer.write_batch(batch)
            self._file.flush()
        except OSError:
            self._broken = True
            self.refused += batch.num_rows

    def close(self) -> None:
        """End the stream. A second call does nothing."""
        # A full disk cannot take the end mark either; readers do not need it.
        with contextlib.suppress(OSError):
            if self._writer is not None and not self._broken:
                self._writer.close()
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._writer = self._file = None
        self._broken = True
