"""Every row of the 2012 device has code and a test; the table names neither in vain."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from nodes.device.profile import Quirk

TESTS = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = tomllib.loads((TESTS / "golden" / "seed_rows.toml").read_text())["row"]


@functools.cache
def functions(name: str) -> dict[str, str]:
    """The test functions of one file: name -> source."""
    source = (TESTS / name).read_text()
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_source_segment(source, node) or "" for node in found}


def problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row of the table."""
    found = []
    module, _, path = row.get("code", "").partition(":")
    try:
        functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        found.append(f"code {row.get('code')!r}: {error}")
    if not row.get("tests"):
        found.append("no test")
    for test in row.get("tests", ()):
        file, _, name = test.partition("::")
        if not (TESTS / file).is_file() or not name.startswith("test_") or name not in functions(file):
            found.append(f"no test {test}")
    return found


def test_all_rows_are_there() -> None:
    assert [row["number"] for row in ROWS] == list(range(1, 104))
    assert len({row["text"] for row in ROWS}) == 103


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["number"]))
def test_row_has_code_and_test(row: dict[str, Any]) -> None:
    assert problems(row) == []


@pytest.mark.parametrize("quirk", Quirk, ids=lambda quirk: quirk.name)
def test_quirk_is_tested_on_and_off(quirk: Quirk) -> None:
    """One of the row's tests repairs the defect by name; the profile that has them all shows it."""
    row = ROWS[quirk - 1]
    sources = [functions(file)[name] for file, _, name in (test.partition("::") for test in row["tests"])]
    assert any(re.search(rf"\bQuirk\.{quirk.name}\b", source) for source in sources), row["tests"]


@pytest.mark.parametrize(
    "row",
    [
        {
            "code": "nodes.device.ivshmem:Ivshmem.nothing",
            "tests": ["nodes/device/test_seed_rows.py::test_all_rows_are_there"],
        },
        {"code": "nodes.nowhere:Thing", "tests": ["nodes/device/test_seed_rows.py::test_all_rows_are_there"]},
        {"code": "", "tests": ["nodes/device/test_seed_rows.py::test_all_rows_are_there"]},
        {"code": "nodes.device.ivshmem:Ivshmem", "tests": []},
        {"code": "nodes.device.ivshmem:Ivshmem", "tests": ["nodes/device/test_seed_rows.py::test_nothing"]},
        {"code": "nodes.device.ivshmem:Ivshmem", "tests": ["nodes/device/test_nowhere.py::test_all_rows_are_there"]},
        {"code": "nodes.device.ivshmem:Ivshmem", "tests": ["nodes/device/test_seed_rows.py::problems"]},
    ],
)
def test_a_bad_row_is_seen(row: dict[str, Any]) -> None:
    assert len(problems(row)) == 1
