"""The load of each CPU, from the rows of resources; and tables of versions that did not have such rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sim
from nodes.errors import UsageError
from sim.results.summary import CpuUse
from sim.views import rows
from tests.synthetic import finish, pair, usage

LATER = ("irq_s", "softirq_s")


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


def test_a_table_without_the_later_columns_has_them_empty(run: sim.Run) -> None:
    file = run.path / "resources.parquet"
    whole = pq.read_table(file)
    pq.write_table(whole.drop_columns(list(LATER)), file)
    again = sim.open(run.path)
    assert again.problems == []
    table = again.resources()
    assert table.drop_columns(list(LATER)) == whole.drop_columns(list(LATER))
    assert table["irq_s"].null_count == table.num_rows
    # A column that was there from the start may not be missing.
    pq.write_table(whole.select(["machine", "name"]), file)
    with pytest.raises(UsageError, match="other columns"):
        sim.open(run.path).resources()


def test_a_stream_without_the_later_columns_is_read(tmp_path: Path) -> None:
    from sim.results.store.schemas import RESOURCES, read_stream

    older = pa.schema([field for field in RESOURCES if field.name not in LATER])
    columns = [pa.array([value], field.type) for value, field in zip(cpu(0, 1.0), older, strict=False)]
    with pa.OSFile(str(tmp_path / "resources.arrows"), "wb") as file, pa.ipc.new_stream(file, older) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=older))
    table, wrong = read_stream(tmp_path / "resources.arrows")
    assert (table.schema, table.num_rows, wrong) == (RESOURCES, 1, "")
