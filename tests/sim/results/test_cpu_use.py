"""The load of each CPU, from the rows of resources; and tables of versions that did not have such rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

import sim
from nodes.errors import UsageError
from sim.results.summary import CpuUse
from sim.views import rows
from tests.synthetic import finish, pair, usage


def cpu(number: int, second: float, **more: float) -> tuple[object, ...]:
    """A row of a CPU that is busy for half of the time, a tenth of it with interrupts."""
    times = {"steal_s": 0.2 * second, "irq_s": 0.02 * second, "softirq_s": 0.03 * second}
    return usage(-3 - number, f"CPU {number}", second, **times | more)


@pytest.fixture
def run(tmp_path: Path) -> sim.Run:
    directory = pair(tmp_path)
    for second in (0.0, 0.5, 1.0):
        host = usage(-2, "host", second, steal_s=0.2 * second, load_1=1.0, sampling_s=0.0)
        directory.resources([host, cpu(0, second), cpu(11, second, steal_s=0.0)])
    return finish(directory)


def test_each_cpu_has_its_figures(run: sim.Run) -> None:
    assert run.figures.host is not None
    common = {"busy_percent": 50.0, "irq_percent": 2.0, "softirq_percent": 3.0}
    assert run.figures.host.cpus == [
        CpuUse(cpu=0, steal_percent=20.0, **common),
        CpuUse(cpu=11, steal_percent=0.0, **common),
    ]
    assert rows.cpus(run.figures).rows == [
        ("CPU 0", "50.0 %", "2.0 %", "3.0 %", "20.0 %"),
        ("CPU 11", "50.0 %", "2.0 %", "3.0 %", "0.0 %"),
    ]
    (busiest,) = rows.cpus(run.figures, most=1).rows
    assert busiest[0] == "CPU 0"


def test_a_table_with_other_columns_is_refused(run: sim.Run) -> None:
    file = run.path / "resources.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["softirq_s"]), file)
    with pytest.raises(UsageError, match="other columns"):
        sim.open(run.path).resources()
