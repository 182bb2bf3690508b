"""The fault matrix: every fault that a run can meet has a test, and a figure that says how often it was injected.

A test names its row: ``@pytest.mark.fault("F1", full=1000, sample=8, unit="kills")``. Its fixture ``fault_count`` is
``sample`` in the suite and ``full`` in ``make faults``, which runs the marked tests alone and prints the table.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROWS = {
    "F1": "a worker is killed at any moment",
    "F2": "the coordinator is killed, and started again",
    "F3": "a full counter, a reader that does not drain",
    "F4": "clients that do not read",
    "F5": "every limit of descriptors",
    "F6": "/dev/shm is full",
    "F7": "a peer makes the memory smaller",
    "F8": "a killed process group leaves its segments",
    "F9": "the resource tracker of a process that attaches",
    "F10": "a hostile server",
    "F11": "a hostile client",
    "F12": "hostile topologies",
    "F13": "the path of the socket is taken",
    "F14": "hostile telemetry",
    "F15": "damaged run directories",
    "F16": "code in data files",
    "F17": "signals at any moment",
    "F18": "the parent of a run is killed",
    "F19": "fork beside threads and contexts",
    "F20": "the disk is full, files are cut",
    "F21": "clocks and an oversubscribed host",
}
FULL_TIMEOUT_S = 2400
PROPERTY = "fault"


class Marked(NamedTuple):
    """A test of the matrix, as its marker says."""

    row: str
    full: int
    sample: int
    unit: str
    path: str
    """From the root of the repository, with slashes."""
    name: str


def marked_tests() -> list[Marked]:
    """Return the tests of the matrix, by row; the files are read, not imported."""
    root = Path(__file__).parents[1]
    found = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                        figures = {each.arg: ast.literal_eval(each.value) for each in mark.keywords if each.arg}
                        row = ast.literal_eval(*mark.args)
                        found.append(Marked(row, **figures, path=path.relative_to(root).as_posix(), name=node.name))
    return sorted(found, key=lambda each: int(each.row[1:]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults", choices=("sample", "full"), default="sample", help="how often the tests of the fault matrix inject"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(row, full, sample, unit): a row of tests/fault_matrix.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In ``make faults`` only the marked tests run, with the time that their figures take."""
    if config.getoption("--faults") == "full":
        marked = [item for item in items if item.get_closest_marker("fault")]
        config.hook.pytest_deselected(items=[item for item in items if item not in marked])
        items[:] = marked
        for item in marked:
            item.add_marker(pytest.mark.timeout(FULL_TIMEOUT_S))


@pytest.fixture
def fault_count(request: pytest.FixtureRequest, record_property: Any) -> int:
    """How often the test injects its fault."""
    marker = request.node.get_closest_marker("fault")
    (row,), figures = marker.args, marker.kwargs
    assert row in ROWS, row
    count = int(figures[request.config.getoption("--faults")])
    record_property(PROPERTY, [row, count, figures["unit"]])
    return count


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the matrix: a line for each test of each row."""
    if config.getoption("--faults") != "full":
        return
    lines = sorted(_lines(terminalreporter.stats), key=lambda line: int(line[0][1:]))
    terminalreporter.section("fault matrix")
    for row, title in ROWS.items():
        of_row = [line for line in lines if line[0] == row]
        terminalreporter.line(f"{row:4} {title}" + ("" if of_row else ": no test ran"))
        for _, count, unit, outcome, seconds, test in of_row:
            terminalreporter.line(f"     {outcome:7} {count:>9,} {unit:24} {seconds:7.1f} s  {test}")


def _lines(stats: dict[str, list[Any]]) -> Iterator[tuple[str, int, str, str, float, str]]:
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in stats.get(outcome, ()):
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY and (report.when == "call" or outcome != "passed"):
                    row, count, unit = value
                    yield row, count, unit, outcome, report.duration, report.nodeid
