"""Hints on lines that are not TOML, for frequent mistakes."""

from __future__ import annotations

import re
import unicodedata

from topologies.language.problems import show

_ARRAYS = ("timeline", "phases", "expect")
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'")
_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"\s*([\w.-]+|\"[^\"]*\")\s*=")
_WORDS = re.compile(r"[^=]*=\s*([A-Za-z][^\"'\[\]{}#]*?)\s*(#.*)?")

_EQUALS = "a key and its value have = between them, as in key = value"


def _compiled(*rows: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), hint) for pattern, hint in rows)


_IN_LINE = _compiled(
    (r"\A(<{7}|={7}|>{7})", "this is an unresolved merge"),
    (r"\A\s*(//|/\*|;|--|%)", "comments begin with #"),
    (r"\A\s*[{<]", "a topology is TOML, not JSON or XML: [machines.NAME], below it a line key = value for each key"),
    (r"[\u201c-\u201f\u2018-\u201b\u00ab\u00bb]", "strings take straight quotes: \" or '"),
    (r"\r(?!\Z)", "lines end in LF, or in CR and LF"),
)
"""Patterns of the line as it is."""

_BESIDE_STRINGS = _compiled(
    (r"(\A|[{,])\s*[\w.-]+\s*:", _EQUALS),
    (r"\A\s*[\w.-]+(\s+[^\s=]|\s*\Z)", _EQUALS),
    (r"=\s*[+-]?(\.\d|\d+\.(?!\d))", "a number has digits on both sides of its point: 0.5"),
    (r"=\s*[+-]?\d{1,3}(,\d{3})+\s*([,}#]|\Z)", "digits can be grouped by _, as in 1_000"),
    (r"=\s*[+-]?\d+,\d", "a number has a point, not a comma: 0.5"),
    (r"=\s*[+-]?\d[\d_.]*\s*[A-Za-z%\u00b5]", 'a number has no unit; with a suffix it is a string: "4M"'),
    (r"=\s*(#|\Z)", "a value is missing after ="),
    (r",\s*}", "no comma before }"),
    (r"{[^}]*;", "commas separate the keys in braces"),
    (r"{[^}]*\Z", "the } is missing: a table in braces is on one line"),
    (r"\A\s*\[[^\]]*\Z", "the ] is missing"),
    (r"=\s*([\"'])(?!\1\1)(?:(?!\1).)*\Z", "the quote that ends the string is missing"),
)
"""Patterns of the line with every string replaced by an empty one."""


def hint_at(text: str, line: int, message: str) -> str:
    """A hint on ``line`` (from 1) of ``text``, about which `tomllib` reports ``message``; "" if there is none."""
    lines = text.split("\n")
    faulty = lines[line - 1]
    if message.startswith("Cannot "):
        return _hint_of_double(lines, line)
    for pattern, hint in _IN_LINE:
        if pattern.search(faulty):
            return hint
    if (strange := _strange(faulty)) is not None:
        name = unicodedata.name(strange, "a control character").lower()
        return f"names and blanks are ASCII: {show(strange)} is U+{ord(strange):04X}, {name}"
    if "\\" in message:
        return "in \"...\" a backslash is written \\\\; in '...' it is an ordinary character"
    bare = _STRING.sub('""', faulty)
    for pattern, hint in _BESIDE_STRINGS:
        if pattern.search(bare):
            return hint
    return _hint_of_value(text, faulty)


def _hint_of_value(text: str, faulty: str) -> str:
    if not faulty.strip():  # the end of the file
        outside = re.sub("#.*", "", _STRING.sub("", text))
        return "an array is not closed: its ] is missing" if outside.count("[") > outside.count("]") else ""
    words = _WORDS.fullmatch(faulty)
    return f"strings need quotes: {show(words[1])}" if words else ""


def _strange(line: str) -> str | None:
    """The first character that is only allowed in strings and comments, and is elsewhere."""
    outside = _STRING.sub("", line).partition("#")[0].rstrip("\r")
    return next((c for c in outside if not (c.isascii() and (c.isprintable() or c == "\t"))), None)


def _hint_of_double(lines: list[str], line: int) -> str:
    """Where the table or the key at ``line`` was before."""
    header = _HEADER.fullmatch(lines[line - 1])
    if header is not None:
        if header[1] in _ARRAYS:
            return f"each entry begins with [[{header[1]}]], in double brackets"
        table, _, last = header[1].rpartition(".")
        within = ""
        for number, earlier in enumerate(lines[: line - 1], 1):
            if (found := _HEADER.fullmatch(earlier)) is not None:
                within = found[1]
                if within == header[1]:
                    return f"[{within}] begins on line {number}, and once only"
            elif within == table and (found := _KEY.match(earlier)) is not None and found[1] == last:
                return f"{last} of [{table}] has a value on line {number} already"
        return ""
    key = _KEY.match(lines[line - 1])
    for number in range(line - 1, 0, -1) if key is not None else ():
        if _HEADER.fullmatch(lines[number - 1]):
            break
        if (found := _KEY.match(lines[number - 1])) is not None and key is not None and found[1] == key[1]:
            return f"{key[1]} has a value on line {number} already"
    return ""
