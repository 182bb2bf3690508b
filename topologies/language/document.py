"""The text of a topology, read safely: plain TOML values, and the line of each.

The limits against hostile or broken files are here: size, encoding, nesting, syntax. The loader checks the meaning of
the values.
"""

from __future__ import annotations

import codecs
import contextlib
import datetime
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path as FilePath
from pathlib import PurePath
from typing import Any

from msgspec import Struct, field

from nodes.errors import UsageError
from nodes.spelling import nearest
from topologies.language.problems import Problem, TopologyError, printable, show, show_key
from topologies.language.toml_positions import Path, ScanError, positions, split_key

MAX_FILE_BYTES = 1 << 20
MAX_LINE_BYTES = 4096
_TOML_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)\Z")
_SHOWN_CHARACTERS = 80
_BY_NAME = {"machines": "a group", "domains": "a domain"}


class Document(Struct):
    """The values of one text, overrides included, and their lines."""

    name: str
    text: str
    values: dict[str, Any]
    lines: dict[Path, int]
    overridden: dict[Path, str] = field(default_factory=dict)
    """The spelling of the override that set each path."""
    overrides: dict[str, str] = field(default_factory=dict)
    """All overrides as given."""
    problems: list[Problem] = field(default_factory=list)
    """Problems of overrides; the file is read all the same."""

    def problem(self, path: Path, expected: str, got: str, hint: str) -> Problem:
        """A `Problem` at the line of ``path``, or of the nearest table around it that has a line."""
        name, line = self.name, 0
        for length in range(len(path), -1, -1):
            if (override := self.overridden.get(path[:length])) is not None:
                name = override
                break
            if (found := self.lines.get(path[:length])) is not None:
                line = found
                break
        else:
            line = 1
        return Problem(name, line, show_key(path), expected, got, hint)


def read_text(file: FilePath, expected: str = "a topology file", limit_bytes: int = MAX_FILE_BYTES) -> str:
    """The text of ``file``. Raises `TopologyError` unless it is a readable file of UTF-8 within the limit."""
    name = str(file)
    try:
        if file.is_dir():
            raise _refused(name, expected, "a directory")
        if not file.exists():
            hint = "`ivsim list` shows the topologies that ship" if limit_bytes == MAX_FILE_BYTES else ""
            raise _refused(name, expected, "no such file", hint)
        # Reading a pipe or a device may block for ever.
        if not file.is_file():
            raise _refused(name, expected, "no regular file")
        with file.open("rb") as opened:
            data = opened.read(limit_bytes + 1)
    except PermissionError:
        raise _refused(name, expected, "no permission to read it") from None
    except OSError as error:
        raise _refused(name, expected, error.strerror or type(error).__name__) from None
    except ValueError as error:
        raise _refused(show(name), f"the path of {expected}", str(error)) from None
    if len(data) > limit_bytes:
        raise _refused(name, f"a file of at most {limit_bytes} bytes", "a larger one")
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise _refused(name, "text in UTF-8", "text in UTF-16", "save it as UTF-8", line=1)
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise _refused(name, "a text file", "a byte of value 0", line=line)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        got = f"the byte {data[error.start]:#04x}, which is not UTF-8"
        raise _refused(name, "text in UTF-8", got, line=line) from None


def parse(text: str, name: str, overrides: Mapping[str, str] | None = None) -> Document:
    """``text`` as a `Document`.

    Args:
        overrides: dotted keys and TOML values; a value that is not TOML is taken as a string. An override that cannot
            be applied becomes one of the document's ``problems``.

    Raises:
        TopologyError: the text is too large, or not TOML.
    """
    text = text.removeprefix("\ufeff")
    _check_sizes(text, name)
    try:
        lines = positions(text)
        values = tomllib.loads(text)
    except ScanError as error:
        raise TopologyError([_syntax_problem(text, name, error)]) from None
    except tomllib.TOMLDecodeError as error:
        raise TopologyError([_toml_problem(text, name, error)]) from None
    except (ValueError, RecursionError) as error:
        # tomllib raises these for an impossible date, an integer of too many digits, and deep nesting.
        raise _refused(name, "TOML", show(str(error)), line=1) from None
    document = Document(name, text, values, lines, overrides=dict(overrides or {}))
    found = [_override(document, key, value) for key, value in (overrides or {}).items()]
    document.problems = [problem for problem in found if problem is not None]
    return document


def _refused(name: str, expected: str, got: str, hint: str = "", *, line: int = 0) -> TopologyError:
    return TopologyError([Problem(name, line, "", expected, got, hint)])


def _check_sizes(text: str, name: str) -> None:
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise _refused(name, "text in UTF-8", "half of a surrogate pair", line=line) from None
    if size_bytes > MAX_FILE_BYTES:
        raise _refused(name, f"at most {MAX_FILE_BYTES} bytes", f"{size_bytes} bytes")
    problems = [
        Problem(name, number, "", f"a line of at most {MAX_LINE_BYTES} bytes", f"one of {length} bytes")
        for number, line in enumerate(text.split("\n"), 1)
        if len(line) * 4 > MAX_LINE_BYTES and (length := len(line.encode("utf-8"))) > MAX_LINE_BYTES
    ]
    if problems:
        raise TopologyError(problems)


def _syntax_problem(text: str, name: str, error: ScanError) -> Problem:
    """The scanner's error, with `tomllib`'s text where that fails too, because it names the mistake."""
    if not error.limit:
        # tomllib only gets the part that the scanner has accepted: the rest may exceed a limit.
        walked = "\n".join(text.split("\n")[: error.line])
        try:
            tomllib.loads(walked)
        except tomllib.TOMLDecodeError as fault:
            return _toml_problem(walked, name, fault)
        except (ValueError, RecursionError) as fault:
            return Problem(name, error.line, "", "TOML", show(str(fault)))
    return Problem(name, error.line, "", error.expected, error.got)


def _toml_problem(text: str, name: str, error: tomllib.TOMLDecodeError) -> Problem:
    message = str(error)
    place = _TOML_PLACE.search(message)
    line = text.count("\n") + 1
    got = message
    if place is not None:
        got = message[: place.start()]
        if place[1] is not None:
            line = int(place[1])
            got += f" at column {place[2]}"
    faulty = text.split("\n")[line - 1].strip()
    if faulty:
        got += f", in: {printable(faulty)[:_SHOWN_CHARACTERS]}"
    from topologies.language.syntax_hints import hint_at

    return Problem(name, line, "", "TOML", got, hint_at(text, line, message))


def _override(document: Document, key: str, value: str) -> Problem | None:
    """Apply one override. Returns a problem of the override itself; the loader checks its meaning."""
    written = f"--set {show(f'{key}={value}')[1:-1]}"
    try:
        parts = split_key(key)
    except ScanError as error:
        return Problem(written, 0, "", "a dotted key like machines.storm.count", error.got)
    table: Any = document.values
    path: Path = ()
    for place, part in enumerate(parts, 1):
        last = place == len(parts)
        step: str | int = int(part) if isinstance(table, list) and part.isdecimal() and part.isascii() else part
        if isinstance(table, list):
            if not isinstance(step, int) or step >= len(table):
                expected = f"a place from 0 to {len(table) - 1}" if table else "no place: there are none"
                return Problem(written, 0, show_key((*path, part)), expected, show(part))
        elif not isinstance(table, dict):
            return Problem(written, 0, show_key(parts), f"{show_key(path)} to be a table", show(table))
        elif not last and part not in table:
            if place == 2 and path[0] in _BY_NAME:
                # An override changes groups and adds none: this is a misspelling.
                expected = f"{_BY_NAME[str(path[0])]} of the file ({', '.join(table) or 'none'})"
                return Problem(written, 0, show_key(parts), expected, part, nearest(part, table))
            table[part] = {}
            document.overridden[(*path, part)] = written
        path = (*path, step)
        if not last:
            table = table[step]
    try:
        table[path[-1]] = override_value(value)
    except ValueError as error:
        return Problem(written, 0, show_key(path), "a TOML value or a plain word", show(value), str(error))
    document.overridden[path] = written
    return None


def override_value(value: str) -> object:
    """``64``, ``true``, ``[1, 2]``, ``"x"`` as TOML; ``storm`` and ``4M`` as strings. Raises ValueError."""
    if len(value) > MAX_LINE_BYTES or "\n" in value:
        raise ValueError(f"one line of at most {MAX_LINE_BYTES} characters")
    text = f"v = {value}"
    try:
        positions(text)
        return tomllib.loads(text)["v"]
    except (ScanError, ValueError, RecursionError) as error:
        if value.lstrip()[:1] in ('"', "'", "[", "{"):
            raise ValueError(_TOML_PLACE.sub("", str(error))) from None
        return value


def override_texts(overrides: Mapping[str, object] | None) -> dict[str, str]:
    """Overrides given from Python, in the spelling of the command line.

    A text stays as it is; numbers, booleans, paths, arrays and tables become TOML, those of numpy too.

    Raises:
        UsageError: a key that is not a str, or a value that TOML cannot write.
    """
    texts = {}
    for key, value in (overrides or {}).items():
        if not isinstance(key, str):
            raise UsageError(f"overrides: expected dotted keys as str, got {key!r}")
        try:
            texts[key] = value if isinstance(value, str) else override_text(value)
        except TypeError as error:
            raise UsageError(f"overrides[{key!r}]: {error}") from None
    return texts


def override_text(value: object) -> str:
    """A value in the spelling of ``--set``; a string that is read as itself has no quotes. Raises TypeError."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            if value.strip() == value and override_value(value) == value:
                return value
    return _toml(value)


def _toml(value: object) -> str:
    if (plain := getattr(value, "tolist", None)) is not None:  # a number or an array of numpy
        value = plain()
    match value:
        case str() | PurePath():
            return quoted(str(value))
        case bool():
            return "true" if value else "false"
        case int() | float() | datetime.date() | datetime.time():
            return str(value)
        case list() | tuple() | range():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case Mapping():
            return "{ " + ", ".join(f"{quoted(str(key))} = {_toml(inner)}" for key, inner in value.items()) + " }"
    raise TypeError(f"expected a str, a number, a bool, a list or a dict, got {value!r}")


def quoted(text: str) -> str:
    """A basic string of TOML; unlike JSON, TOML has no escapes of surrogate pairs, and escapes U+007F."""
    import json

    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
