"""What a ``with`` block closes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Self


class Closeable:
    """A context manager that is closed at the end of its block."""

    __slots__ = ()

    def close(self) -> None:
        """Release what it owns."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """A descriptor that is closed at the end of the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)
