"""Whose fault an error is: the guest program's, or the simulator's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["ProgramError", "blaming_program"]


class ProgramError(Exception):
    """The guest program raised; ``__cause__`` is what it raised."""


@contextlib.contextmanager
def blaming_program() -> Iterator[None]:
    """An error in this block is the guest program's."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ProgramError from error
