"""topologies.language.validated: regular expressions of a file."""

from __future__ import annotations

from topologies.language.validated import compile_pattern


def test_a_nested_set_is_a_pattern_and_no_warning() -> None:
    assert compile_pattern("[[a]").match("[")
