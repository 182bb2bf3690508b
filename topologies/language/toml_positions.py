"""The lines of the keys and values of a TOML text, which `tomllib` does not tell.

The scanner walks the text once, in linear time, and makes no values. It runs before `tomllib` and has the limits that
keep that safe: `tomllib` is quadratic in the parts of a dotted key and recurses into nested arrays. The scanner accepts
all of TOML and some more; `tomllib` refuses the rest.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from itertools import count

Path = tuple[str | int, ...]
"""The path of a value: table keys as strings, places in an array as integers from 0."""

MAX_DEPTH = 16
"""The greatest depth of a value: tables, arrays and parts of dotted keys together."""

MAX_VALUES = 16_384
"""The most keys and values of a file."""

_BLANK = re.compile(r"[ \t]*+")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_END_OF_LINE = re.compile(r"[ \t]*+(?:#[^\n]*+)?+\r?+(?:\n|\Z)")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]++")
_BASIC = re.compile(r'"(?:[^"\\\n]++|\\[^\n])*+"')
_LITERAL = re.compile(r"'[^'\n]*+'")
_ESCAPE_OR_END = re.compile(r'\\.|"""', re.DOTALL)
_SCALAR = re.compile(r"\d{4}-\d\d-\d\d \d\d:[^\s,\]}#]++|[^\s,\[\]{}#\"'=]++")


class ScanError(Exception):
    """At ``line`` (from 1), the text is not TOML or exceeds a limit."""

    def __init__(self, line: int, expected: str, got: str, *, limit: bool = False) -> None:
        super().__init__(f"line {line}: expected {expected}, got {got}")
        self.line = line
        self.expected = expected
        self.got = got
        self.limit = limit
        """Whether the text is refused for its size; it may be TOML."""


def positions(text: str) -> dict[Path, int]:
    """The line (from 1) where each table, key and array element of ``text`` first appears.

    Raises:
        ScanError: the text is not TOML, or exceeds a limit.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def split_key(text: str) -> tuple[str, ...]:
    """The parts of a dotted key from outside a file. Raises `ScanError`."""
    scanner = _Scanner(text)
    parts = scanner.key()
    if scanner.at != len(text):
        raise scanner.error("a dotted key")
    return parts


class _Scanner:
    """One walk over one text: ``at`` is the current offset, ``line`` its line."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {}
        self._counted_to = 0
        self._array_tables: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while True:
            self._skip(_BLANK_LINES)
            if self.at >= len(self.text):
                return
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._assignment(table)
            if not self._skip(_END_OF_LINE):
                raise self.error("the end of the line")

    def key(self) -> tuple[str, ...]:
        """One key, dotted or not, with the blanks around it."""
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            parts.append(self._key_part())
            if len(parts) > MAX_DEPTH:
                raise self.error(f"a key of at most {MAX_DEPTH} parts", "one of more", limit=True)
            self._skip(_BLANK)
            if not self._take("."):
                return tuple(parts)

    def error(self, expected: str, got: str | None = None, *, limit: bool = False) -> ScanError:
        self._count_lines()
        if got is None:
            rest = self.text[self.at : self.at + 20].split("\n")[0]
            got = repr(rest) if rest else "the end of the line"
        return ScanError(self.line, expected, got, limit=limit)

    def _header(self) -> Path:
        """``[table]`` or ``[[array of tables]]``: the path of the table that the next lines fill."""
        of_array = self.text.startswith("[[", self.at)
        self.at += 2 if of_array else 1
        parts = self.key()
        if not self._take("]]" if of_array else "]"):
            raise self.error("']'")
        path: Path = ()
        for part in parts[:-1]:
            path = self._last_of_array((*path, part))
            self._note(path)
        path = (*path, parts[-1])
        if of_array:
            self._note(path)
            place = self._array_tables.get(path, 0)
            self._array_tables[path] = place + 1
            path = (*path, place)
        else:
            path = self._last_of_array(path)
        self._note(path)
        return path

    def _last_of_array(self, path: Path) -> Path:
        """In TOML, the name of an array of tables means its last table."""
        count = self._array_tables.get(path)
        return path if count is None else (*path, count - 1)

    def _assignment(self, table: Path) -> None:
        path = table
        for part in self.key():
            path = (*path, part)
            self._note(path)
        if not self._take("="):
            raise self.error("'='")
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: Path) -> None:
        text, at = self.text, self.at
        if text.startswith('"""', at):
            self._multi_line_basic()
        elif text.startswith("'''", at):
            end = text.find("'''", at + 3)
            if end < 0:
                raise self.error("the ''' that ends this string", "the end of the file")
            self._end_of_multi_line(end, "'")
        elif text.startswith("[", at):
            self._items("]", lambda place: self._element((*path, place)))
        elif text.startswith("{", at):
            self._items("}", lambda _: self._assignment(path))
        elif not (self._skip(_BASIC) or self._skip(_LITERAL) or self._skip(_SCALAR)):
            raise self.error("a value")

    def _items(self, end: str, item: Callable[[int], None]) -> None:
        """What is between brackets, separated by commas; ``item(place)`` scans one."""
        # TOML 1.0 has an inline table on one line; tomllib reports that better.
        self.at += 1
        for place in count():
            self._skip(_BLANK_LINES)
            if self._take(end):
                return
            item(place)
            self._skip(_BLANK_LINES)
            if not self._take(","):
                if self._take(end):
                    return
                raise self.error(f"',' or '{end}'")

    def _element(self, path: Path) -> None:
        self._note(path)
        self._value(path)

    def _multi_line_basic(self) -> None:
        at = self.at + 3
        while True:
            found = _ESCAPE_OR_END.search(self.text, at)
            if found is None:
                raise self.error('the """ that ends this string', "the end of the file")
            if found[0] == '"""':
                return self._end_of_multi_line(found.start(), '"')
            at = found.end()

    def _end_of_multi_line(self, closing: int, quote: str) -> None:
        """Up to two quotes may precede the three that close the string."""
        end = closing + 3
        while end < closing + 5 and self.text.startswith(quote, end):
            end += 1
        self.at = end

    def _key_part(self) -> str:
        start = self.at
        if self._skip(_BARE_KEY):
            return self.text[start : self.at]
        if self._skip(_LITERAL):
            return self.text[start + 1 : self.at - 1]
        if self._skip(_BASIC):
            raw = self.text[start : self.at]
            if "\\" not in raw:
                return raw[1:-1]
            try:
                return str(tomllib.loads(f"k = {raw}")["k"])
            except ValueError:
                self.at = start
                raise self.error("a key") from None
        raise self.error("a key")

    def _note(self, path: Path) -> None:
        if path in self.lines:
            return
        if len(path) > MAX_DEPTH:
            raise self.error(f"keys and values nested at most {MAX_DEPTH} deep", "deeper ones", limit=True)
        if len(self.lines) >= MAX_VALUES:
            raise self.error(f"at most {MAX_VALUES} keys and values", "more", limit=True)
        self._count_lines()
        self.lines[path] = self.line

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        found = pattern.match(self.text, self.at)
        if found is None:
            return False
        self.at = found.end()
        return True

    def _take(self, token: str) -> bool:
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def _count_lines(self) -> None:
        if self.at > self._counted_to:
            self.line += self.text.count("\n", self._counted_to, self.at)
            self._counted_to = self.at
