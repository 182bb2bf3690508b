"""The fault matrix is complete: each row of tests/fault_matrix.py has a test, and no test names another row."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.fault_matrix import ROWS


def test_each_row_has_a_test() -> None:
    named = set()
    for path in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                (row,) = node.args
                assert {keyword.arg for keyword in node.keywords} == {"full", "sample", "unit"}, path
                named.add(ast.literal_eval(row))
    assert named == set(ROWS)
