"""Structs that refuse values out of range; the limits are declared once, in the annotations."""

from __future__ import annotations

import functools
import re
import warnings
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, Struct

from nodes.errors import UsageError

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z"
"""Names become parts of file names and table cells: no separators, no leading dot or dash."""

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]


class Validated(Struct, frozen=True, kw_only=True):
    """A struct whose constructor refuses fields that do not fit their annotations, with `UsageError`."""

    def __post_init__(self) -> None:
        annotations = annotations_of(type(self))
        for name in self.__struct_fields__:
            value, annotation = getattr(self, name), annotations[name]
            if isinstance(value, Validated) and isinstance(annotation, type) and isinstance(value, annotation):
                continue
            try:
                msgspec.convert(value, annotation, strict=True)
            except msgspec.ValidationError as error:
                raise UsageError(f"{type(self).__name__}.{name}: {error}") from None


class Sparse(Struct, frozen=True, kw_only=True):
    """A table whose reader returns only the keys that are given; the defaults are applied elsewhere."""


@functools.cache
def annotations_of(struct: type[Struct]) -> dict[str, Any]:
    """Field names to their full annotations, in order."""
    return get_type_hints(struct, include_extras=True)


def compile_pattern(text: str) -> re.Pattern[str]:
    """A regular expression of a file. Python's warning that ``[[`` may mean something else one day is
    not for its author.

    Raises:
        re.error: it is no regular expression.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return re.compile(text)
