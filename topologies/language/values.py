"""Converts one value to its annotation, or says in words which values fit."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect as shapes

from nodes.spelling import nearest
from topologies.language.problems import show

_INTEGER_LIMIT = 2**63
_GUESSED_CHARACTERS = 18
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_PLACE = re.compile(r"at `\$(\[\d+\])")
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([KMGTPE]?)(?:I?B|BYTES)?\s*")
_QUANTITY = re.compile(r"\s*[+-]?\d[\d_.]*\s*[A-Za-z%\u00b5]+\s*")


class MisfitError(Exception):
    """A value that does not fit; ``expected`` and ``hint`` are texts for the user."""

    def __init__(self, expected: str, hint: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint


def convert(value: object, annotation: Any) -> Any:
    """``value``, read from TOML, converted to ``annotation`` (5 becomes 5.0 for a float).

    Numbers must be finite and integers must fit into 64 bits, for every annotation. Raises `MisfitError`.
    """
    try:
        converted = msgspec.convert(value, annotation, strict=True)
    except msgspec.ValidationError as error:
        raise MisfitError(describe(annotation), _hint(value, annotation, error)) from None
    if isinstance(converted, dict):
        return converted  # the parameters of a program, which are checked one by one
    for number in _numbers(converted):
        if not math.isfinite(number):
            raise MisfitError(describe(annotation), "the number must be finite")
        if isinstance(number, int) and abs(number) >= _INTEGER_LIMIT:
            raise MisfitError(describe(annotation), "the number must fit into 64 bits")
    return converted


def _hint(value: object, annotation: Any, error: msgspec.ValidationError) -> str:
    """A hint on a value that does not fit: what was probably meant, or which one of several it is."""
    shape = shapes.type_info(annotation)
    if isinstance(value, str) and isinstance(shape, shapes.Metadata):
        for pattern, hint in (shape.extra or {}).get("hints", ()):
            if re.search(pattern, value):
                return str(hint)
    choices = [choice for leaf in leaves(shape) if isinstance(leaf, shapes.LiteralType) for choice in leaf.values]
    if hint := nearest(value, [choice for choice in choices if isinstance(choice, str)]):
        return hint
    for meant in _meant_by(value):
        with contextlib.suppress(msgspec.ValidationError):
            msgspec.convert(meant, annotation, strict=True)
            return f"did you mean {show(meant)}?"
    is_number = all(isinstance(leaf, shapes.IntType | shapes.FloatType) for leaf in leaves(shape))
    if is_number and isinstance(value, str) and _QUANTITY.fullmatch(value):
        return "a number without a unit: the key's name says it"
    place = _PLACE.search(str(error))
    return f"it is the value at {place[1]}" if place else ""


def _meant_by(value: object) -> Iterator[object]:
    """Values that ``value`` may stand for: a number in quotes, "4MB", "yes", one name instead of an array of one."""
    if isinstance(value, str) and len(value) <= _GUESSED_CHARACTERS:
        for number in (int, float):
            with contextlib.suppress(ValueError):
                if math.isfinite(read := number(value)):
                    yield read
        if (truth := _TRUTHS.get(value.strip().lower())) is not None:
            yield truth
        if (size := _SIZE.fullmatch(value.upper())) is not None:
            yield size[1] + size[2]
        yield value.strip()
    elif isinstance(value, float) and value.is_integer():
        yield int(value)
    if not isinstance(value, list | dict):
        yield [value]


def leaves(shape: shapes.Type) -> list[shapes.Type]:
    """The types of the values that fit, without limits and without None."""
    match shape:
        case shapes.Metadata():
            return leaves(shape.type)
        case shapes.UnionType():
            return [leaf for part in shape.types for leaf in leaves(part)]
        case shapes.NoneType():
            return []
        case _:
            return [shape]


def describe(annotation: Any) -> str:
    """An annotation in words, such as ``a whole number from 1 to 2048``."""
    return _describe(shapes.type_info(annotation))


def _describe(shape: shapes.Type) -> str:  # noqa: PLR0911 - one line for each kind of shape
    match shape:
        case shapes.Metadata():
            return str((shape.extra or {}).get("expected") or _describe(shape.type))
        case shapes.UnionType():
            named = [part for part in shape.types if not isinstance(part, shapes.NoneType)]
            return " or ".join(_describe(part) for part in named)
        case shapes.BoolType():
            return "true or false"
        case shapes.IntType():
            return "a whole number" + _range(shape)
        case shapes.FloatType():
            return "a number" + _range(shape)
        case shapes.LiteralType():
            return "one of " + ", ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in shape.values)
        case shapes.StrType():
            return _describe_string(shape)
        case shapes.ListType() | shapes.VarTupleType() | shapes.SetType() | shapes.FrozenSetType():
            return f"an array, each value {_describe(shape.item_type)}"
        case shapes.DictType() | shapes.StructType():
            return "a table"
        case _:
            return type(shape).__name__.removesuffix("Type").lower()


def _describe_string(shape: shapes.StrType) -> str:
    if shape.pattern is not None:
        if "A-Z" in shape.pattern:
            return "a name of 1 to 64 letters, digits, '_', '.' or '-', not beginning with '.' or '-'"
        return f"a string like {shape.pattern}"
    text = "a string"
    if shape.min_length:
        text += ", not empty" if shape.min_length == 1 else f" of at least {shape.min_length} characters"
    if shape.max_length is not None:
        text += f" of at most {shape.max_length} characters"
    return text


def _range(shape: shapes.IntType | shapes.FloatType) -> str:
    low, high = (
        int(limit) if isinstance(limit, float) and limit.is_integer() else limit
        for limit in (shape.ge if shape.ge is not None else shape.gt, shape.le if shape.le is not None else shape.lt)
    )
    if low is not None and high is not None and shape.gt is None and shape.lt is None:
        return f" from {low} to {high}"
    parts = []
    if low is not None:
        parts.append(f"above {low}" if shape.gt is not None else f"at least {low}")
    if high is not None:
        parts.append(f"below {high}" if shape.lt is not None else f"at most {high}")
    return " " + " and ".join(parts) if parts else ""


def _numbers(value: object) -> list[int | float]:
    """All numbers in a converted value; the reader has limited its depth."""
    match value:
        case bool():
            return []
        case int() | float():
            return [value]
        case list() | tuple() | set() | frozenset():
            return [number for item in value for number in _numbers(item)]
        case _:
            return []
