"""Structs that cannot be made with values out of range: the limits stand in the annotations, once."""

from __future__ import annotations

import functools
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, Struct

from nodes.errors import UsageError

__all__ = ["NAME_PATTERN", "Name", "Sparse", "Validated"]

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z"
"""Names become parts of file names and of table cells: no separators, no leading dot or dash."""

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]


class Validated(Struct, frozen=True, kw_only=True):
    """A struct whose fields are what their annotations say, however it was made."""

    def __post_init__(self) -> None:
        for name, annotation in _annotations(type(self)).items():
            value = getattr(self, name)
            try:
                msgspec.convert(value, annotation, strict=True)
            except msgspec.ValidationError as error:
                raise UsageError(f"{type(self).__name__}.{name}: {error}") from None


class Sparse(Struct, frozen=True, kw_only=True):
    """A table of which only the keys that are given are read: its defaults are somebody else's business."""


@functools.cache
def _annotations(struct: type[Struct]) -> dict[str, Any]:
    return get_type_hints(struct, include_extras=True)
