"""Reads one table of a document into its struct; a problem is reported and does not stop the reading."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import Struct

from nodes.spelling import meant_by, nearest
from topologies.language.document import Document
from topologies.language.problems import Problem, show, show_key
from topologies.language.tables import GroupTable, other_tables_with
from topologies.language.toml_positions import Path
from topologies.language.validated import Sparse, annotations_of, compile_pattern
from topologies.language.values import MisfitError, convert, describe

MAX_COLLECTED = 300
"""The reading stops after this many problems: the file is probably no topology."""


class TooManyProblemsError(Exception):
    """The report has `MAX_COLLECTED` problems."""


class Report:
    """Collects the problems of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = list(document.problems)
        self._seen = set(self.problems)
        self._paths: set[Path] = set()

    def add(self, path: Path, expected: str, got: str, hint: str = "") -> None:
        """Report a problem of the value at ``path``. Raises `TooManyProblemsError`."""
        self._paths.add(path)
        self.take(self.document.problem(path, expected, got, hint))

    def has(self, path: Path) -> bool:
        """Whether the value at ``path`` was reported; it does not count as missing then."""
        return path in self._paths

    def take(self, problem: Problem) -> None:
        """Report a problem, also one of another file; the same one (of a value that groups inherit) only once."""
        if problem in self._seen:
            return
        self._seen.add(problem)
        self.problems.append(problem)
        if len(self.problems) >= MAX_COLLECTED:
            raise TooManyProblemsError

    def check_pattern(self, path: Path, text: str) -> None:
        """Report a text that is no regular expression."""
        try:
            compile_pattern(text)
        except re.error as error:
            self.add(path, "a regular expression", f"{show(text)}: {error}")

    def unknown_key(self, path: Path, known: Iterable[str]) -> None:
        """Report an unknown key; the key that was probably meant does not count as missing then."""
        known, key = list(known), str(path[-1])
        expected = f"one of {', '.join(known)}" if known else "no keys here"
        self.add(path, expected, "an unknown key", nearest(key, known) or self._elsewhere(path))
        if meant := meant_by(key, known):
            self._paths.add((*path[:-1], meant))

    def _elsewhere(self, path: Path) -> str:
        """A hint on the tables that have the key."""
        key = str(path[-1])
        value = self.document.values.get(key) if len(path) == 1 else None
        if isinstance(value, dict) and not annotations_of(GroupTable).keys().isdisjoint(value):
            return f"a group of machines is [machines.{key}]"
        return other_tables_with(key)


def read_table(table: type[Struct], values: object, path: Path, report: Report) -> dict[str, Any]:
    """The fields of ``table`` in ``values``, converted, with defaults; what does not fit or is missing is reported."""
    if not isinstance(values, dict):
        brackets = f", [{show_key(path)}] in single brackets" if _is_array_of_tables(values) else ""
        report.add(path, f"a table{brackets}", show(values))
        return {}
    known = annotations_of(table)
    for key in values:
        if key not in known:
            report.unknown_key((*path, key), known)
    fields: dict[str, Any] = {}
    sparse = issubclass(table, Sparse)
    for field in _fields_of(table):
        annotation, inner = known[field.name], (*path, field.name)
        if field.name in values:
            read_value(annotation, values[field.name], inner, fields, report)
        elif field.required and report.has(inner):
            continue
        elif field.required:
            named = get_origin(_bare(annotation)) is dict
            expected = _some_tables(inner) if named else describe(annotation)
            report.add(inner, expected, "nothing: this key is missing")
        elif sparse:
            continue
        elif (inner_table := _table(annotation)) is not None:
            fields[field.name] = read_table(inner_table, {}, inner, report)
        elif field.default is not msgspec.NODEFAULT:
            fields[field.name] = field.default
        else:
            fields[field.name] = field.default_factory()
    return fields


def read_value(annotation: Any, value: object, path: Path, fields: dict[str, Any], report: Report) -> None:
    """Put one value into ``fields`` if it fits; a table becomes a dict of its valid fields."""
    name = path[-1]
    assert isinstance(name, str)
    bare = _bare(annotation)
    kind, parts = get_origin(bare), get_args(bare)
    if (table := _table(bare)) is not None:
        fields[name] = read_table(table, value, path, report)
    elif kind is tuple and (table := _table(parts[0])) is not None:
        fields[name] = _read_array(table, value, path, report)
    elif kind is dict and (table := _table(parts[1])) is not None:
        fields[name] = _read_named(parts[0], table, value, path, report)
    elif kind is dict and parts[1] is not Any and isinstance(value, dict):
        fields[name] = {}
        for key, inner in value.items():
            try:
                convert(key, parts[0])
                fields[name][key] = convert(inner, parts[1])
            except MisfitError as misfit:
                hint = f"in quotes: {show(_dotted(key, inner))}" if isinstance(inner, dict) else misfit.hint
                report.add((*path, key), misfit.expected, show(inner), hint)
    else:
        try:
            fields[name] = convert(value, annotation)
        except MisfitError as misfit:
            report.add(path, misfit.expected, show(value), misfit.hint)


def _read_array(table: type[Struct], values: object, path: Path, report: Report) -> list[dict[str, Any]]:
    """An array of tables, such as ``[[phases]]``; an invalid one keeps its place."""
    if not isinstance(values, list):
        report.add(path, f"an array of tables [[{show_key(path)}]]", show(values))
        return []
    return [read_table(table, value, (*path, place), report) for place, value in enumerate(values)]


def _read_named(key: Any, table: type[Struct], values: object, path: Path, report: Report) -> dict[str, dict[str, Any]]:
    """Tables by name, such as ``[machines.storm]``, without those whose name does not fit."""
    found: dict[str, dict[str, Any]] = {}
    if not isinstance(values, dict) or not values:
        report.add(path, _some_tables(path), show(values))
        return found
    for name, value in values.items():
        try:
            convert(name, key)
        except MisfitError as misfit:
            report.add((*path, name), misfit.expected, show(name), misfit.hint)
        else:
            found[name] = read_table(table, value, (*path, name), report)
    return found


def _dotted(key: str, value: object) -> str:
    """The dotted key of the first value in nested tables."""
    while isinstance(value, dict) and value:
        step, value = next(iter(value.items()))
        key += f".{step}"
    return key


def _is_array_of_tables(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, dict) for value in values)


def _some_tables(path: Path) -> str:
    return f"at least one table [{show_key(path)}.NAME]"


def _table(annotation: Any) -> type[Struct] | None:
    """The struct, when ``annotation`` is a table."""
    annotation = _bare(annotation)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Struct) else None


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


@functools.cache
def _fields_of(table: type[Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Cached, because msgspec inspects every annotation on each call."""
    return msgspec.structs.fields(table)
