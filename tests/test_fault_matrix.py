"""The fault matrix is complete: each row of tests/fault_matrix.py has a test, and no test names another row."""

from __future__ import annotations

from tests.fault_matrix import ROWS, marked_tests


def test_each_row_has_a_test() -> None:
    marked = marked_tests()
    assert {each.row for each in marked} == set(ROWS)
    assert all(0 < each.sample <= each.full for each in marked)
