"""The scanner finds the same keys as tomllib, and the lines on which they are."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.samples import examples
from topologies.language.toml_positions import MAX_DEPTH, MAX_VALUES, Path, ScanError, positions, split_key

CASES: list[tuple[str, str, dict[Path, int]]] = [
    ("flat", "a = 1\n\nb = 2\n", {("a",): 1, ("b",): 3}),
    ("comment", "# a = 1\nb = '#' # c = 3\n", {("b",): 2}),
    ("table", "[t]\na = 1\n[t.u]\nb = 2", {("t",): 1, ("t", "a"): 2, ("t", "u"): 3, ("t", "u", "b"): 4}),
    ("dotted", "a.b . c = 1\na.d = 2", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1, ("a", "d"): 2}),
    (
        "quoted",
        '"a.b".\'c d\' = 1\n"\\u0065" = 2\n',
        {("a.b",): 1, ("a.b", "c d"): 1, ("e",): 2},
    ),
    (
        "inline",
        "a = { b = 1, c.d = [\n 2,\n 3 ] }\ne = {}",
        {
            ("a",): 1,
            ("a", "b"): 1,
            ("a", "c"): 1,
            ("a", "c", "d"): 1,
            ("a", "c", "d", 0): 2,
            ("a", "c", "d", 1): 3,
            ("e",): 4,
        },
    ),
    (
        "array of tables",
        "[[a]]\nb = 1\n[[a]]\nb = 2\n[a.c]\nd = 3\n[[a.e]]\nf = 4\n",
        {
            ("a",): 1,
            ("a", 0): 1,
            ("a", 0, "b"): 2,
            ("a", 1): 3,
            ("a", 1, "b"): 4,
            ("a", 1, "c"): 5,
            ("a", 1, "c", "d"): 6,
            ("a", 1, "e"): 7,
            ("a", 1, "e", 0): 7,
            ("a", 1, "e", 0, "f"): 8,
        },
    ),
    (
        "multi-line strings",
        'a = """\nb = 1\n\\""" c = 2\n"""""\nd = \'\'\'\ne = 3\n\'\'\'\'\nf = 4',
        {("a",): 1, ("d",): 5, ("f",): 8},
    ),
    ("strings with brackets", 'a = "]}\\"#"\nb = \'"[{\'\nc = ""', {("a",): 1, ("b",): 2, ("c",): 3}),
    (
        "dates",
        "a = 1979-05-27 07:32:00\nb = [07:32:00, 1979-05-27]",
        {("a",): 1, ("b",): 2, ("b", 0): 2, ("b", 1): 2},
    ),
    ("numbers", "a = -1.5e+3\nb = +0x_f\nc = inf\nd = 1_000.0", {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4}),
    (
        "carriage returns",
        "a = 1\r\n[b]\r\nc = [\r\n1\r\n]\r\n",
        {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0): 4},
    ),
    ("trailing comma", "a = [ # one\n1, # two\n# three\n]\nb = 2", {("a",): 1, ("a", 0): 2, ("b",): 5}),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_kind_of_key_and_value_has_its_line(text: str, expected: dict[Path, int]) -> None:
    assert positions(text) == expected


@pytest.mark.parametrize("text", ["a", "a =", "= 1", "[a", "[[a]", "a = [1", "a = {b = 1", 'a = """', "a = 1 b = 2"])
def test_malformed_toml_is_an_error_with_a_line(text: str) -> None:
    with pytest.raises(ScanError) as caught:
        positions(f"first = 1\n{text}")
    assert caught.value.line == 2
    assert not caught.value.limit


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * MAX_DEPTH + " = 1",
        "a = " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "a = " + "{a = " * MAX_DEPTH + "1" + "}" * MAX_DEPTH,
        "a.a.a.a.a.a.a.a = { a.a.a.a.a.a.a.a = { a = 1 } }",
        "[" + "a." * MAX_DEPTH + "a]",
    ],
)
def test_depth_is_limited_however_it_is_written(text: str) -> None:
    with pytest.raises(ScanError) as caught:
        positions(f"first = 1\n{text}")
    assert caught.value.limit
    assert caught.value.line == 2


def test_the_number_of_values_is_limited() -> None:
    assert len(positions("a = [" + "1,\n" * (MAX_VALUES - 1) + "]")) == MAX_VALUES
    with pytest.raises(ScanError) as caught:
        positions("a = [" + "1,\n" * MAX_VALUES + "]")
    assert caught.value.line == MAX_VALUES


def test_a_key_is_split_as_toml_splits_it() -> None:
    assert split_key("machines.storm.count") == ("machines", "storm", "count")
    assert split_key(" a . \"b.c\" . 'd e' ") == ("a", "b.c", "d e")
    for bad in ("", "a.", ".a", "a b", "a = 1", "[a]", '"a'):
        with pytest.raises(ScanError):
            split_key(bad)


# Whole documents, generated: the values are tokens that occur once, so the text itself says where they are.

KEYS = st.one_of(st.sampled_from(["a", "b", "c", "run", "x-1"]), st.text("ab.\"'[]{}#= \\é", min_size=0, max_size=4))
TREES = st.recursive(
    st.none(),
    lambda inner: st.one_of(st.dictionaries(KEYS, inner, max_size=4), st.lists(inner, max_size=4)),
    max_leaves=25,
)


class Writer:
    """Writes a tree as TOML in a random spelling."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.tokens = 0

    def choose(self, *choices: str) -> str:
        return str(self.draw(st.sampled_from(choices)))

    def key(self, key: str) -> str:
        if key and all(c in "abcdefghijklmnopqrstuvwxyz-0123456789" for c in key):
            return self.choose(key, f'"{key}"', f"'{key}'")
        return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def leaf(self) -> tuple[str, str]:
        self.tokens += 1
        token = f"<{self.tokens}>"
        quote = self.choose('"', "'", '"""', "'''")
        tail = self.choose("", "\n] = [ # \n", "''x") if quote == '"""' else ""
        tail = self.choose("", "\n} = {\n", '""x') if quote == "'''" else tail
        return token + tail, f"{quote}{token}{tail}{quote}"

    def value(self, tree: Any) -> tuple[Any, str]:
        if isinstance(tree, dict):
            pairs = [(key, *self.value(inner)) for key, inner in tree.items()]
            text = ", ".join(f"{self.key(key)} = {text}" for key, _, text in pairs)
            return {key: value for key, value, _ in pairs}, "{" + text + "}"
        if isinstance(tree, list):
            items = [self.value(inner) for inner in tree]
            text = "".join(f"{self.choose('', chr(10), ' # [' + chr(10))}{text}," for _, text in items)
            return [value for value, _ in items], f"[{text}{self.choose('', chr(10))}]"
        return self.leaf()

    def table(self, tree: dict[str, Any], path: tuple[str, ...]) -> tuple[dict[str, Any], str]:
        values: dict[str, Any] = {}
        lines: list[str] = []
        below: list[str] = []
        for key, inner in tree.items():
            dotted = ".".join(map(self.key, (*path, key)))
            if isinstance(inner, dict) and self.draw(st.booleans()):
                values[key], text = self.table(inner, (*path, key))
                below.append(f"[{dotted}]\n{text}")
            elif isinstance(inner, list) and inner and all(isinstance(item, dict) for item in inner):
                tables = [self.table(item, (*path, key)) for item in inner]
                values[key] = [value for value, _ in tables]
                below.extend(f"[[{dotted}]] # [x]\n{text}" for _, text in tables)
            else:
                values[key], text = self.value(inner)
                lines.append(f"{self.key(key)} = {text}{self.choose('', ' # c')}\n{self.choose('', chr(10))}")
        return values, "".join(lines + below)


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in leaves(inner, (*path, key)).items()}
    if isinstance(value, list):
        return {k: v for place, inner in enumerate(value) for k, v in leaves(inner, (*path, place)).items()}
    return {path: value}


@settings(max_examples=examples(400), deadline=None)
@given(st.data(), st.dictionaries(KEYS, TREES, max_size=5))
def test_every_value_of_any_document_is_found_on_its_line(data: st.DataObject, tree: dict[str, Any]) -> None:
    values, text = Writer(data.draw).table(tree, ())
    assert tomllib.loads(text) == values
    lines = positions(text)
    expected = leaves(values)
    assert set(expected) <= set(lines)
    for path, value in expected.items():
        token = value[: value.index(">") + 1]
        assert lines[path] == text[: text.index(token)].count("\n") + 1
    # And nothing is found that is not there: every path leads somewhere.
    for path in lines:
        inner: Any = values
        for part in path:
            inner = inner[part]
